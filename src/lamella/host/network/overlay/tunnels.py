"""Tunnels to other hosts: what is asked is compared with the kernel, and the difference made. One change at a time."""

import asyncio
import errno
import logging
from collections.abc import Iterable
from ipaddress import IPv4Address

from msgspec.structs import replace

from lamella.host.network import rtnetlink, state
from lamella.host.network.driver import DesiredNetwork
from lamella.host.network.fabric import Fabric
from lamella.host.network.names import BRIDGE_PREFIX, OVERLAY_PREFIX
from lamella.host.network.namespace import Seat
from lamella.host.network.overlay import messages, plan, rules
from lamella.host.network.overlay.plan import Change, Entry, Overlay, Tunnel
from lamella.model.errors import Unavailable
from lamella.model.host import Capability, Underlay
from lamella.model.network import Neighbour

log = logging.getLogger("lamella.host.network")

_WHAT = "network.underlay"
_TOGETHER = 100


class Tunnels:
    """``neighbours`` are the ports on other hosts that are to be reached; *address* is the host's in the underlay, or nothing."""

    def __init__(self, fabric: Fabric, address: str) -> None:
        self.neighbours: list[Neighbour] = []
        self.underlay: Underlay | None = None
        self._fabric = fabric
        self._address = address
        self._table = f"{fabric.table}-x"
        self._finding = Capability(
            name=_WHAT, available=False, reason="networks end at this host: its daemon was not told --underlay ADDRESS"
        )
        self._host_text = ""
        # Whether it was seen that nothing of tunnels is in the layer, as long as none is asked for.
        self._bare = False
        # What was said last of what is refused: a refusal that stays is said once.
        self._refused = ""
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Look for the address of the underlay."""
        if self._address:
            self.underlay, why = await self._fabric.in_host("look for the underlay", self._look_for)
            self._finding = Capability(name=_WHAT, available=self.underlay is not None, value=self._address, reason=why)

    def _look_for(self, seat: Seat) -> tuple[Underlay | None, str]:
        try:
            index = messages.link_of(seat.route, str(IPv4Address(self._address)))
        except ValueError:
            return None, f"{self._address!r} is no IPv4 address"
        link = next((one for one in seat.route.links() if one.index == index), None)
        if link is None:
            return None, f"no link of this host has {self._address}"
        if not rtnetlink.knows_kind(seat.route, "vxlan"):
            return None, "this kernel has no VXLAN links (module vxlan)"
        return Underlay(address=self._address, mtu=link.mtu), f"link {link.name}, MTU {link.mtu}"

    def findings(self) -> list[Capability]:
        return [self._finding]

    async def apply(self, networks: Iterable[DesiredNetwork]) -> list[str]:
        """Have exactly the tunnels and entries that lead to the neighbours on *networks*; what was not so, in words.

        :raise Unavailable: when the kernel refuses; what can be is made.
        """
        async with self._lock:
            wanted = Overlay()
            if self.underlay is not None:
                wanted = plan.overlay(networks, self.neighbours, self.underlay.address)
            return await self._apply(wanted)

    async def look(self, networks: Iterable[DesiredNetwork]) -> list[str]:
        """As :meth:`apply`, now and then: what is refused is said in the log, once."""
        try:
            found = await self.apply(networks)
        except Unavailable as error:
            if str(error) != self._refused:
                log.error("%s", error)
            self._refused = str(error)
            return []
        self._refused = ""
        return found

    async def _apply(self, wanted: Overlay) -> list[str]:
        if not wanted.tunnels and (self._bare or not await self._fabric.in_layer("look for tunnels", self._anything)):
            if not self._bare:
                await self._guard_host(wanted)
            self._bare = True
            return []
        self._bare = False
        found = await self._guard_host(wanted)
        layer = await self._fabric.descriptor()
        # Rules first: nothing comes in by a link that they do not know of.
        await self._fabric.in_layer(
            "put the rules of tunnels in force", lambda seat: seat.nft.run(rules.frame(self._table))
        )
        seen = await self._fabric.in_layer("look at tunnels", self._seen)
        change = plan.change(seen, wanted)

        def clear(seat: Seat) -> None:
            seat.route.send(*(rtnetlink.delete_link(link) for link in change.remove.tunnels))
            if text := rules.elements(self._table, change.remove.far, change.add.far):
                seat.nft.run(text)

        await self._fabric.in_layer("change tunnels", clear)
        made = {link: tunnel for link, tunnel in change.add.tunnels.items() if _anew(link, change, seen)}
        refused = await self._fabric.in_host("make tunnels", lambda seat: _make(seat, made, layer))
        await self._fabric.in_layer("lead to other hosts", lambda seat: _lead(seat, change, wanted))
        if not wanted.tunnels:
            await self._fabric.change_layer([f"delete table bridge {self._table}\n"])
        if refused:
            raise Unavailable(
                "; ".join(refused.values()), hint="another VXLAN link of this host has that number: remove it"
            )
        return [*found, *change.words]

    def _anything(self, seat: Seat) -> bool:
        return ("bridge", self._table) in seat.nft.tables() or any(
            link.name.startswith(OVERLAY_PREFIX) for link in seat.route.links()
        )

    async def _guard_host(self, wanted: Overlay) -> list[str]:
        """The rules where tunnels end, whole: they are as many as networks."""
        text = rules.host_rules(self._table, wanted) if wanted.tunnels else ""
        name = ("ip", self._table)
        there = name in await self._fabric.in_host("look at the host's tables", lambda seat: seat.nft.tables())
        if there == bool(text) and (text == self._host_text or not text):
            self._host_text = text
            return []
        said = [] if there or self._host_text != text else [f"table ip {self._table} of the host"]
        await self._fabric.change_host([text or rules.no_host_rules(self._table)])
        self._host_text = text
        return said

    def _seen(self, seat: Seat) -> Overlay:
        found = messages.tunnels(seat.route, OVERLAY_PREFIX)
        forwards, bridged = messages.entries(seat.route, {one.index: link for link, one in found.items()})
        bridges = {link.index: link.name for link in seat.route.links() if link.name.startswith(BRIDGE_PREFIX)}
        far = state.entries(seat.nft, self._table, [rules.FAR])["far"]
        return Overlay(
            # One that is down is not in its bridge as it is to be, either.
            tunnels={link: one.tunnel if one.up else _unplugged(one.tunnel) for link, one in found.items()},
            forwards=forwards,
            bridged=bridged,
            answers=messages.answers(seat.route, bridges),
            far=frozenset(f'"{link}" . {mac} . {address}' for _, (link, mac, address), _ in far),
        )


def _unplugged(tunnel: Tunnel) -> Tunnel:
    return replace(tunnel, bridge="")


def _anew(link: str, change: Change, seen: Overlay) -> bool:
    return link not in seen.tunnels or link in change.remove.tunnels


def _make(seat: Seat, tunnels: dict[str, Tunnel], layer: int) -> dict[str, str]:
    """Make *tunnels* in the layer's namespace, from the host's: that is where their packets come out. What is refused, by link."""
    refused: dict[str, str] = {}
    for link, tunnel in tunnels.items():
        try:
            seat.route.send(messages.add_tunnel(link, tunnel, layer))
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            refused[link] = f"network {tunnel.network} reaches no other host: VXLAN {tunnel.vni} is in use on this one"
    return refused


def _lead(seat: Seat, change: Change, wanted: Overlay) -> None:
    """In the layer: tunnels into their bridges, and entries. A network whose bridge is gone waits until that is back."""
    index = {link.name: link.index for link in seat.route.links()}
    waiting = {link for link, tunnel in wanted.tunnels.items() if tunnel.bridge not in index}

    def ends(entries: Iterable[Entry]) -> list[tuple[int, Entry]]:
        return [(index[one.link], one) for one in sorted(entries) if one.link in index and one.link not in waiting]

    for link, tunnel in change.add.tunnels.items():
        if link in index and link not in waiting:
            # Quiet before it is up.
            seat.route.send(rtnetlink.set_link(link, up=False, master=index[tunnel.bridge], mtu=tunnel.mtu))
            seat.route.send(messages.set_quiet(link))
            seat.route.send(rtnetlink.set_link(link, alias=tunnel.network))
    removed, added = change.remove, change.add
    requests = [
        *(messages.answer(at, one, there=False) for at, one in ends(removed.answers)),
        *(messages.bridge(at, one, there=False) for at, one in ends(removed.bridged)),
        *(messages.forward(at, one, there=False) for at, one in ends(removed.forwards)),
        *(messages.forward(at, one, there=True) for at, one in ends(added.forwards)),
        *(messages.bridge(at, one, there=True) for at, one in ends(added.bridged)),
        *(messages.answer(at, one, there=True) for at, one in ends(added.answers)),
    ]
    # As many as the socket has room for answers to.
    for first in range(0, len(requests), _TOGETHER):
        seat.route.send(*requests[first : first + _TOGETHER])
