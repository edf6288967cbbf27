"""What ought to be in force and is not, read from the kernel: somebody else flushed our tables, or removed a bridge."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from lamella.host.network import plan, rtnetlink, state
from lamella.host.network.driver import DesiredNetwork, DesiredPort
from lamella.host.network.fabric import Fabric
from lamella.host.network.names import bridge_name, port_name
from lamella.host.network.namespace import Seat
from lamella.host.network.routers.routing import Routing
from lamella.host.network.six.dual_stack import DualStack

# Seconds between two looks at what seems to be missing.
_TWICE = 1.0
_KNOWN = ("bridge", "set", "known")


def _family(table: str) -> str:
    """Of the table *table* of firewalls."""
    return "ip6" if table.endswith("6") else "ip"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked for in the layer's namespace. ``ports`` may have a link there; ``guarded`` is how many places go
    through firewalls, by their table."""

    table: str
    uplink: str
    networks: list[DesiredNetwork]
    ports: list[DesiredPort]
    guarded: dict[str, int]


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What is missing, in words, and the ports that have a link."""

    missing: list[str]
    attached: list[DesiredPort]


class Watch:
    """*wanted* is what has to be there, *repair* puts it in force for the ports that have a link. ``changes`` is how often somebody asked
    for a change: one goes on, or went on, when it is not what it was."""

    def __init__(
        self,
        fabric: Fabric,
        routing: Routing,
        six: DualStack,
        wanted: Callable[[], Wanted],
        repair: Callable[[list[DesiredPort]], Awaitable[None]],
    ) -> None:
        self.changes = 0
        self._fabric = fabric
        self._routing = routing
        self._six = six
        self._wanted = wanted
        self._repair = repair

    async def look(self) -> list[str]:
        """What was missing and was put right. It is believed when it is seen twice and nothing of ours went on meanwhile."""
        changes = self.changes
        first = (await self._seen()).missing
        if not first:
            return []
        await asyncio.sleep(_TWICE)
        seen = await self._seen()
        found = [one for one in seen.missing if one in first]
        if not found or self.changes != changes:
            return []
        await self._repair(seen.attached)
        return found

    async def _seen(self) -> Seen:
        wanted = self._wanted()
        seen = await self._fabric.in_layer("look at the layer's network", lambda seat: in_layer(seat, wanted))
        there = await self._fabric.in_host("look at the host's tables", lambda seat: seat.nft.tables())
        six = await self._fabric.in_layer("look at IPv6", lambda seat: self._six.missing(seat, seen.attached))
        host = [] if ("ip", wanted.table) in there else [f"table ip {wanted.table} of the host"]
        host += await self._six.missing_in_host()
        return Seen(missing=[*seen.missing, *six, *host, *await self._routing.missing()], attached=seen.attached)


def in_layer(seat: Seat, wanted: Wanted) -> Seen:
    """In the layer's namespace. A port that has a link lets nothing in without its element, so both are compared."""
    links = {link.name: link for link in seat.route.links()}
    attached = [port for port in wanted.ports if port_name(port.id) in links]
    ours = {("bridge", wanted.table), ("ip", wanted.table)}
    ours |= {(family, table) for table in wanted.guarded for family in ("bridge", _family(table))}
    missing = [f"table {family} {name}" for family, name in sorted(ours - seat.nft.tables())]
    if not missing:
        missing += _elements(seat, wanted, attached)
    missing += _links(links, wanted, attached)
    return Seen(missing=missing, attached=attached)


def _elements(seat: Seat, wanted: Wanted, attached: Iterable[DesiredPort]) -> list[str]:
    known = {element.key for element in state.known(state.entries(seat.nft, wanted.table, [_KNOWN]))}
    missing = [f"what lets port {port.id} send" for port in attached if plan.known(port).key not in known]
    said = state.networks(state.entries(seat.nft, wanted.table, plan.NETWORK_CONTAINERS))
    missing += [
        f"whether network {network.name} goes out"
        for network in wanted.networks
        if set(said.get(network.id, [])) != set(plan.of_network(network))
    ]
    for table, count in wanted.guarded.items():
        entries = state.entries(seat.nft, table, [(_family(table), "map", "in")])["in"]
        if len(entries) < count:
            missing.append(f"firewalls of {count - len(entries)} ports")
    return missing


def _links(links: dict[str, rtnetlink.Link], wanted: Wanted, attached: Iterable[DesiredPort]) -> list[str]:
    def up(name: str) -> bool:
        return name in links and links[name].up

    missing = [] if up(wanted.uplink) else [f"uplink {wanted.uplink}"]
    missing += [f"bridge of network {network.name}" for network in wanted.networks if not up(bridge_name(network.id))]
    for port in attached:
        bridge = links.get(bridge_name(port.network))
        if bridge is not None and links[port_name(port.id)].master != bridge.index:
            missing.append(f"port {port.id} in its bridge")
    return missing
