"""What a network driver is told of a balancer."""

import msgspec

from lamella.model.balancer import BalancerTask, Check, Listener
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


def desired(task: BalancerTask) -> DesiredBalancer:
    """What control tells, as a driver wants it: each listener with its backends. One that several targets mean is one backend."""
    spec = task.balancer.spec
    backends: dict[tuple[int, str, int], Backend] = {}
    for place, listener in enumerate(spec.listeners):
        for target, members in zip(spec.targets, task.members, strict=True):
            for member in members:
                port = target.port or listener.port
                backends[place, member.address, port] = Backend(
                    listener=place,
                    instance=member.instance,
                    name=member.name,
                    address=member.address,
                    port=port,
                    draining=member.draining,
                )
    return DesiredBalancer(
        id=task.balancer.id,
        name=task.balancer.name,
        network=spec.network,
        address=spec.address,
        listeners=spec.listeners,
        backends=list(backends.values()),
        check=spec.check,
        source=spec.spread == "source",
        publish=spec.publish,
        drain=spec.drain,
    )
