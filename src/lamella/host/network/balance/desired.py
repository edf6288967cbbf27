"""What a network driver is told of a balancer."""

import msgspec

from lamella.model.balancer import Check, Listener
from lamella.model.instance import Publish


class Backend(msgspec.Struct, kw_only=True, frozen=True):
    """One instance behind the listener at the place ``listener``; ``port`` is its own. ``draining``: no new connection."""

    listener: int
    instance: str
    name: str
    address: str
    port: int
    draining: bool = False


class DesiredBalancer(msgspec.Struct, kw_only=True, frozen=True):
    """``drain`` is in seconds: how long connections to a backend that leaves may go on."""

    id: str
    name: str
    network: str
    address: str
    listeners: list[Listener]
    backends: list[Backend] = []
    check: Check = Check()
    source: bool = False
    publish: list[Publish] = []
    drain: float = 30.0
