"""Firewalls in force: what is asked is compared with what was put in force, and the difference is one transaction."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from lamella.host.network import rtnetlink
from lamella.host.network.driver import DesiredPort
from lamella.host.network.fabric import Fabric, rules_refused
from lamella.host.network.guard import flows, rules
from lamella.host.network.guard.rules import Guarded
from lamella.host.network.namespace import Seat
from lamella.model.errors import Unavailable, Unsupported
from lamella.model.firewall import FirewallSpec
from lamella.model.host import Capability

log = logging.getLogger("lamella.host.network")

_BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


class Guard:
    """``in_force`` is what this process put there; ``None`` until then: an earlier daemon's rules stay meanwhile."""

    def __init__(self, fabric: Fabric) -> None:
        self.in_force: Guarded | None = None
        # What of it the last one asked: the firewalls, and the ports that name some, by id.
        self._firewalls: Mapping[str, FirewallSpec] = {}
        self._ports: dict[str, DesiredPort] = {}
        self._fabric = fabric
        self._table = f"{fabric.table}-g"

    def guards(self, port: DesiredPort) -> bool:
        """Whether everything that *port* asks for is in force."""
        return not port.firewalls or (self.in_force is not None and rules.place_of(port) in self.in_force.inward)

    async def protect(self, firewalls: Mapping[str, FirewallSpec], ports: Iterable[DesiredPort]) -> None:
        """Put exactly this in force, and end flows that it forbids.

        :raise Unsupported: when ports are to be guarded and this kernel does not show bridged packets to IP rules.
        :raise Unavailable: when the rules are refused; those before stay in force.
        """
        firewalls, ports = dict(firewalls), list(ports)
        asked = {port.id: port for port in ports if port.firewalls}
        before, after, wanted = self._difference(firewalls, asked)
        if before != after:
            if wanted.inward and not _BRIDGED.exists():
                raise Unsupported(
                    "this host cannot keep firewalls: its kernel does not show bridged packets to IP rules",
                    hint="load the kernel module br_netfilter",
                )
            try:
                await self._change(before, after, wanted.bridges)
            except Unavailable as error:
                if not rules_refused(error) or before is None:
                    raise
                # Somebody changed our tables: they are made anew, whole.
                await self._change(None, wanted, wanted.bridges)
        self.in_force, self._firewalls, self._ports = wanted, firewalls, asked
        await self._forget(firewalls, ports, flows.affected(before or Guarded(), after))

    def _difference(
        self, firewalls: Mapping[str, FirewallSpec], asked: Mapping[str, DesiredPort]
    ) -> tuple[Guarded | None, Guarded, Guarded]:
        """What to lead from and to, and all that is in force then. While the firewalls stay, the first two are of the ports that change
        alone: a port costs the same among thousands."""
        before, known = self.in_force, self._ports
        if before is not None and firewalls == self._firewalls and len(before.inward) == len(known):
            gone = [port for id, port in known.items() if asked.get(id) != port]
            come = [port for id, port in asked.items() if known.get(id) != port]
            wanted, minus, plus = rules.step(before, firewalls, gone, come)
            # Two ports at one place would be told apart by nothing: then all of it is computed.
            if len(wanted.inward) == len(asked):
                return minus, plus, wanted
        wanted = rules.guarded(firewalls, asked.values())
        return before, wanted, wanted

    async def _change(self, before: Guarded | None, after: Guarded, bridges: frozenset[str]) -> None:
        """*bridges* are all that have guarded ports then."""
        text = rules.change(self._table, before or Guarded(), after)
        if before is None:
            text = rules.frame(self._table, self._fabric.uplink) + text

        def run(seat: Seat) -> None:
            # Rules first: a bridge whose packets are shown to them is guarded from its first packet on.
            if text:
                seat.nft.run(text)
            for name in sorted((before or after).bridges | after.bridges):
                seat.route.send(rtnetlink.set_bridge_filtered(name, name in bridges))

        await self._fabric.in_layer("put firewalls in force", run)

    async def _forget(
        self,
        firewalls: Mapping[str, FirewallSpec],
        ports: Iterable[DesiredPort],
        addresses: frozenset[flows.IPv4Address],
    ) -> None:
        if not addresses:
            return
        try:
            ended = await self._fabric.in_layer(
                "end flows that are forbidden now", lambda _: flows.forget_forbidden(firewalls, ports, addresses)
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
