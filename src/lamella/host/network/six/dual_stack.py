"""IPv6 in force: what of it ports and networks are is put into its tables, and bridges get their gateways' addresses.

Nothing of it is there before the first network that has IPv6.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lamella.host.network import forwarding, plan, rtnetlink, state
from lamella.host.network.driver import DesiredNetwork, DesiredPort
from lamella.host.network.fabric import Fabric
from lamella.host.network.names import bridge_name
from lamella.host.network.namespace import Seat
from lamella.host.network.plan import Element
from lamella.host.network.six import plan as six
from lamella.host.network.six import rules
from lamella.host.network.six.outward import Outward
from lamella.model.errors import Unsupported
from lamella.model.host import Capability

_KERNEL = Path("/proc/sys/net/ipv6/conf")


class DualStack:
    """``ports`` and ``networks`` are the elements in force by owner; ``framed`` says whether the tables are there."""

    def __init__(self, fabric: Fabric) -> None:
        self.table = f"{fabric.table}-6"
        self.framed = False
        self.ports: dict[str, list[Element]] = {}
        self.networks: dict[str, list[Element]] = {}
        self._fabric = fabric
        self._outward = Outward(fabric)

    async def open(self) -> None:
        """Find what an earlier daemon left, with the rules as they are now."""

        def look(seat: Seat) -> dict[str, list[state.Entry]] | None:
            if ("ip6", self.table) not in seat.nft.tables():
                return None
            seat.nft.run(rules.layer_rules(self.table, self._fabric.uplink))
            return state.entries(seat.nft, self.table, six.CONTAINERS)

        found = await self._fabric.in_layer("look for IPv6", look)
        self.framed = found is not None
        for name, entries in (found or {}).items():
            kept = self.networks if name in {container for _, _, container in six.OF_NETWORKS} else self.ports
            for owner, words, _ in entries:
                kept.setdefault(owner, []).append(six.read(name, owner, words))
        await self._lead_out()

    async def describe(self, id: str, network: DesiredNetwork | None) -> None:
        """Have exactly what *network* is in force for its id; ``None``: nothing.

        :raise Unsupported: when this kernel has no IPv6. :raise Unavailable: when the rules are refused.
        """
        wanted = [] if network is None else six.of_network(network)
        old = self.networks.get(id, [])
        if not wanted and not old:
            return
        if wanted and not _KERNEL.exists():
            raise Unsupported("this host's kernel has no IPv6", hint="make a network without a subnet of IPv6")
        await self._frame()
        await self._fabric.change_layer(self._difference(old, wanted))
        _keep(self.networks, id, wanted)
        if not self._outward.made:
            await self._lead_out()

    async def _lead_out(self) -> None:
        """With a network that goes out, have the way there."""
        if any(element.container == "outbound" for some in self.networks.values() for element in some):
            await self._outward.make()

    async def _frame(self) -> None:
        if not self.framed:
            await self._fabric.change_layer([rules.layer_rules(self.table, self._fabric.uplink)])
            self.framed = True

    def letting(self, port: DesiredPort) -> Iterator[str]:
        """Lines that let *port* send, and what it is no more not; :meth:`let` when they are in force."""
        return self._difference(self.ports.get(port.id, []), six.of_port(port))

    def let(self, port: DesiredPort) -> None:
        """What :meth:`letting` said is in force."""
        _keep(self.ports, port.id, six.of_port(port))

    def leaving(self, port: str) -> Iterator[str]:
        """Lines that remove what the port with this id is, which is forgotten."""
        return self._difference(self.ports.pop(port, []), [])

    def _difference(self, old: list[Element], wanted: list[Element]) -> Iterator[str]:
        yield from plan.remove(self.table, [element for element in old if element not in wanted])
        yield from plan.add(self.table, [element for element in wanted if element not in old])

    def remember(self, networks: Iterable[DesiredNetwork], ports: Iterable[DesiredPort]) -> None:
        """Exactly these are to be in force; :meth:`restore` puts them there."""
        self.networks = {network.id: found for network in networks if (found := six.of_network(network))}
        self.ports = {port.id: found for port in ports if (found := six.of_port(port))}
        self.framed = self.framed or bool(self.networks)

    async def restore(self) -> None:
        """Rules and what is remembered, whatever somebody did to them."""
        if self.framed:
            every: Mapping[str, list[Element]] = {**self.networks, **self.ports}
            elements = [element for some in every.values() for element in some]
            await self._fabric.change_layer(
                [
                    rules.layer_rules(self.table, self._fabric.uplink),
                    *plan.flush(self.table, six.CONTAINERS),
                    *plan.add(self.table, elements),
                ]
            )
            await self._lead_out()

    def missing(self, seat: Seat, attached: Iterable[DesiredPort]) -> list[str]:
        """In the layer's thread: what is not in force, in words."""
        if not self.framed:
            return []
        there = seat.nft.tables()
        gone = [f"table {family} {self.table}" for family in ("bridge", "ip6") if (family, self.table) not in there]
        gone += self._outward.missing_in_layer(there)
        if gone:
            return gone
        entries = state.entries(seat.nft, self.table, six.CONTAINERS)
        found = {six.read(name, owner, words) for name, some in entries.items() for owner, words, _ in some}
        missing = [
            f"what lets port {port.id} send IPv6" for port in attached if not found.issuperset(six.of_port(port))
        ]
        networks = dict(self.networks)
        return missing + [f"IPv6 of network {id}" for id, some in networks.items() if not found.issuperset(some)]

    async def missing_in_host(self) -> list[str]:
        return await self._outward.missing_in_host()

    def forget(self) -> None:
        """Nothing is in force any more."""
        self.ports, self.networks, self.framed = {}, {}, False
        self._outward.made = False

    async def findings(self) -> list[Capability]:
        there = _KERNEL.exists()
        kernel = Capability(
            name="network.ipv6",
            available=there,
            value="dual stack" if there else "",
            reason="networks may have a subnet of IPv6" if there else "this kernel has no IPv6",
        )
        return [kernel, await self._outward.finding()]


def settle(seat: Seat, network: DesiredNetwork, index: int) -> None:
    """In the layer's thread: the gateway's address on the network's bridge, which listens to no router. There already is fine."""
    if network.gateway6:
        name = bridge_name(network.id)
        forwarding.set_sysctl(f"conf/{name}/disable_ipv6", "0", family="ipv6")
        forwarding.set_sysctl(f"conf/{name}/accept_ra", "0", family="ipv6")
        seat.route.send(rtnetlink.add_address(index, six.gateway_of(network)))


def _keep(known: dict[str, list[Element]], id: str, wanted: list[Element]) -> None:
    if wanted:
        known[id] = wanted
    else:
        known.pop(id, None)
