"""Firewalls in force: what is asked is compared with what was put in force, and the difference is one transaction."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lamella.host.network import rtnetlink
from lamella.host.network.driver import DesiredPort
from lamella.host.network.fabric import Fabric, rules_refused
from lamella.host.network.guard import flows, rules
from lamella.host.network.guard.family import IPV4, Address, Family
from lamella.host.network.guard.rules import Guarded
from lamella.host.network.namespace import Seat
from lamella.model.errors import Unavailable, Unsupported
from lamella.model.firewall import FirewallSpec
from lamella.model.host import Capability

log = logging.getLogger("lamella.host.network")

_BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


class Guard:
    """``in_force`` is what this process put there; ``None`` until then: an earlier daemon's rules stay meanwhile."""

    def __init__(self, fabric: Fabric, family: Family = IPV4) -> None:
        self.in_force: Guarded | None = None
        # What it was made of: the firewalls, and all ports by id, guarded or not.
        self._firewalls: Mapping[str, FirewallSpec] = {}
        self._ports: Mapping[str, DesiredPort] = {}
        # Addresses that ports had which are gone: flows of theirs may be there yet.
        self._left: set[Address] = set()
        self._fabric = fabric
        self._family = family
        # Nothing of IPv6 is there before a port has it.
        self._framed = False
        self.table = f"{fabric.table}-{family.suffix}"
        self._turn = asyncio.Lock()

    def guards(self, port: DesiredPort) -> bool:
        """Whether everything that *port* asks for is in force."""
        if not port.firewalls:
            return True
        places = rules.places_of(port, self._family)
        return not places or (self.in_force is not None and self.in_force.inward.keys() >= set(places))

    async def protect(self, firewalls: Mapping[str, FirewallSpec], ports: Iterable[DesiredPort]) -> None:
        """Put exactly this in force, and end flows that it forbids.

        :raise Unsupported: when ports are to be guarded and this kernel does not show bridged packets to IP rules.
        :raise Unavailable: when the rules are refused; those before stay in force.
        """
        async with self._turn:
            await self._protect(dict(firewalls), {port.id: port for port in ports})

    async def _protect(self, firewalls: Mapping[str, FirewallSpec], asked: Mapping[str, DesiredPort]) -> None:
        if self.in_force is None and self._family is not IPV4 and not any(map(self._family.addresses, asked.values())):
            await self._unframe()
        gone = [port for id, port in self._ports.items() if (new := asked.get(id)) is not port and new != port]
        come = [port for id, port in asked.items() if (old := self._ports.get(id)) is not port and old != port]
        before, part = self.in_force, self._part(firewalls, gone, come)
        whole = rules.guarded(firewalls, asked.values(), self._family) if part is None else None
        minus, plus = part or (before, whole or Guarded())
        if minus != plus:
            if plus.inward and not _BRIDGED.exists():
                raise Unsupported(
                    "this host cannot keep firewalls: its kernel does not show bridged packets to IP rules",
                    hint="load the kernel module br_netfilter",
                )
            try:
                await self._change(minus, plus)
            except Unavailable as error:
                if not rules_refused(error) or before is None:
                    raise
                # Somebody changed our tables: they are made anew, whole.
                whole = rules.guarded(firewalls, asked.values(), self._family)
                await self._change(None, whole)
        if whole is not None:
            self.in_force = whole
        elif before is not None and minus is not None:
            rules.take(before, minus, plus)
        addresses = flows.affected(minus or Guarded(), plus)
        addresses_of = self._family.addresses
        self._left |= {address for port in gone if port.id not in asked for address in addresses_of(port)}
        if part is not None:
            # A port that is new at an address that nobody had before it has no flows.
            addresses -= {
                address
                for port in come
                if port.id not in self._ports
                for address in addresses_of(port)
                if address not in self._left
            }
        self._left -= {address for port in come for address in addresses_of(port)}
        self._firewalls, self._ports = firewalls, asked
        await self._forget(addresses)

    def _part(
        self, firewalls: Mapping[str, FirewallSpec], gone: Sequence[DesiredPort], come: Sequence[DesiredPort]
    ) -> tuple[Guarded, Guarded] | None:
        """What to lead from and to when it is no more than what *gone* and *come* bring, so that a port costs the same among thousands;
        ``None`` when all of it has to be computed: at first, when rules change, and where two ports are told apart by nothing."""
        if self.in_force is None or firewalls != self._firewalls:
            return None
        minus, plus = rules.step(self.in_force, firewalls, gone, come, self._family)
        apart = all(
            len(part.inward) == sum(len(self._family.addresses(port)) for port in ports if port.firewalls)
            for part, ports in ((self.in_force, self._ports.values()), (plus, come))
        )
        return (minus, plus) if apart and not rules.collide(self.in_force, minus, plus) else None

    async def _change(self, before: Guarded | None, after: Guarded) -> None:
        text = rules.change(self.table, before or Guarded(), after, self._family)
        if before is None or not self._framed:
            text = rules.frame(self.table, self._fabric.uplink, self._family) + text
        six = self._family is not IPV4

        def run(seat: Seat) -> None:
            # Rules first: a bridge whose packets are shown to them is guarded from its first packet on.
            if text:
                seat.nft.run(text)
            for name in sorted((before or after).bridges | after.bridges):
                seat.route.send(rtnetlink.set_bridge_filtered(name, name in after.bridges, six=six))

        await self._fabric.in_layer("put firewalls in force", run)
        self._framed = True

    async def _unframe(self) -> None:
        """What an earlier daemon had goes: nobody is guarded."""
        table, families = self.table, ("bridge", self._family.name)

        def run(seat: Seat) -> None:
            there = seat.nft.tables()
            seat.nft.run("".join(f"delete table {family} {table}\n" for family in families if (family, table) in there))

        await self._fabric.in_layer("look for firewalls", run)
        self.in_force, self._framed = Guarded(), False

    async def _forget(self, addresses: frozenset[Address]) -> None:
        firewalls, ports = self._firewalls, self._ports.values()
        if not addresses:
            return
        try:
            ended = await self._fabric.in_layer(
                "end flows that are forbidden now",
                lambda _: flows.forget_forbidden(firewalls, ports, addresses, self._family),
            )
        except Unavailable as error:
            log.warning("%s", error)
        else:
            if ended:
                log.info("%d flows were ended: the firewalls allow them no more", ended)

    def lost(self) -> None:
        """Nothing is known of what is in force: the next :meth:`protect` makes all of it."""
        self.in_force = None

    def finding(self) -> Capability:
        there = _BRIDGED.exists()
        return Capability(
            name="network.firewall",
            available=there,
            value="br_netfilter" if there else "",
            reason="IP rules see bridged packets" if there else "the kernel module br_netfilter is not loaded",
        )
