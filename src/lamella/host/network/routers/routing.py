"""Routers in force: what is asked is compared with what is there, and the difference made. One change at a time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv4Network

from msgspec.structs import replace

from lamella.host.network import rtnetlink, state
from lamella.host.network.driver import DesiredNetwork, DesiredPort
from lamella.host.network.fabric import Fabric
from lamella.host.network.names import gateway_name, router_name, zone_of
from lamella.host.network.namespace import Seat
from lamella.host.network.plan import PROTOCOLS, Forward, Transfer
from lamella.host.network.routers import flows, ground, rules
from lamella.host.network.routers.desired import DesiredRouter
from lamella.host.network.routers.spaces import Spaces
from lamella.host.network.services.plan import Site
from lamella.model.errors import Unavailable

log = logging.getLogger("lamella.host.network")


class Routing:
    """``asked`` are the routers by id; the texts are the rules that this process knows to be in force."""

    def __init__(self, fabric: Fabric) -> None:
        self.asked: dict[str, DesiredRouter] = {}
        self._outside: list[str] = []
        self._fabric = fabric
        self._spaces = Spaces.of(fabric.home)
        self._networks: dict[str, DesiredNetwork] = {}
        self._forwards: list[Forward] = []
        self._between: dict[str, Transfer] = {}
        self._texts: dict[str, str] = {}
        # As the kernel has them, by router.
        self._prints: dict[str, str] = {}
        self._lock = asyncio.Lock()

    @property
    def table(self) -> str:
        return f"{self._fabric.table}-r"

    def via(self, network: DesiredNetwork) -> str:
        """Where the layer hands over what is for *network*: an address of its router, or nothing."""
        between = self._between.get(network.router) if network.router else None
        return "" if between is None else str(between.layer.ip)

    def site(self, network: DesiredNetwork) -> Site | None:
        """Where the gateway of *network* is, when that is its router's; names are asked outside when packets may go there."""
        router = self.asked.get(network.router)
        if router is None or network.id not in router.networks:
            return None
        return Site(
            interface=gateway_name(network.id),
            gateway=network.gateway,
            netns=self._spaces.path(router.id),
            outside=router.uplink and not network.isolated,
        )

    async def recall(self, forwards: list[Forward]) -> list[Forward]:
        """Look for routers of an earlier daemon; *forwards* with the instances that they lead to by them."""

        def look(seat: Seat) -> dict[str, Mapping[tuple[str, str], list[str]]]:
            found: dict[str, Mapping[tuple[str, str], list[str]]] = {}
            for router in self._spaces.ids():
                between, space = ground.transfer(seat, router), self._spaces.open(router)
                if space is None:
                    continue
                with ground.inside(seat, space) as there:
                    entries = state.entries(there.nft, self.table, [("ip", "map", "inbound")])
                if between is not None:
                    self._between[router] = between
                    found[str(between.layer.ip)] = {(key[0], key[1]): value for _, key, value in entries["inbound"]}
            return found

        led = await self._fabric.in_layer("look for routers", look)
        result: list[Forward] = []
        for forward in forwards:
            if forward.address not in led:
                result.append(forward)
                continue
            places = led[forward.address]
            for name in (forward.protocol, str(PROTOCOLS[forward.protocol])):
                if (target := places.get((name, str(forward.uplink_port)))) is not None:
                    result.append(replace(forward, via=forward.address, address=target[0], port=int(target[1])))
        self._forwards = result
        return result

    async def apply(
        self, routers: Iterable[DesiredRouter], networks: Mapping[str, DesiredNetwork], outside: Iterable[str]
    ) -> None:
        """Have exactly these *routers* between *networks* (by id); *outside* are the subnets that floating addresses are of.

        :raise Unavailable: when one of them cannot be; the others are all the same.
        """
        async with self._lock:
            self.asked = {router.id: router for router in routers}
            self._networks, self._outside = dict(networks), list(outside)
            await self._settle()

    async def lead(self, forwards: list[Forward]) -> None:
        """Have published ports go to instances behind routers: exactly those of *forwards* that are led by one."""
        async with self._lock:
            self._forwards = list(forwards)
            for router in self.asked.values():
                if router.id in self._between:
                    await self._fabric.in_layer(f"lead ports by router {router.name}", self._ruler(router))

    async def permit(self, ports: Iterable[DesiredPort]) -> None:
        """Let *ports* send as what lies behind them by the routers' routes."""
        text = rules.permitted(self._fabric.table, self.asked.values(), ports)
        if self._texts.get("permitted", "") != text:
            await self._fabric.change_layer([text])
            self._texts["permitted"] = text

    def beside(self, ports: Iterable[DesiredPort]) -> list[DesiredPort]:
        """*ports* with the networks that theirs are joined to, each in a zone of its own: behind routers addresses overlap."""
        others = {
            id: ([other for other in router.networks if other != id], zone_of(id))
            for router in self.asked.values()
            for id in router.networks
        }
        return [
            port if (known := others.get(port.network)) is None else replace(port, beside=known[0], zone=known[1])
            for port in ports
        ]

    async def missing(self) -> list[str]:
        """What of the routers that are asked for is not there, in words."""
        routers, networks = list(self.asked.values()), dict(self._networks)

        def look(seat: Seat) -> list[str]:
            return [
                f"router {router.name}"
                for router in routers
                if not ground.whole(seat, self._spaces, router, self.table, networks, self._prints.get(router.id, ""))
            ]

        return await self._fabric.in_layer("look at routers", look) if routers else []

    async def repair(self, networks: Mapping[str, DesiredNetwork], forwards: list[Forward]) -> None:
        """Put all of it in force again, whatever somebody did to links and rules."""
        async with self._lock:
            self._texts.clear()
            self._networks, self._forwards = dict(networks), list(forwards)
            await self._settle()

    async def _settle(self) -> None:
        failures: list[Unavailable] = []

        async def attempt(step: Awaitable[None]) -> None:
            try:
                await step
            except Unavailable as error:
                failures.append(error)

        for gone in (self._spaces.ids() | self._between.keys()) - self.asked.keys():
            await attempt(self._remove(gone))
        if self.asked:
            taken = await self._fabric.in_host(
                "look at the host's routes", lambda seat: [route.destination for route in seat.route.routes()]
            )
            await self._leave_to_host()
            for router in self.asked.values():
                await attempt(self._fabric.in_layer(f"make router {router.name}", self._maker(router, taken)))
        await attempt(self._lead_in())
        if failures:
            raise failures[0]

    async def _leave_to_host(self) -> None:
        """No floating address is one that the host has itself, or by which it reaches others: those lead nowhere."""
        foreign = await self._fabric.in_host("look for the host's addresses", partial(_kept, self._fabric.outer))
        for id, router in self.asked.items():
            if taken := router.floating.keys() & foreign:
                log.error("the host itself has %s or reaches others by it: it leads to no instance", ", ".join(taken))
                led = {address: to for address, to in router.floating.items() if address not in taken}
                self.asked[id] = replace(router, floating=led)

    async def _remove(self, router: str) -> None:
        await self._fabric.in_layer(f"remove router {router}", lambda seat: ground.remove(seat, self._spaces, router))
        self._between.pop(router, None)
        self._texts.pop(router, None)
        self._prints.pop(router, None)

    def _maker(self, router: DesiredRouter, taken: list[IPv4Network]) -> Callable[[Seat], None]:
        def make(seat: Seat) -> None:
            networks = {id: self._networks[id] for id in router.networks if id in self._networks}
            space = self._spaces.open(router.id)
            if space is None:
                self._texts.pop(router.id, None)
                space = self._spaces.make(seat, router.id)
            with ground.inside(seat, space) as there:
                between = self._between[router.id] = ground.joined(seat, router.id, there, taken)
                # Rules before legs: nothing passes that they do not know of.
                self._rule(seat, router, there, networks, between)
                ground.plug(seat, there, networks)
                ground.lead(there, router, networks)

        return make

    def _ruler(self, router: DesiredRouter) -> Callable[[Seat], None]:
        def rule(seat: Seat) -> None:
            space = self._spaces.open(router.id)
            if space is not None:
                networks = {id: self._networks[id] for id in router.networks if id in self._networks}
                with ground.inside(seat, space) as there:
                    self._rule(seat, router, there, networks, self._between[router.id])

        return rule

    def _rule(
        self,
        seat: Seat,
        router: DesiredRouter,
        there: ground.Inside,
        networks: Mapping[str, DesiredNetwork],
        between: Transfer,
    ) -> None:
        text = rules.router_rules(self.table, router, networks.values(), between, self._forwards)
        if self._texts.get(router.id) == text:
            return
        there.nft.run(text)
        self._texts[router.id] = text
        self._prints[router.id] = ground.print_of(there.nft, self.table)
        course = flows.Course(router, networks.values(), between, self._forwards)
        try:
            with seat.visit(there.space):
                ended = flows.end_strays(course)
        except OSError as error:
            log.warning("flows through router %s that it allows no more go on: %s", router.name, error)
        else:
            if ended:
                log.info("%d flows were ended: router %s leads them no more, or elsewhere", ended, router.name)

    async def _lead_in(self) -> None:
        """Floating addresses: the host leads them to the layer, the layer to their routers."""
        places = {
            IPv4Network(address): (router_name(router.id), IPv4Address(self._between[router.id].layer.ip))
            for router in self.asked.values()
            if router.id in self._between
            for address in router.floating
        }
        floating = [str(network.network_address) for network in places]
        uplink = self._fabric.uplink

        def in_layer(seat: Seat) -> None:
            text = rules.layer_rules(self.table, uplink, floating) if self.asked else rules.no_layer_rules(self.table)
            self._run(seat, "layer", text)
            links = {link.name: link.index for link in seat.route.links()}
            wanted = {(network, links[name], gateway) for network, (name, gateway) in places.items() if name in links}
            _route(seat, wanted, {links[name] for name in map(router_name, self._between) if name in links})

        await self._fabric.in_layer("lead floating addresses to routers", in_layer)
        between = self._fabric.transfer

        def in_host(seat: Seat) -> None:
            self._run(seat, "host", rules.host_elements(self._fabric.table, floating, self._outside))
            link = seat.route.link(self._fabric.outer)
            if link is not None:
                _route(seat, {(one, link.index, IPv4Address(between.layer.ip)) for one in places}, {link.index})

        await self._fabric.in_host("lead floating addresses to the layer", in_host)

    def _run(self, seat: Seat, what: str, text: str) -> None:
        if self._texts.get(what) != text:
            seat.nft.run(text)
            self._texts[what] = text


def _kept(uplink: str, seat: Seat) -> set[str]:
    """What the host has itself, or reaches others by."""
    link = seat.route.link(uplink)
    index = 0 if link is None else link.index
    own = {route.destination for route in seat.route.routes() if route.link != index}
    return {str(one.network_address) for one in own if one.prefixlen == 32} | set(map(str, seat.route.gateways()))


def _route(seat: Seat, wanted: set[tuple[IPv4Network, int, IPv4Address]], links: set[int]) -> None:
    """Have exactly these routes by a gateway on *links*."""
    present = {
        (route.destination, route.link, route.gateway)
        for route in seat.route.routes()
        if route.gateway is not None and route.link in links
    }
    seat.route.send(
        *(rtnetlink.delete_route(*one) for one in present - wanted),
        *(rtnetlink.add_route(*one) for one in wanted - present),
    )
