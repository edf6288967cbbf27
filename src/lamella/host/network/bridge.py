"""The built-in network driver: Linux bridges and nftables in a network namespace of the layer's own.

What the rules say is computed in ``plan``; ``fabric`` puts them in force; ``publishing`` keeps published ports.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from pathlib import Path

from lamella.host.compute.driver import Home
from lamella.host.network import attach, capture, links, plan, resolvers, state, watching
from lamella.host.network.balance.balancers import Balancers, is_balancer
from lamella.host.network.balance.desired import DesiredBalancer
from lamella.host.network.capture import Captures
from lamella.host.network.describing import Descriptions
from lamella.host.network.driver import Attachment, DesiredNetwork, DesiredPort, Rates, Resident
from lamella.host.network.fabric import Fabric, rules_refused
from lamella.host.network.guard.guards import Guards
from lamella.host.network.names import bridge_name, overlay_name, port_name, shaper_name
from lamella.host.network.namespace import Seat
from lamella.host.network.overlay.tunnels import Tunnels
from lamella.host.network.plan import Element
from lamella.host.network.publishing import Publisher
from lamella.host.network.routers.desired import DesiredRouter
from lamella.host.network.routers.routing import Routing
from lamella.host.network.services.plan import Site
from lamella.host.network.services.services import Services
from lamella.host.network.six import dual_stack
from lamella.host.network.six.dual_stack import DualStack
from lamella.host.network.traffic import shaper
from lamella.model.balancer import BalancerReport
from lamella.model.capture import CaptureSpec
from lamella.model.errors import NotFound, Unavailable
from lamella.model.firewall import FirewallSpec
from lamella.model.host import Capability, Underlay
from lamella.model.ids import is_id
from lamella.model.instance import Publish
from lamella.model.network import Neighbour


class BridgeDriver:
    """*netns* is the layer's namespace (default: its room's); the host's is that of whoever calls :meth:`open`. *underlay* is the address
    of the host by which networks go on to other hosts; without one they end here.

    ``networks`` and ``ports`` are what was asked of this driver since it was opened.
    """

    name = "bridge"

    def __init__(
        self,
        home: Home,
        netns: Path | None = None,
        upstream: tuple[Path, ...] = resolvers.SOURCES,
        *,
        underlay: str = "",
    ) -> None:
        self.networks: dict[str, DesiredNetwork] = {}
        self.ports: dict[str, DesiredPort] = {}
        self._fabric = Fabric(home, netns)
        self._routing = Routing(self._fabric)
        self._tunnels = Tunnels(self._fabric, underlay)
        self._publisher = Publisher(self._fabric, self._routing.lead)
        self._known: dict[str, Element] = {}
        self._six = DualStack(self._fabric)
        self._descriptions = Descriptions(self._fabric, self._six, self._restore)
        self._guard = Guards(self._fabric)
        self._captures = Captures(self._fabric, home.mark)
        self._balancers = Balancers(home, self._fabric, self._publisher, self.publish)
        self._asked: tuple[Mapping[str, FirewallSpec], list[DesiredPort]] = {}, []
        self._watch = watching.Watch(
            self._fabric,
            self._routing,
            self._six,
            self._wanted,
            lambda ports: self.repair(self.networks.values(), ports),
        )
        self._services = Services(home, self._fabric, lambda: list(self.networks.values()), self._site, upstream)

    async def open(self) -> list[Capability]:
        """Make the uplink and the rules, or find them with what ports there are; then look for what stands in the way.

        :raise Unavailable: when a namespace, a link or a rule cannot be made; the message says which.
        """
        await self._fabric.open()
        host, layer = await self._fabric.elements()
        self._known = {element.owner: element for element in state.known(layer)}
        self._descriptions.recall(layer)
        await self._tunnels.open()
        await self._six.open()
        await self._publisher.recall(await self._routing.recall(state.forwards(host, layer)))
        return await self.findings()

    async def close(self) -> None:
        """Let go; links, rules and services stay in force."""
        await self._services.close()
        await self._balancers.close()
        await self._fabric.close()
        self._publisher.close()

    async def findings(self) -> list[Capability]:
        """How the network stands on this host: the uplink, who forbids forwarding, which subnets shadow the host's routes."""
        rates = await self._fabric.in_layer("look for queues", shaper.finding)
        return [
            *await self._fabric.findings(self.networks.values()),
            self._guard.finding(),
            *await self._six.findings(),
            self._balancers.finding(),
            self._services.finding(),
            *self._tunnels.findings(),
            rates,
            capture.finding(),
        ]

    async def serve(self, residents: Iterable[Resident]) -> None:
        """Have DHCP and DNS know exactly these, on the networks that are here; it is made so beside."""
        self._services.use(residents)

    async def nameservers(self, network: str) -> list[str]:
        """The network's gateway where dnsmasq answers there; else the host's IPv4 resolvers but for those on loopback, if it has any."""
        return await asyncio.to_thread(self._services.nameservers, network)

    @property
    def underlay(self) -> Underlay | None:
        """Where other hosts send what is for ports here."""
        return self._tunnels.underlay

    # --- networks

    async def ensure_network(self, network: DesiredNetwork) -> None:
        """Its bridge, with the gateway's address; and whether its instances may go out.

        :raise Conflict: when its subnet overlaps another network's or the uplink's.
        """
        self._watch.changes += 1
        if self.networks.get(network.id) != network:
            plan.check_subnet(network, self.networks.values(), self._fabric.transfer)
        await self._descriptions.say(network)

        def make(seat: Seat) -> None:
            dual_stack.settle(seat, network, attach.ensure_bridge(seat, network))

        await self._fabric.in_layer(f"make network {network.name}", make)
        self.networks[network.id] = network
        self._services.wake()

    async def keep_networks(self, ids: set[str]) -> None:
        """Remove every network of ours but those with these *ids*, and those that ports are on; what somebody else named so stays."""
        self._watch.changes += 1
        for id in await self._fabric.in_layer("look for networks", links.unused) - ids:
            if is_id(id):
                await self._descriptions.forget(id)
                await self._fabric.sweep(overlay_name(id))
                await self._fabric.sweep(bridge_name(id))
                self.networks.pop(id, None)
                self._services.wake()

    async def route(self, routers: Iterable[DesiredRouter], outside: Iterable[str] = ()) -> None:
        """Have exactly these *routers*, and what is published behind them lead by them; of *outside*, nobody's addresses lead nowhere.

        :raise Unavailable: when one cannot be made; the others are.
        """
        self._watch.changes += 1
        try:
            await self._routing.apply(routers, self.networks, outside)
        finally:
            self._services.wake()
            await self._led()

    async def span(self, neighbours: Iterable[Neighbour]) -> None:
        """Have exactly these ports of other hosts reached, and reach ours, on the networks that are here.

        :raise Unavailable: when the kernel refuses; what can be is made.
        """
        self._watch.changes += 1
        self._tunnels.neighbours = list(neighbours)
        await self._tunnels.apply(self.networks.values())

    async def _led(self) -> None:
        ports = {port.id: port for port in (*self._asked[1], *self.ports.values())}
        try:
            if self._guard.begun:
                await self._guard.protect(self._asked[0], self._routing.beside(self._asked[1]))
        finally:
            await self._publisher.lead({port.id: self._via(port) for port in ports.values()})
            await self._routing.permit(ports.values())

    def _site(self, network: DesiredNetwork) -> Site:
        return self._routing.site(network) or Site(
            interface=bridge_name(network.id), gateway=network.gateway, outside=not network.isolated
        )

    def _via(self, port: DesiredPort) -> str:
        network = self.networks.get(port.network)
        return "" if network is None else self._routing.via(network)

    # --- firewalls

    async def protect(self, firewalls: Mapping[str, FirewallSpec], ports: Iterable[DesiredPort]) -> None:
        """Have exactly these *firewalls* (by id) guard those of *ports* that name them, in one step; flows that may no more be end.

        :raise Unsupported: when the host cannot. :raise Unavailable: when its kernel refuses; then what was before stays in force.
        """
        self._watch.changes += 1
        self._asked = firewalls, list(ports)
        try:
            await self._guard.protect(firewalls, self._routing.beside(self._asked[1]))
        finally:
            await self._routing.permit(self._asked[1])

    async def balance(self, balancers: Iterable[DesiredBalancer], heard: Callable[[BalancerReport], None]) -> None:
        """Have exactly these, soon: a task of its own checks their backends, and tells *heard* what becomes of them."""
        self._balancers.ask(balancers, heard)

    # --- ports

    async def attach_namespace(self, port: DesiredPort, netns: Path) -> Attachment:
        """A veth into *netns* as ``eth0``, with address, default route and loopback set up inside.

        :raise NotFound: when the port's network is not here, or no namespace is at *netns*.
        """
        network = self._network(port)
        await self._link(port, lambda seat: attach.join_namespace(seat, port, network, netns))
        return links.attachment(port, network)

    async def attach_tap(self, port: DesiredPort) -> tuple[Attachment, int]:
        """A TAP that lives as long as the returned descriptor or a copy of it; non-blocking, with virtio-net headers.

        :raise Conflict: when a running machine holds the port's TAP.
        """
        network = self._network(port)
        made: list[int] = []
        try:
            await self._link(port, lambda seat: made.append(attach.make_tap(seat, port, network)))
        except BaseException:
            for descriptor in made:
                os.close(descriptor)
            raise
        return links.attachment(port, network), made[0]

    async def _link(self, port: DesiredPort, make: Callable[[Seat], None]) -> None:
        """Let the port's packets in and make its link, in one visit of the layer's thread."""
        self._watch.changes += 1
        if not self._guard.guards(port):
            raise Unavailable(f"the firewalls of port {port.id} are not in force", hint="the host's log says why")
        element, old = plan.known(port), self._known.get(port.id)
        table = self._fabric.table
        self.ports[port.id] = port
        # Looked for here: the thread would meet ports that come meanwhile.
        mirrored = [
            (other, self.networks[other.network].mtu)
            for other in self.ports.values()
            if other.mirror == port.id and other.network in self.networks
        ]

        def add(seat: Seat) -> None:
            before = [] if old is None or old == element else [old]
            after = [] if old == element else [element]
            if text := "".join([*plan.remove(table, before), *plan.add(table, after), *self._six.letting(port)]):
                seat.nft.run(text)
            if port.firewalls:
                seat.route.send(*links.filtered(port))
            make(seat)
            shaper.shape(seat, port, self._network(port).mtu)
            for other, mtu in mirrored:
                shaper.shape(seat, other, mtu)

        try:
            await self._fabric.in_layer(f"attach port {port.id}", add)
        except Unavailable as error:
            if not rules_refused(error):
                raise
            self._known[port.id] = old = element
            self._six.let(port)
            await self._restore()
            if self._guard.begun:
                self._guard.lost()
                await self._guard.protect(self._asked[0], self._routing.beside(self._asked[1]))
            await self._fabric.in_layer(f"attach port {port.id}", add)
        self._known[port.id] = element
        self._six.let(port)

    async def detach(self, port: str) -> None:
        """Remove the port's published ports, its element and its link; gone already is fine."""
        self._watch.changes += 1
        known = self._known.pop(port, None)
        gone = [] if known is None else [known]
        try:
            await self._publisher.retract(port)
            await self._fabric.change_layer([*plan.remove(self._fabric.table, gone), *self._six.leaving(port)])
        except Unavailable as error:
            if not rules_refused(error):
                raise
            # The rules were not as we remember: what ought to stay is put in force.
            self._publisher.forget({forward.owner for forward in self._publisher.forwards} - {port})
            await self._restore()
        await self._fabric.sweep(port_name(port))
        await self._fabric.sweep(shaper_name(port))
        self.ports.pop(port, None)

    async def publish(self, port: DesiredPort) -> list[Publish]:
        """Make exactly these ports of the host lead to it; a host port of 0 keeps what was chosen for it before.

        :raise Conflict: when a host port is in use; nothing is changed then.
        :raise Unsupported: when a host address is not IPv4.
        """
        before = list(self._publisher.forwards)
        try:
            return await self._publisher.publish(port, self._via(port))
        except Unavailable as error:
            if not rules_refused(error):
                raise
            await self._restore()
            return await self._publisher.publish(port, self._via(port))
        finally:
            self._watch.changes += self._publisher.forwards != before

    async def shape(self, port: DesiredPort) -> None:
        """Have exactly the ceilings and the mirror of *port* in force on its link; without a link, none is.

        :raise Unsupported: when this kernel cannot keep them.
        """
        mtu = 0 if port.rate_in is None and port.rate_out is None else self._network(port).mtu
        await self._fabric.in_layer(f"limit the rate of port {port.id}", lambda seat: shaper.shape(seat, port, mtu))
        self.ports[port.id] = port

    async def rates(self, port: str) -> Rates:
        """What is in force for the port with this id, and what passes."""
        return await self._fabric.in_layer("read rates", lambda seat: shaper.rates(seat, port))

    def capture(self, port: str, wish: CaptureSpec) -> AsyncGenerator[bytes]:
        """A capture file of what passes the port's link, as :meth:`Captures.stream` has it."""
        return self._captures.stream(port, wish)

    async def inventory(self) -> set[str]:
        """Ids of ports that have a link or a rule here, read from the kernel."""
        labels = await self._fabric.in_layer("look for ports", links.labels)
        owners = {
            owner
            for containers in await self._fabric.elements()
            for name, elements in containers.items()
            for owner, _, _ in elements
            if name not in ("isolated", "bridged")
        }
        return {owner for owner in labels | owners if owner and not is_balancer(owner)}

    async def counters(self, port: str) -> tuple[int, int]:
        """Bytes (received, sent) as the instance sees them, since its link was made.

        :raise NotFound: when the port has no link.
        """
        link = await self._fabric.in_layer("read counters", lambda seat: seat.route.link(port_name(port)))
        if link is None:
            raise NotFound(f"port {port} has no link on this host", hint="its instance does not run")
        return link.sent, link.received

    # --- repair and end

    async def look(self) -> list[str]:
        """What was not in force although it ought to be, and was put right."""
        return [*await self._watch.look(), *await self._tunnels.look(self.networks.values())]

    def _wanted(self) -> watching.Wanted:
        ports = {port.id: port for port in (*self._asked[1], *self.ports.values())}
        return watching.Wanted(
            table=self._fabric.table,
            uplink=self._fabric.uplink,
            networks=list(self.networks.values()),
            ports=[port for port in ports.values() if port.network in self.networks],
            guarded=self._guard.places(),
        )

    async def repair(self, networks: Iterable[DesiredNetwork], ports: Iterable[DesiredPort]) -> None:
        """Put everything in force again, whatever somebody did to links and rules; other ports go from the rules."""
        networks = list(networks)
        self.networks = {network.id: network for network in networks}
        self.ports = {port.id: port for port in ports}
        self._known = {port.id: plan.known(port) for port in self.ports.values()}
        self._descriptions.remember(networks)
        self._six.remember(networks, self.ports.values())
        self._publisher.forget(set(self.ports) | self._balancers.ids)
        await self._restore()
        # Before links are in their bridges again: nothing passes there that the firewalls do not see.
        self._guard.lost()
        await self._guard.protect(self._asked[0], self._routing.beside(self._asked[1]))
        # Copies: others come and go meanwhile.
        there, links_of = dict(self.networks), list(self.ports.values())
        await self._fabric.in_layer("repair links", lambda seat: links.relink(seat, there, links_of))
        await self._routing.repair(self.networks, self._publisher.forwards)
        await self._led()
        await self._tunnels.look(self.networks.values())
        self._services.lost()
        for port in list(self.ports.values()):
            if port.publish:
                await self._publisher.publish(port, self._via(port))
        self._balancers.lost()

    async def teardown(self) -> None:
        """Remove everything that bears the mark, the uplink too; works without :meth:`open`."""
        await self._services.teardown()
        await self._balancers.teardown()
        await self._fabric.teardown()
        self._publisher.close()
        self._publisher.forwards = []
        self.networks, self.ports, self._known = {}, {}, {}
        self._descriptions.remember([])
        self._six.forget()
        self._guard.lost()

    async def _restore(self) -> None:
        layer, host = self._publisher.elements()
        described = [element for elements in self._descriptions.by_network.values() for element in elements]
        await self._fabric.restore([*self._known.values(), *described, *layer], host)
        await self._six.restore()

    def _network(self, port: DesiredPort) -> DesiredNetwork:
        network = self.networks.get(port.network)
        if network is None:
            raise NotFound(f"network {port.network} of port {port.id} is not on this host", hint="ensure it first")
        return network
