"""What a host's tunnels are to be, computed from values alone: who is on which other host is told by control, and nothing is learned.

A network with ports here and on other hosts has one VXLAN link (RFC 7348) in its bridge. For every port on another host there are

    forwards   the link's entry: frames for this MAC go to that host
    bridged    the bridge's entry: frames for this MAC go to the link
    answers    the bridge's neighbour: who asks for this address by ARP is answered here
    far        link . MAC . address: whatever else comes in by the link is dropped
"""

from collections.abc import Iterable
from ipaddress import IPv4Address

import msgspec

from lamella.host.network.driver import DesiredNetwork
from lamella.host.network.names import bridge_name, overlay_name
from lamella.host.network.plan import MAC
from lamella.model.network import Neighbour

# RFC 7348, section 5.
PORT = 4789


class Tunnel(msgspec.Struct, kw_only=True, frozen=True):
    """The link of one network, as the kernel describes it. ``quiet``: it learns nothing, and nothing is flooded to it."""

    network: str
    vni: int
    local: str
    mtu: int
    bridge: str
    port: int = PORT
    quiet: bool = True


class Entry(msgspec.Struct, kw_only=True, frozen=True, order=True):
    """*link* is a tunnel in ``forwards`` and ``bridged``, a bridge in ``answers``; ``to`` is the other host, or the address."""

    link: str
    mac: str
    to: str = ""


class Overlay(msgspec.Struct, kw_only=True, frozen=True):
    """Everything of one host; ``tunnels`` by the name of their links."""

    tunnels: dict[str, Tunnel] = {}
    forwards: frozenset[Entry] = frozenset()
    bridged: frozenset[Entry] = frozenset()
    answers: frozenset[Entry] = frozenset()
    far: frozenset[str] = frozenset()


class Change(msgspec.Struct, kw_only=True, frozen=True):
    """``remove`` is done before ``add``. Tunnels to remove are links; one that is to be another is removed and made."""

    remove: Overlay = Overlay()
    add: Overlay = Overlay()

    @property
    def words(self) -> list[str]:
        """What was not as it is to be."""
        found = [f"tunnel {link}" for link in sorted(self.remove.tunnels.keys() | self.add.tunnels.keys())]
        entries = len(_parts(self.add)) + len(_parts(self.remove))
        return [*found, *([f"{entries} entries of tunnels"] if entries else [])]


def overlay(networks: Iterable[DesiredNetwork], neighbours: Iterable[Neighbour], local: str) -> Overlay:
    """What leads from the host at *local* to *neighbours*, on those of *networks* that have a number.

    Neighbours that cannot be are passed over: at this host, on no network of ours, of no MAC or address.
    """
    by_id = {network.id: network for network in networks if network.vni}
    tunnels: dict[str, Tunnel] = {}
    forwards: set[Entry] = set()
    bridged: set[Entry] = set()
    answers: set[Entry] = set()
    far: set[str] = set()
    for one in {(each.network, each.mac): each for each in neighbours}.values():
        network, mac = by_id.get(one.network), one.mac.lower()
        address = _address(one.address.partition("/")[0])
        if network is None or one.host == local or MAC.fullmatch(mac) is None or not address or not _address(one.host):
            continue
        link, bridge = overlay_name(network.id), bridge_name(network.id)
        tunnels[link] = Tunnel(network=network.id, vni=network.vni, local=local, mtu=network.mtu, bridge=bridge)
        forwards.add(Entry(link=link, mac=mac, to=one.host))
        bridged.add(Entry(link=link, mac=mac))
        answers.add(Entry(link=bridge, mac=mac, to=address))
        far.add(f'"{link}" . {mac} . {address}')
    return Overlay(
        tunnels=tunnels,
        forwards=frozenset(forwards),
        bridged=frozenset(bridged),
        answers=frozenset(answers),
        far=frozenset(far),
    )


def change(seen: Overlay, wanted: Overlay) -> Change:
    """What leads from *seen* to *wanted*. With a link that goes, its entries go by themselves."""
    gone = {link for link, tunnel in seen.tunnels.items() if not _same(tunnel, wanted.tunnels.get(link))}
    made = {link: tunnel for link, tunnel in wanted.tunnels.items() if seen.tunnels.get(link) != tunnel}

    def left(entries: frozenset[Entry]) -> frozenset[Entry]:
        return frozenset(entry for entry in entries if entry.link not in gone)

    forwards, bridged = left(seen.forwards), left(seen.bridged)
    stale = {(entry.link, entry.to) for entry in wanted.answers}
    replaced = {(entry.link, entry.mac) for entry in wanted.forwards}
    return Change(
        remove=Overlay(
            tunnels={link: seen.tunnels[link] for link in gone},
            # The kernel replaces an entry of the same MAC, or of the same address, in one step.
            forwards=frozenset(one for one in forwards - wanted.forwards if (one.link, one.mac) not in replaced),
            bridged=bridged - wanted.bridged,
            answers=frozenset(one for one in seen.answers - wanted.answers if (one.link, one.to) not in stale),
            far=seen.far - wanted.far,
        ),
        add=Overlay(
            tunnels=made,
            forwards=wanted.forwards - forwards,
            bridged=wanted.bridged - bridged,
            answers=wanted.answers - seen.answers,
            far=wanted.far - seen.far,
        ),
    )


def _same(seen: Tunnel, wanted: Tunnel | None) -> bool:
    """Whether it can be made what is wanted without making it anew."""
    return wanted is not None and (seen.vni, seen.local, seen.port) == (wanted.vni, wanted.local, wanted.port)


def _parts(all: Overlay) -> list[Entry | str]:
    return [*all.forwards, *all.bridged, *all.answers, *all.far]


def _address(text: str) -> str:
    """*text* when it is an IPv4 address of one machine: it becomes part of the text of rules."""
    try:
        address = IPv4Address(text)
    except ValueError:
        return ""
    return "" if address.is_multicast or address.is_unspecified else str(address)
