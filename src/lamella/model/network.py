"""Networks and the ports that instances have on them."""

import msgspec

from lamella.model.instance import Publish
from lamella.model.resource import Condition, Resource


class NetworkSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``subnet`` is an IPv4 prefix; its first address is the gateway."""

    driver: str = "bridge"
    subnet: str = "10.83.0.0/16"
    mtu: int = 1500


class NetworkStatus(msgspec.Struct, kw_only=True):
    gateway: str = ""
    conditions: list[Condition] = []


class PortSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An instance's place on a network. ``address`` carries its prefix length (``10.83.0.2/16``)."""

    network: str
    address: str
    mac: str
    owner: str
    publish: list[Publish] = []


class PortStatus(msgspec.Struct, kw_only=True):
    host: str | None = None
    conditions: list[Condition] = []


Network = Resource[NetworkSpec, NetworkStatus]
Port = Resource[PortSpec, PortStatus]
