"""Published ports: which are in force, for whom, and how they change."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress

from msgspec.structs import replace

from lamella.host.network import conntrack, plan
from lamella.host.network.driver import DesiredPort
from lamella.host.network.fabric import Fabric
from lamella.host.network.namespace import Seat
from lamella.host.network.plan import Element, Forward
from lamella.host.network.reservations import Key, Reservations
from lamella.model.errors import Conflict, LamellaError, Unavailable
from lamella.model.instance import Publish

log = logging.getLogger("lamella.host.network")


class Publisher:
    """One change at a time. ``forwards`` are those in force."""

    def __init__(self, fabric: Fabric, tell_routers: Callable[[list[Forward]], Awaitable[None]]) -> None:
        self.forwards: list[Forward] = []
        self._fabric = fabric
        self._tell_routers = tell_routers
        self._reservations = Reservations()
        self._lock = asyncio.Lock()

    async def recall(self, forwards: list[Forward]) -> None:
        """Take over what an earlier daemon put in force, and hold its host ports again."""

        def hold(_: Seat) -> None:
            for forward in forwards:
                # Somebody may have taken the port while no daemon held it; the rule stays in force all the same.
                with suppress(LamellaError):
                    self._reservations.take(*_key(forward))

        self.forwards = forwards
        await self._fabric.in_host("reserve published ports", hold)

    def close(self) -> None:
        self._reservations.close()

    def forget(self, keep: set[str]) -> None:
        """Drop the forwards of all ports but *keep*; their elements are the caller's to remove."""
        for forward in self.forwards:
            if forward.owner not in keep:
                self._reservations.release(_key(forward))
        self.forwards = [forward for forward in self.forwards if forward.owner in keep]

    def elements(self) -> tuple[list[Element], list[Element]]:
        """(the layer's, the host's) elements that ought to be in force."""
        between = self._fabric.transfer
        return (
            [plan.layer_element(forward) for forward in self.forwards],
            [plan.host_element(forward, between) for forward in self.forwards],
        )

    async def publish(self, port: DesiredPort, via: str = "") -> list[Publish]:
        """Make exactly the port's published ports lead to it, *via* its router; a host port of 0 keeps what was chosen for it before.

        :raise Conflict: when a host port is in use; nothing is changed then.
        :raise Unsupported: when a host address is not IPv4.
        """
        plan.check_port(port)
        plan.check_publish(port.publish)
        async with self._lock:
            kept, missing = plan.kept(self.forwards, port)
            leaving = {_key(old) for old in self.forwards if old.owner == port.id and old not in kept.values()}
            keys: list[Key] = []
            taken: list[Key] = []

            def reserve(_: Seat) -> None:
                for place in missing:
                    wish = port.publish[place]
                    key = (wish.protocol, wish.host_address, wish.host_port)
                    if key not in leaving:  # else the reservation passes from the old forward to the new one
                        self._refuse_overlap(wish, port.id)
                        key = self._reservations.take(*key)
                        taken.append(key)
                    keys.append(key)

            try:
                if missing:
                    await self._fabric.in_host("reserve host ports", reserve)
                found = {**kept, **dict(zip(missing, self._new(port, missing, keys), strict=True))}
                wanted = {place: replace(forward, via=via) for place, forward in found.items()}
                await self._change(port.id, list(wanted.values()))
            except BaseException:
                for key in taken:
                    self._reservations.release(key)
                raise
            return [wanted[place].published for place in range(len(port.publish))]

    async def lead(self, via: Mapping[str, str]) -> None:
        """Have what is published for each of these ports (by id) go that way from now on."""
        async with self._lock:
            for owner, way in via.items():
                current = [forward for forward in self.forwards if forward.owner == owner]
                await self._change(owner, [replace(forward, via=way) for forward in current])

    async def retract(self, owner: str) -> None:
        """Unpublish all of the port with id *owner*."""
        async with self._lock:
            await self._change(owner, [])

    def _refuse_overlap(self, wish: Publish, owner: str) -> None:
        for forward in self.forwards:
            if wish.host_port and forward.owner != owner and plan.overlaps(wish, forward.published):
                raise Conflict(
                    f"host port {wish.host_port}/{wish.protocol} is published for port {forward.owner} already",
                    hint="choose another host port, or 0 for any free one",
                    field="publish",
                )

    def _new(self, port: DesiredPort, places: list[int], keys: list[Key]) -> Iterator[Forward]:
        uplink_ports = {(forward.protocol, forward.uplink_port) for forward in self.forwards}
        for place, (protocol, host_address, host_port) in zip(places, keys, strict=True):
            chosen = plan.uplink_port(uplink_ports, protocol, host_port)
            uplink_ports.add((protocol, chosen))
            yield Forward(
                owner=port.id,
                protocol=protocol,
                host_address=host_address,
                host_port=host_port,
                uplink_port=chosen,
                address=str(plan.address_of(port)),
                port=port.publish[place].port,
            )

    async def _change(self, owner: str, wanted: list[Forward]) -> None:
        """Put exactly *wanted* in force for *owner*: in the layer before the host, and away in the other order."""
        table, between = self._fabric.table, self._fabric.transfer
        current = [forward for forward in self.forwards if forward.owner == owner]
        new = [forward for forward in wanted if forward not in current]
        old = [forward for forward in current if forward not in wanted]
        if not new and not old:
            return
        layer_new, layer_old = ([plan.layer_element(forward) for forward in some] for some in (new, old))
        led_elsewhere = [element for element in layer_old if element.key in {other.key for other in layer_new}]
        host_new, host_old = ([plan.host_element(forward, between) for forward in some] for some in (new, old))
        before, self.forwards = self.forwards, [forward for forward in self.forwards if forward not in old] + new
        try:
            if any(forward.via for forward in new):
                await self._tell_routers([*self.forwards, *old])
            await self._fabric.change_layer([*plan.remove(table, led_elsewhere), *plan.add(table, layer_new)])
            await self._fabric.change_host([*plan.remove(table, host_old), *plan.add(table, host_new)])
            await self._fabric.change_layer(
                plan.remove(table, [element for element in layer_old if element not in led_elsewhere])
            )
            if any(forward.via for forward in old):
                await self._tell_routers(self.forwards)
        except BaseException:
            self.forwards = before
            raise
        await self._forget_flows([*new, *old])
        for key in {_key(forward) for forward in old} - {_key(forward) for forward in new}:
            self._reservations.release(key)

    async def _forget_flows(self, forwards: list[Forward]) -> None:
        """Let clients that kept sending from one UDP port meet the new rules; a TCP connection begins anew by itself."""
        datagrams = [forward for forward in forwards if forward.protocol == "udp"]
        if not datagrams:
            return
        host_ports = {forward.host_port for forward in datagrams}
        uplink_ports = {forward.uplink_port for forward in datagrams}
        try:
            await self._fabric.in_host("forget UDP flows", lambda _: conntrack.forget_udp(host_ports))
            await self._fabric.in_layer("forget UDP flows", lambda _: conntrack.forget_udp(uplink_ports))
        except Unavailable as error:
            # The rules are in force; flows under way follow them when they have been silent for a while.
            log.warning("%s", error)


def _key(forward: Forward) -> Key:
    return forward.protocol, forward.host_address, forward.host_port
