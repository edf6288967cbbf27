"""Balancers in force: one task that follows what is asked and who lives, and puts the difference in force.

It looks every two seconds whether somebody has changed what it made.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Any

from lamella.host.compute.driver import Home
from lamella.host.network.balance import addresses, earlier, flows, plan
from lamella.host.network.balance.desired import Backend, DesiredBalancer
from lamella.host.network.balance.earlier import Led
from lamella.host.network.balance.flows import Leaving, Place
from lamella.host.network.balance.health import Health, Probe, Seen
from lamella.host.network.balance.http.proxy import Proxy
from lamella.host.network.balance.plan import Balanced
from lamella.host.network.balance.telling import Teller
from lamella.host.network.driver import DesiredPort
from lamella.host.network.fabric import Fabric
from lamella.host.network.names import BRIDGE_PREFIX, bridge_name
from lamella.host.network.namespace import Seat
from lamella.host.network.nft import NftError
from lamella.host.network.publishing import Publisher
from lamella.model.balancer import BalancerReport
from lamella.model.errors import LamellaError
from lamella.model.host import Capability
from lamella.model.ids import PREFIXES
from lamella.model.instance import Publish

log = logging.getLogger("lamella.host.network")

LOOK_AGAIN = 2.0
# In seconds: how long after a start one waits for the first answers of all.
PATIENCE = 5.0
# A MAC is part of every port; nothing is sent under a balancer's.
_NO_MAC = "02:00:00:00:00:00"

Publishing = Callable[[DesiredPort], Awaitable[list[Publish]]]


def is_balancer(owner: str) -> bool:
    """Whether the id is of a balancer."""
    return owner.startswith(f"{PREFIXES['balancer']}_")


class Balancers:
    """*publish* is the driver's, which restores the rules when somebody took them away."""

    def __init__(self, home: Home, fabric: Fabric, publisher: Publisher, publish: Publishing) -> None:
        self._fabric = fabric
        self._publisher = publisher
        self._publish = publish
        self._health = Health(fabric, self._kick)
        self._proxy = Proxy(home, fabric, self._kick)
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._asked: dict[str, DesiredBalancer] = {}
        self._in_force: Balanced | None = None
        self._look: list[dict[str, Any]] = []
        self._patient_until: float | None = None
        self._earlier: set[Led] = set()
        self._leaving = Leaving()
        self._teller = Teller()

    @property
    def ids(self) -> set[str]:
        return set(self._asked)

    def ask(self, balancers: Iterable[DesiredBalancer], heard: Callable[[BalancerReport], None]) -> None:
        """Have exactly these, soon. What becomes of them is told to *heard*."""
        self._asked = {balancer.id: balancer for balancer in balancers}
        self._teller.heard = heard
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="balancers")
        self._kick()

    def lost(self) -> None:
        """Nothing is known of what is in force: all of it is made anew, soon."""
        if self._in_force is not None:
            self._in_force = Balanced()
            self._look = []
        self._kick()

    async def close(self) -> None:
        """Let go; everything stays in force."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self._health.close()
        self._proxy.close()

    async def teardown(self) -> None:
        """End what serves; rules and addresses go with the rest of the layer's network."""
        await self.close()
        await asyncio.to_thread(self._proxy.teardown)

    def finding(self) -> Capability:
        """Whether this host can read HTTP."""
        return self._proxy.finding()

    def _kick(self) -> None:
        self._wake.set()

    async def _run(self) -> None:
        while True:
            idle = not self._asked and self._in_force == Balanced()
            wait = None if idle else LOOK_AGAIN
            if wait is not None and (due := self._leaving.next) is not None:
                wait = max(0.0, min(wait, due - asyncio.get_running_loop().time()))
            if wait is not None and (left := self._patience) > 0:
                wait = min(wait, left)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._apply(list(self._asked.values()))
            except LamellaError as error:
                log.warning("balancers: %s", error)
            except Exception:
                log.exception("balancers")

    async def _apply(self, asked: list[DesiredBalancer]) -> None:
        self._health.watch(
            probe for balancer in asked for backend in balancer.backends if (probe := _probe(balancer, backend))
        )
        if self._health.settled:
            self._earlier = set()
        elif self._in_force is None:
            # What an earlier daemon put in force stays until it is known who lives; later, what it has for those that have yet to answer.
            if self._patient_until is None:
                self._patient_until = asyncio.get_running_loop().time() + PATIENCE
            if self._patience > 0:
                return
            self._earlier = await self._left()
        failures = await self._place(asked)
        here = [balancer for balancer in asked if balancer.id not in failures]
        failures |= await self._publish_all(here)
        seen: dict[tuple[str, Backend], Seen] = {
            (balancer.id, backend): self._seen(balancer, backend) for balancer in asked for backend in balancer.backends
        }
        forwards = {
            balancer.id: [one for one in self._publisher.forwards if one.owner == balancer.id] for balancer in here
        }

        taking = {
            (balancer.id, backend)
            for balancer in here
            for backend in balancer.backends
            if self._takes(balancer, backend, seen[balancer.id, backend])
        }

        def up(id: str, backend: Backend) -> bool:
            return (id, backend) in taking

        wanted = plan.balanced(here, forwards, up)
        await self._fabric.in_layer("put balancers in force", lambda seat: self._change(seat, wanted))
        failures |= await self._proxy.serve(here, up)
        await self._leave(here, seen)
        self._teller.tell(asked, seen, failures)

    # --- parts

    @property
    def _patience(self) -> float:
        """For how many seconds more the first answers are waited for."""
        if self._in_force is not None or self._patient_until is None:
            return 0.0
        return self._patient_until - asyncio.get_running_loop().time()

    async def _left(self) -> set[Led]:
        listing = await self._fabric.in_layer("read whom balancers lead to", lambda seat: _listing(seat, self._table))
        return earlier.by_rules(listing) | earlier.by_configuration(await self._proxy.in_force())

    def _takes(self, balancer: DesiredBalancer, backend: Backend, seen: Seen) -> bool:
        return earlier.led(balancer, backend) in self._earlier if seen.up is None else seen.up

    def _seen(self, balancer: DesiredBalancer, backend: Backend) -> Seen:
        probe = _probe(balancer, backend)
        return Seen(True) if probe is None else self._health.of(probe)

    async def _place(self, asked: list[DesiredBalancer]) -> dict[str, str]:
        """Their addresses, on the bridges of their networks. Why not, by the id of those that have none."""
        failures: dict[str, str] = {}

        def place(seat: Seat) -> None:
            bridges = {link.name: link.index for link in seat.route.links() if link.name.startswith(BRIDGE_PREFIX)}
            wanted: set[str] = set()
            for balancer in asked:
                index = bridges.get(bridge_name(balancer.network))
                if index is None:
                    failures[balancer.id] = "its network is not on this host"
                    continue
                wanted.add(balancer.address)
                seat.route.send(addresses.add(index, IPv4Address(balancer.address)))
            for address in _own(seat, self._table) - wanted:
                for index in bridges.values():
                    seat.route.send(addresses.remove(index, IPv4Address(address)))

        await self._fabric.in_layer("give balancers their addresses", place)
        return failures

    async def _publish_all(self, here: list[DesiredBalancer]) -> dict[str, str]:
        failures: dict[str, str] = {}
        ours = {forward.owner for forward in self._publisher.forwards if is_balancer(forward.owner)}
        for owner in ours - {balancer.id for balancer in here if balancer.publish}:
            await self._publisher.retract(owner)
        for balancer in here:
            if not balancer.publish:
                continue
            port = DesiredPort(
                id=balancer.id,
                network=balancer.network,
                address=f"{balancer.address}/32",
                mac=_NO_MAC,
                publish=balancer.publish,
            )
            try:
                await self._publish(port)
            except LamellaError as error:
                failures[balancer.id] = error.message
        return failures

    @property
    def _table(self) -> str:
        return f"{self._fabric.table}-b"

    def _change(self, seat: Seat, wanted: Balanced) -> None:
        found = _listing(seat, self._table)
        if not wanted.own:
            if found:
                seat.nft.run(f"delete table ip {self._table}")
            self._in_force, self._look = wanted, []
            return
        if self._in_force == wanted and self._look == found:
            return
        # What is not as it was left is made anew, whole.
        before = self._in_force if found and found == self._look else None
        text = plan.change(self._table, before or Balanced(), wanted)
        if before is None:
            text = plan.frame(self._table, self._fabric.uplink) + text
        seat.nft.run(text)
        self._in_force, self._look = wanted, _listing(seat, self._table)

    async def _leave(self, here: list[DesiredBalancer], seen: dict[tuple[str, Backend], Seen]) -> None:
        taking: dict[Place, float] = {}
        dead: set[Place] = set()
        for balancer in here:
            forwards = [one for one in self._publisher.forwards if one.owner == balancer.id]
            for backend in balancer.backends:
                places = flows.places_of(balancer, backend, forwards, self._fabric.transfer)
                if seen[balancer.id, backend].up is False:
                    dead |= places
                elif seen[balancer.id, backend].up and not backend.draining:
                    taking |= dict.fromkeys(places, balancer.drain)
        due = self._leaving.look(taking, dead, asyncio.get_running_loop().time())
        if due:
            ended = await self._fabric.in_layer("end connections to backends that left", lambda _: flows.end(due))
            if ended:
                log.info("%d connections to backends that left were ended", ended)


def _probe(balancer: DesiredBalancer, backend: Backend) -> Probe | None:
    """``None`` when it is believed to live."""
    if balancer.check.kind == "none":
        return None
    return Probe(backend.address, balancer.check.port or backend.port, balancer.check)


def _listing(seat: Seat, table: str) -> list[dict[str, Any]]:
    """What is in force, as the kernel tells it: equal when nobody has changed anything."""
    try:
        return seat.nft.listing(f"list table ip {table}")
    except NftError:
        return []


def _own(seat: Seat, table: str) -> set[str]:
    """Addresses that balancers have by the rules in force."""
    try:
        found = seat.nft.listing(f"list map ip {table} own")
    except NftError:
        return set()
    return {str(key) for item in found for key, _ in item.get("map", {}).get("elem", [])}
