"""The way out of networks that have IPv6: the uplink's second pair of addresses, and masquerading on both its sides.

It is made with the first network that goes out, and goes with the layer. Who has no IPv6 to the outside answers that there is no route, so
programs go on with IPv4 at once. Addresses of networks are of the layer alone; the host's table is ``<mark>-6``, the layer's ``<mark>-n6``.
"""

import logging
from ipaddress import IPv6Interface
from pathlib import Path

from lamella.host.network import forwarding, rtnetlink
from lamella.host.network.fabric import Fabric
from lamella.host.network.namespace import Seat
from lamella.host.network.six import rules
from lamella.host.network.six.plan import uplink6
from lamella.model.errors import Unavailable
from lamella.model.host import Capability

log = logging.getLogger("lamella.host.network")

_ROUTES = Path("/proc/thread-self/net/ipv6_route")
_UP, _REJECT = 0x1, 0x200


class Outward:
    """``made`` says whether the way out is there; *because*, why it could not be made."""

    def __init__(self, fabric: Fabric) -> None:
        self.made = False
        self._because = "no network with IPv6 goes out"
        self._fabric = fabric
        self._between = uplink6(fabric.table)

    async def make(self) -> None:
        """Have addresses, routes, rules and the host's forwarding in force; there already is fine.

        A host that cannot is told of by :meth:`finding`: its networks have IPv6 among themselves.
        """
        fabric, between = self._fabric, self._between
        host = rules.host_rules(fabric.table + "-6", fabric.outer, between)
        layer = rules.masquerading(fabric.table + "-n6", fabric.uplink)

        def in_host(seat: Seat) -> None:
            _address(seat, fabric.outer, between.host)
            seat.nft.run(host)
            forwarding.switch_on6(fabric.note6)

        def in_layer(seat: Seat) -> None:
            index = _address(seat, fabric.uplink, between.layer)
            seat.nft.run(layer)
            forwarding.set_sysctl("conf/all/forwarding", "1", family="ipv6")
            seat.route.send(rtnetlink.add_default_route(between.host.ip, index))

        try:
            await fabric.in_host("lead IPv6 out of the host", in_host)
            await fabric.in_layer("lead IPv6 out of the layer", in_layer)
        except Unavailable as error:
            self.made, self._because = False, error.message
            log.warning("IPv6 stays within its networks: %s", error.message)
        else:
            self.made = True

    def missing_in_layer(self, tables: set[tuple[str, str]]) -> list[str]:
        table = f"{self._fabric.table}-n6"
        return [f"table ip6 {table}"] if self.made and ("ip6", table) not in tables else []

    async def missing_in_host(self) -> list[str]:
        table = f"{self._fabric.table}-6"
        if not self.made:
            return []
        there = await self._fabric.in_host("look at the host's tables", lambda seat: seat.nft.tables())
        return [] if ("ip6", table) in there else [f"table ip6 {table} of the host"]

    async def finding(self) -> Capability:
        routed = self.made and await self._fabric.in_host("look for a route of IPv6", lambda _: _has_default_route())
        reason = self._because
        if self.made:
            reason = "masqueraded as the host" if routed else "this host has no default route of IPv6"
        return Capability(
            name="network.ipv6-outside", available=routed, value="uplink" if routed else "", reason=reason
        )


def _address(seat: Seat, name: str, address: IPv6Interface) -> int:
    """Give the uplink's end *name* its address; the index of the link."""
    link = seat.route.link(name)
    if link is None:
        raise OSError(f"link {name} is not there")
    forwarding.set_sysctl(f"conf/{name}/disable_ipv6", "0", family="ipv6")
    forwarding.set_sysctl(f"conf/{name}/accept_ra", "0", family="ipv6")
    seat.route.send(rtnetlink.add_address(link.index, address))
    return link.index


def _has_default_route() -> bool:
    """Of this thread's namespace (/proc/net/ipv6_route: destination, length, …, flags, device)."""
    try:
        lines = [line.split() for line in _ROUTES.read_text().splitlines()]
    except OSError:
        return False
    return any(
        words[1] == "00" and int(words[0], 16) == 0 and int(words[8], 16) & (_UP | _REJECT) == _UP
        for words in lines
        if len(words) > 9 and words[9] != "lo"
    )
