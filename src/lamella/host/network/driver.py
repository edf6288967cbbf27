"""What the layer's network can do for a port: the Protocol of network drivers.

Found by the entry-point group ``lamella.network``. All links, rules and namespaces lie in the layer's own network namespace, but
for one uplink and one nft table that bear the mark.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from lamella.host.network.balance.desired import DesiredBalancer
from lamella.host.network.routers.desired import DesiredRouter
from lamella.model.balancer import BalancerReport
from lamella.model.capture import CaptureSpec
from lamella.model.firewall import FirewallSpec
from lamella.model.host import Capability, Underlay
from lamella.model.instance import Publish
from lamella.model.network import Neighbour


class Attachment(msgspec.Struct, kw_only=True, frozen=True):
    """A port as an instance sees it. Addresses carry their prefix lengths; those of IPv6 are empty where there is none. ``interface`` is
    the name inside."""

    port: str
    mac: str
    address: str
    gateway: str
    mtu: int
    interface: str = "eth0"
    address6: str = ""
    gateway6: str = ""


class DesiredNetwork(msgspec.Struct, kw_only=True, frozen=True):
    """``router`` is the id of the one that has its gateway; without one the layer's namespace has it. ``subnet6`` and ``gateway6`` are
    empty where it has no IPv6. ``vni`` is what hosts tell its packets by among themselves, 0 when it ends here."""

    id: str
    name: str
    subnet: str
    gateway: str
    mtu: int
    isolated: bool = False
    router: str = ""
    vni: int = 0
    subnet6: str = ""
    gateway6: str = ""


class DesiredPort(msgspec.Struct, kw_only=True, frozen=True):
    """``rate_in`` and ``rate_out`` are ceilings in bits a second, of frames as they are on the link; ``mirror`` is the id of the port
    that a copy of everything goes to, as far as that is attached. ``beside`` are ids of the networks
    that its own is joined to by a router: what it sends is seen there, too; ``zone`` is the one of connection tracking that its network
    has there, 0 for the common one."""

    id: str
    network: str
    address: str
    mac: str
    publish: list[Publish]
    firewalls: list[str] = []
    beside: list[str] = []
    zone: int = 0
    rate_in: int | None = None
    rate_out: int | None = None
    mirror: str = ""
    address6: str = ""


class Rate(msgspec.Struct, kw_only=True, frozen=True):
    """A ceiling in force, in bits a second, and what passed it in the last second; *evidence* says where both were read."""

    ceiling: int
    measured: int
    evidence: str


class Rates(msgspec.Struct, kw_only=True, frozen=True):
    """Of one port; ``None`` where nothing holds it back. ``into`` is what comes in to the instance."""

    into: Rate | None = None
    out_of: Rate | None = None


class Resident(msgspec.Struct, kw_only=True, frozen=True):
    """Who is at a port: what the services of its network tell of it. ``name`` is its DNS name below the network's domain, in parts;
    ``instance`` is an id, ``image`` a digest, ``isolation`` a level."""

    port: DesiredPort
    name: tuple[str, ...]
    instance: str = ""
    project: str = ""
    hostname: str = ""
    image: str = ""
    isolation: str = ""
    ssh_keys: list[str] = []
    user_data: str = ""


class NetworkDriver(Protocol):
    """The constructor is called as ``Driver(home)``."""

    name: str

    async def open(self) -> list[Capability]:
        """Make the uplink and look around; safe when it is all there already."""
        ...

    async def close(self) -> None: ...

    async def ensure_network(self, network: DesiredNetwork) -> None: ...

    async def keep_networks(self, ids: set[str]) -> None:
        """Remove every network of ours but these and those that ports are on."""
        ...

    async def route(self, routers: Iterable[DesiredRouter], outside: Iterable[str] = ()) -> None:
        """Have exactly these *routers*, between networks that are here and say so. *outside* are the subnets of external networks: what
        comes for an address there that leads to nobody is not sent on.

        :raise Unavailable: when one cannot be made; the others are.
        """
        ...

    @property
    def underlay(self) -> Underlay | None:
        """Where other hosts send what is for ports here, once :meth:`open` has looked; ``None``: networks end here."""
        ...

    async def span(self, neighbours: Iterable[Neighbour]) -> None:
        """Have exactly these ports of other hosts reached, and reach ours, on the networks that are here.

        :raise Unavailable: when the kernel refuses; what can be is made.
        """
        ...

    async def protect(self, firewalls: Mapping[str, FirewallSpec], ports: Iterable[DesiredPort]) -> None:
        """Have exactly these *firewalls* (by id) guard those of *ports* that name them. A port is not attached before what it names is in
        force.

        :raise Unsupported: when this host has no way to.
        """
        ...

    async def balance(self, balancers: Iterable[DesiredBalancer], heard: Callable[[BalancerReport], None]) -> None:
        """Have exactly these balancers. Returns at once: it is made so beside, and what becomes of them is told to *heard*, whenever
        something of it is new."""
        ...

    async def attach_namespace(self, port: DesiredPort, netns: Path) -> Attachment:
        """Join the network namespace at *netns* (an nsfs path): a veth, its address, default route and loopback set up inside."""
        ...

    async def attach_tap(self, port: DesiredPort) -> tuple[Attachment, int]:
        """A TAP on the port's network and its open descriptor, which belongs to the caller (close it after QEMU has it)."""
        ...

    async def publish(self, port: DesiredPort) -> list[Publish]:
        """Make exactly these published ports lead to it; returns them with every host port chosen.

        :raise Conflict: when a host port is in use; nothing is changed then.
        """
        ...

    async def detach(self, port: str) -> None:
        """Remove link and rules of the port with this id; gone already is fine."""
        ...

    async def shape(self, port: DesiredPort) -> None:
        """Have exactly the ceilings and the mirror of *port* in force, if it is attached; attaching does the same.

        :raise Unsupported: when this host cannot keep them.
        """
        ...

    async def rates(self, port: str) -> Rates:
        """What holds the port with this id back, read from what is in force."""
        ...

    def capture(self, port: str, wish: CaptureSpec) -> AsyncIterator[bytes]:
        """A capture file of what passes the link of the port with this id; it ends when nobody reads it any more.

        :raise NotFound: when the port has no link. :raise Invalid: when the filter is none.
        """
        ...

    async def inventory(self) -> set[str]:
        """Ids of ports that have a link or a rule here."""
        ...

    async def repair(self, networks: Iterable[DesiredNetwork], ports: Iterable[DesiredPort]) -> None:
        """Put links and rules of exactly these in force again, whatever somebody did to them."""
        ...

    async def serve(self, residents: Iterable[Resident]) -> None:
        """Have names and addresses of exactly these on the networks that are here. Returns at once: it is made so beside."""
        ...

    async def nameservers(self, network: str) -> list[str]:
        """Resolvers that an instance on the network with this id can reach."""
        ...

    async def counters(self, port: str) -> tuple[int, int]:
        """Bytes (received, sent) as the instance sees them."""
        ...

    async def teardown(self) -> None:
        """Remove everything that bears the mark, the uplink too."""
        ...


@runtime_checkable
class Watches(Protocol):
    """A driver whose work others may undo: it is asked to look now and then."""

    async def look(self) -> list[str]:
        """What was not in force although it ought to be, in words, and was put right."""
        ...
