"""The two namespaces, the uplink between them and the rules in both: made, found again, restored, removed.

outside -- host namespace -- uplink (routed veth, /30) -- layer namespace -- bridge -- veth or TAP -- instance
"""

from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

from lamella.host.compute.driver import Home
from lamella.host.linux.room import Room
from lamella.host.network import forwarding, plan, rtnetlink, rules, state, uplink
from lamella.host.network.driver import DesiredNetwork
from lamella.host.network.names import OURS, uplink_names
from lamella.host.network.namespace import Namespace, Seat
from lamella.host.network.nft import NftError
from lamella.host.network.plan import Element, Transfer
from lamella.host.network.routers.spaces import Spaces
from lamella.model.errors import Internal, Unavailable
from lamella.model.host import Capability

T = TypeVar("T")


class Fabric:
    """*netns* is the layer's namespace (default: its room's); the host's is that of whoever calls :meth:`open`."""

    def __init__(self, home: Home, netns: Path | None) -> None:
        self.table = home.mark
        self.home = home
        self._netns = netns
        self._note = home.run / "network" / "forwarding.json"
        self.note6 = home.run / "network" / "forwarding6.json"
        self._names = uplink_names(home.mark)
        self._between: Transfer | None = None
        self._stack: AsyncExitStack | None = None

    @property
    def uplink(self) -> str:
        """The name of the layer's end of the uplink."""
        return self._names[1]

    @property
    def outer(self) -> str:
        """The name of the host's end of the uplink."""
        return self._names[0]

    async def open(self) -> None:
        """:raise Unavailable: when a namespace, a link or a rule cannot be made; the message says which."""
        await self.enter()
        await self.furnish()

    async def enter(self) -> None:
        """Start the threads. The sweeper's only task is removing links, which takes the kernel long."""
        if self._stack is not None:
            return
        try:
            path = self._netns or Room(self.home).netns
            async with AsyncExitStack() as stack:
                self._host, self._layer, self._sweeper = Namespace(None), Namespace(path), Namespace(path)
                for namespace in (self._host, self._layer, self._sweeper):
                    await namespace.open()
                    stack.push_async_callback(namespace.close)
                self._stack = stack.pop_all()
        except OSError as error:
            raise Unavailable(
                f"the layer's network cannot be entered: {error}",
                hint="it needs root and libnftables (package nftables)",
            ) from error

    async def descriptor(self) -> int:
        """Of the layer's namespace; it stays open as long as this is."""
        return await self.in_layer("find the layer's namespace", lambda seat: seat.home)

    async def furnish(self) -> None:
        """Uplink and rules, made or found; elements that are in force stay so."""
        ours, theirs = self._names
        layer = await self.descriptor()

        def in_host(seat: Seat) -> Transfer:
            between = self._choose(seat)
            uplink.connect(seat, layer, self._names, between)
            seat.nft.run(rules.host_rules(self.table, ours, between))
            forwarding.switch_on(self._note)
            return between

        between = await self.in_host("make the uplink", in_host)

        def in_layer(seat: Seat) -> None:
            uplink.settle(seat, theirs, between)
            seat.nft.run(rules.layer_rules(self.table, theirs))

        await self.in_layer("set up the layer's end of the uplink", in_layer)
        self._between = between

    def _choose(self, seat: Seat) -> Transfer:
        """The transfer network that the uplink has already, or a free one."""
        routes = seat.route.routes()
        link = seat.route.link(self._names[0])
        if link is not None:
            for route in routes:
                if route.link == link.index and route.destination.prefixlen == 30:
                    return Transfer(route.destination)
        return plan.transfer(self.table, [route.destination for route in routes])

    async def restore(self, layer: Iterable[Element], host: Iterable[Element]) -> None:
        """Uplink, rules and exactly these elements, whatever somebody did to them."""
        await self.furnish()
        await self.change_layer([*plan.flush(self.table, plan.LAYER_CONTAINERS), *plan.add(self.table, layer)])
        await self.change_host([*plan.flush(self.table, plan.HOST_CONTAINERS), *plan.add(self.table, host)])

    async def change_layer(self, lines: Iterable[str]) -> None:
        """One transaction of nftables in the layer. :raise Unavailable: caused by an NftError when it is refused."""
        if text := "".join(lines):
            await self.in_layer("change the layer's rules", lambda seat: seat.nft.run(text))

    async def change_host(self, lines: Iterable[str]) -> None:
        """One transaction of nftables in the host. :raise Unavailable: caused by an NftError when it is refused."""
        if text := "".join(lines):
            await self.in_host("change the host's rules", lambda seat: seat.nft.run(text))

    async def elements(self) -> tuple[dict[str, list[state.Entry]], dict[str, list[state.Entry]]]:
        """(the host's, the layer's) elements in force, by the name of their set or map."""
        return (
            await self.in_host(
                "read the host's rules", lambda seat: state.entries(seat.nft, self.table, plan.HOST_CONTAINERS)
            ),
            await self.in_layer(
                "read the layer's rules", lambda seat: state.entries(seat.nft, self.table, plan.LAYER_CONTAINERS)
            ),
        )

    async def findings(self, networks: Iterable[DesiredNetwork]) -> list[Capability]:
        """The uplink, who forbids forwarding, and which of *networks* shadow routes of the host."""
        between = self.transfer

        def look(seat: Seat) -> list[Capability]:
            link = seat.route.link(self._names[0])
            index = 0 if link is None else link.index
            routes = [route.destination for route in seat.route.routes() if route.link != index]
            found = [
                Capability(
                    name="network.uplink",
                    available=link is not None and link.up,
                    value=f"{between.layer} by {between.host.ip}",
                    reason=f"link {self._names[0]} of this host",
                ),
                forwarding.verdict(seat, self.table),
            ]
            for network in networks:
                shadowed = plan.shadowed(network, routes)
                if shadowed is not None:
                    found.append(shadowed)
            return found

        return await self.in_host("look at the host's network", look)

    async def sweep(self, link: str) -> None:
        """Remove a link of the layer; gone already is fine."""
        await self._call(
            self._sweeper, f"remove link {link}", lambda seat: seat.route.send(rtnetlink.delete_link(link))
        )

    async def teardown(self) -> None:
        """Remove links, rules and uplink, and put the host's forwarding back. The namespace itself is the room's."""
        try:
            await self.enter()
        except (Unavailable, Internal):
            # The namespace is gone with all in it, the uplink's other end too; only the host's side is left.
            await self._teardown_host_alone()
            return

        def in_layer(seat: Seat) -> None:
            for table in (*(f"{self.table}-{theme}" for theme in "rsbgx"), self.table):
                for family in ("bridge", "ip"):
                    seat.nft.run(f"add table {family} {table}\ndelete table {family} {table}")
            for table in (f"{self.table}-6", f"{self.table}-g6", f"{self.table}-n6"):
                for family in ("bridge", "ip6"):
                    seat.nft.run(f"add table {family} {table}\ndelete table {family} {table}")
            for link in seat.route.links():
                if link.name.startswith(OURS) or link.name == self._names[1]:
                    seat.route.send(rtnetlink.delete_link(link.name))

        await self.in_layer("remove the layer's network", in_layer)
        self._let_go_of_routers()
        await self.in_host("remove the uplink", self._clear_host)
        self._between = None
        await self.close()

    def _let_go_of_routers(self) -> None:
        spaces = Spaces.of(self.home)
        for router in spaces.ids():
            spaces.remove(router)

    async def _teardown_host_alone(self) -> None:
        self._let_go_of_routers()
        self._host, self._stack = Namespace(None), AsyncExitStack()
        await self._host.open()
        self._stack.push_async_callback(self._host.close)
        await self.in_host("remove the uplink", self._clear_host)
        await self.close()

    def _clear_host(self, seat: Seat) -> None:
        for table in (f"{self.table}-x", self.table):
            seat.nft.run(f"add table ip {table}\ndelete table ip {table}")
        if ("ip6", f"{self.table}-6") in seat.nft.tables():
            seat.nft.run(f"delete table ip6 {self.table}-6")
        seat.route.send(rtnetlink.delete_link(self._names[0]))
        forwarding.switch_back(self._note, seat)
        forwarding.switch_back6(self.note6, seat)

    async def close(self) -> None:
        """End the threads; everything stays in force."""
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.aclose()

    @property
    def transfer(self) -> Transfer:
        """:raise Internal: before :meth:`open`."""
        if self._between is None:
            raise Internal("the network driver is not open")
        return self._between

    async def in_host(self, what: str, function: Callable[[Seat], T]) -> T:
        """Run *function* in the host's namespace. :raise Unavailable: for what the kernel refuses, naming *what*."""
        self._require_open()
        return await self._call(self._host, what, function)

    async def in_layer(self, what: str, function: Callable[[Seat], T]) -> T:
        """Run *function* in the layer's namespace. :raise Unavailable: for what the kernel refuses, naming *what*."""
        self._require_open()
        return await self._call(self._layer, what, function)

    def _require_open(self) -> None:
        if self._stack is None:
            raise Internal("the network driver is not open")

    async def _call(self, namespace: Namespace, what: str, function: Callable[[Seat], T]) -> T:
        self._require_open()
        try:
            return await namespace.call(function)
        except (OSError, NftError) as error:
            said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise Unavailable(f"cannot {what}: {said}", hint="lamella doctor shows what this host lacks") from error


def rules_refused(error: Unavailable) -> bool:
    """Whether nftables said no: then what is in force is not what we remember."""
    return isinstance(error.__cause__, NftError)
