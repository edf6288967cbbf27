"""What control tells of networks, handed to the network driver of one host, and what the driver could not do yet.

Networks and routers come before firewalls, firewalls before instances: none is on a network before what guards it.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from lamella.host.machine import desired_network, desired_port, desired_router, far_port, residents_of
from lamella.host.network.balance.desired import desired as desired_balancer
from lamella.host.network.driver import DesiredPort, NetworkDriver, Resident, Watches
from lamella.model.assignment import Assignment, Assignments, RouterTask
from lamella.model.balancer import BalancerReport
from lamella.model.errors import LamellaError
from lamella.model.firewall import FirewallSpec
from lamella.model.network import Neighbour, Network

log = logging.getLogger("lamella.host.agent")

# In seconds: how often the network is looked at, for what others undid.
WATCH = 10.0


class NetworkWing:
    """*driver* is told of everything that the news of an agent bring."""

    def __init__(self, driver: NetworkDriver) -> None:
        self._driver = driver
        # What could not be made yet; it is tried again with the next news.
        self._unmade: list[Network] = []
        self._route_again = False
        self._routers: list[RouterTask] = []
        self._neighbours: list[Neighbour] = []
        self._span_again = False
        self._outside: list[str] = []
        self._firewalls: dict[str, FirewallSpec] = {}
        # Of every instance, whether it runs or not.
        self._ports: dict[str, list[DesiredPort]] = {}
        self._residents: dict[str, list[Resident]] = {}

    async def use(
        self, news: Assignments, asked: Iterable[Assignment], heard: Callable[[BalancerReport], None]
    ) -> None:
        """Have the driver do what *news* say. *asked* is what instances here were told before; *heard* what becomes of balancers."""
        await self._use_networks(news.networks, asked)
        await self._use_routers(news.routers, news.outside)
        moved = news.neighbours is not None and news.neighbours != self._neighbours
        self._neighbours = self._neighbours if news.neighbours is None else news.neighbours
        await self._use_firewalls(news)
        await self._use_neighbours(moved or bool(news.networks) or news.complete)
        if news.balancers is not None:
            await self._driver.balance([desired_balancer(task) for task in news.balancers], heard)
        await self._use_residents(news, moved)

    def forget(self, id: str) -> None:
        """The instance with this id is gone."""
        self._ports.pop(id, None)

    async def watch(self) -> None:
        """What somebody undid of the network is done again, until cancelled."""
        while isinstance(self._driver, Watches):
            await asyncio.sleep(WATCH)
            try:
                found = await self._driver.look()
            except LamellaError as error:
                log.warning("the network is not looked at: %s", error)
            except Exception:
                log.exception("the network is not looked at")
            else:
                if found:
                    log.warning("somebody changed the layer's network; put right: %s", ", ".join(found[:10]))

    async def _use_networks(self, networks: list[Network], asked: Iterable[Assignment]) -> None:
        """*networks* are all that there are; when none are told, nothing is new, but for what could not be made yet."""
        if networks:
            # What was told of an instance is older: it starts again on the networks of now.
            known = {network.id: network for network in networks}
            for one in asked:
                one.networks.update({id: known[id] for id in one.networks if id in known})
            try:
                await self._driver.keep_networks(set(known))
            except LamellaError as error:
                log.error("networks that are gone: %s", error)
        failed: list[Network] = []
        for network in networks or self._unmade:
            try:
                await self._driver.ensure_network(desired_network(network))
            except LamellaError as error:
                log.error("network %s: %s", network.name, error)
                failed.append(network)
        # A router has no leg yet on one that is made only now.
        self._route_again = self._route_again or (not networks and len(failed) < len(self._unmade))
        self._unmade = failed

    async def _use_routers(self, routers: list[RouterTask] | None, outside: list[str]) -> None:
        """*routers* are all that there are; ``None`` is no change, but for what could not be made yet. *outside* come with them."""
        if routers is not None:
            self._routers, self._outside = routers, outside
        elif not self._route_again:
            return
        try:
            await self._driver.route([desired_router(task) for task in self._routers], self._outside)
        except LamellaError as error:
            log.error("routers: %s", error)
            self._route_again = True
        else:
            self._route_again = False

    async def _use_neighbours(self, new: bool) -> None:
        """Behind the firewalls: they know who comes from other hosts before anybody does."""
        if not new and not self._span_again:
            return
        try:
            await self._driver.span(self._neighbours)
        except LamellaError as error:
            log.error("networks to other hosts: %s", error)
            self._span_again = True
        else:
            self._span_again = False

    async def _use_firewalls(self, news: Assignments) -> None:
        """Before the news' instances are begun: none is on the network before what guards it."""
        if news.firewalls is not None:
            self._firewalls = {firewall.id: firewall.spec for firewall in news.firewalls}
        if news.complete:
            self._ports = {}
        for id in news.gone:
            self._ports.pop(id, None)
        for one in news.instances:
            ports = (one.port, *one.ports.values())
            self._ports[one.instance.id] = [desired_port(port) for port in ports if port is not None]
        try:
            # Those of other hosts, too: they are members of what they belong to, and what is sent to them is looked at where it begins.
            ours = [port for ports in self._ports.values() for port in ports]
            await self._driver.protect(self._firewalls, [*ours, *map(far_port, self._neighbours)])
        except LamellaError as error:
            log.error("firewalls: %s", error)

    async def _use_residents(self, news: Assignments, moved: bool) -> None:
        """The services of networks know an instance before it is begun, as far as they are quick enough: nobody waits for them."""
        if news.complete:
            self._residents = {}
        for id in news.gone:
            self._residents.pop(id, None)
        self._residents |= {asked.instance.id: residents_of(asked) for asked in news.instances}
        if news.complete or news.gone or news.instances or moved:
            far = [Resident(port=far_port(one), name=one.name) for one in self._neighbours if one.name]
            await self._driver.serve([*(one for residents in self._residents.values() for one in residents), *far])
