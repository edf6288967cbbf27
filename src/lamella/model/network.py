"""Networks and the ports that instances have on them."""

from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.bit_rate import BitRate
from lamella.model.instance import Publish
from lamella.model.resource import Condition, Resource

# RFC 791: every host takes 576 bytes. A veth or TAP takes no more than 65535.
Mtu = Annotated[int, Meta(ge=576, le=65535)]


class NetworkSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``subnet`` is an IPv4 prefix, ``subnet6`` an IPv6 one or empty; the first address of each is the gateway. Nothing goes out of an
    ``isolated`` network; what is published of its instances is reached from outside all the same. An ``external`` one is not made: it says
    which addresses from outside come to the hosts, for floating addresses."""

    driver: str = "bridge"
    subnet: str = "10.83.0.0/16"
    subnet6: str = ""
    mtu: Mtu = 1500
    isolated: bool = False
    external: bool = False


class NetworkStatus(msgspec.Struct, kw_only=True):
    """``router`` is the id of the one that has the gateway; without one hosts have it. ``vni`` is what hosts that tunnel to each other
    tell its packets by, 0 while no host does; ``mtu`` is what is left of ``spec.mtu`` inside of such a tunnel, 0 without."""

    gateway: str = ""
    gateway6: str = ""
    router: str = ""
    vni: int = 0
    mtu: int = 0
    conditions: list[Condition] = []


class PortSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An instance's place on a network. ``address`` carries its prefix length (``10.83.0.2/16``), and so does ``address6``, empty
    where the network has no IPv6; ``firewalls`` are ids; ``mirror`` is the id of the port that a copy of everything goes to."""

    network: str
    address: str
    address6: str = ""
    mac: str
    owner: str
    publish: list[Publish] = []
    firewalls: list[str] = []
    rate_in: BitRate | None = None
    rate_out: BitRate | None = None
    mirror: str = ""


class PortStatus(msgspec.Struct, kw_only=True):
    host: str | None = None
    conditions: list[Condition] = []


class Neighbour(msgspec.Struct, kw_only=True, frozen=True):
    """A port on another host, as a host that has ports on the same network knows it. ``address`` carries its prefix length, ``host`` is
    the other host's address in the underlay, ``name`` its DNS name below the network's domain, in parts."""

    port: str
    network: str
    address: str
    mac: str
    host: str
    firewalls: list[str] = []
    name: tuple[str, ...] = ()


Network = Resource[NetworkSpec, NetworkStatus]
Port = Resource[PortSpec, PortStatus]
