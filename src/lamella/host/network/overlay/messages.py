"""The rtnetlink(7) messages of tunnels: VXLAN links, entries of forwarding databases, neighbours.

Layouts: linux/if_link.h, linux/if_bridge.h, linux/neighbour.h.
"""

import errno
import socket
import struct
from ipaddress import IPv4Address

import msgspec

from lamella.host.network.overlay.plan import Entry, Tunnel
from lamella.host.network.rtnetlink import Request, RouteSocket
from lamella.host.network.traffic.messages import attribute, attributes

_LINK = struct.Struct("=BxHiII")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ADDRESS = struct.Struct("=BBBBI")

_REQUEST, _REPLACE, _EXCLUSIVE, _CREATE = 0x1, 0x100, 0x200, 0x400
_NEW_LINK, _GET_LINK = 16, 18
_NEW_ADDRESS, _GET_ADDRESS = 20, 22
_NEW_NEIGHBOUR, _DELETE_NEIGHBOUR, _GET_NEIGHBOUR = 28, 29, 30

_IFLA_NAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_ALIAS, _IFLA_NET_NS_FD = 3, 4, 10, 18, 20, 28
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_VXLAN_ID, _VXLAN_LOCAL, _VXLAN_LEARNING, _VXLAN_PORT = 1, 4, 7, 15
_LEARNING, _UNICAST_FLOOD, _MULTICAST_FLOOD, _BROADCAST_FLOOD, _NEIGHBOUR_SUPPRESS = 8, 9, 27, 30, 32
_QUIET = {
    _LEARNING: b"\0",
    _UNICAST_FLOOD: b"\0",
    _MULTICAST_FLOOD: b"\0",
    _BROADCAST_FLOOD: b"\0",
    _NEIGHBOUR_SUPPRESS: b"\1",
}
_UP = 0x1

_DST, _LLADDR, _NDA_MASTER = 1, 2, 9
_SELF, _MASTER = 0x02, 0x04
_NOARP, _PERMANENT = 0x40, 0x80
_LOCAL = 2


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A tunnel as it is, with its index; it may be down."""

    index: int
    up: bool
    tunnel: Tunnel


def add_tunnel(name: str, tunnel: Tunnel, namespace: int) -> Request:
    """The link, down, in the namespace that the descriptor *namespace* holds. Its packets go out and come in where it is asked for:
    there its socket stays."""
    data = attribute(_VXLAN_ID, struct.pack("=I", tunnel.vni))
    data += attribute(_VXLAN_LOCAL, IPv4Address(tunnel.local).packed) + attribute(_VXLAN_LEARNING, b"\0")
    data += attribute(_VXLAN_PORT, struct.pack(">H", tunnel.port))
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attribute(_IFLA_NAME, name.encode() + b"\0")
    body += attribute(_IFLA_MTU, struct.pack("=I", tunnel.mtu))
    body += attribute(_IFLA_NET_NS_FD, struct.pack("=I", namespace))
    body += attribute(_IFLA_LINKINFO, attribute(_INFO_KIND, b"vxlan") + attribute(_INFO_DATA, data))
    return Request(_NEW_LINK, _REQUEST | _CREATE | _EXCLUSIVE, body)


def set_quiet(name: str) -> Request:
    """A port of a bridge that learns nothing, that nothing is flooded to, and for which ARP is answered."""
    data = b"".join(attribute(kind, value) for kind, value in _QUIET.items())
    info = attribute(_INFO_SLAVE_KIND, b"bridge") + attribute(_INFO_SLAVE_DATA, data)
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attribute(_IFLA_NAME, name.encode() + b"\0")
    return Request(_NEW_LINK, _REQUEST, body + attribute(_IFLA_LINKINFO, info))


def forward(index: int, entry: Entry, *, there: bool) -> Request:
    """Have the tunnel with that index send frames for a MAC to a host, or not."""
    body = _NEIGHBOUR.pack(socket.AF_BRIDGE, index, _PERMANENT, _SELF, 0) + _mac(entry)
    return _entry(body + attribute(_DST, IPv4Address(entry.to).packed), there)


def bridge(index: int, entry: Entry, *, there: bool) -> Request:
    """Have the bridge of the tunnel with that index lead frames for a MAC to it, or not."""
    return _entry(_NEIGHBOUR.pack(socket.AF_BRIDGE, index, _NOARP, _MASTER, 0) + _mac(entry), there)


def answer(index: int, entry: Entry, *, there: bool) -> Request:
    """Have the bridge with that index know who has an address, or not."""
    body = _NEIGHBOUR.pack(socket.AF_INET, index, _PERMANENT, 0, 0) + _mac(entry)
    return _entry(body + attribute(_DST, IPv4Address(entry.to).packed), there)


def _entry(body: bytes, there: bool) -> Request:
    if there:
        return Request(_NEW_NEIGHBOUR, _REQUEST | _CREATE | _REPLACE, body)
    return Request(_DELETE_NEIGHBOUR, _REQUEST, body, (errno.ENOENT, errno.ENODEV))


def _mac(entry: Entry) -> bytes:
    return attribute(_LLADDR, bytes.fromhex(entry.mac.replace(":", "")))


def tunnels(route: RouteSocket, prefix: str) -> dict[str, Found]:
    """The VXLAN links of the namespace whose names begin with *prefix*."""
    names: dict[int, str] = {}
    found: dict[str, tuple[int, bool, dict[int, bytes]]] = {}
    for kind, body in route.ask(_GET_LINK, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0), dump=True):
        if kind == _NEW_LINK:
            _, _, index, flags, _ = _LINK.unpack_from(body)
            parts = dict(attributes(body[_LINK.size :]))
            names[index] = parts.get(_IFLA_NAME, b"").rstrip(b"\0").decode(errors="replace")
            if names[index].startswith(prefix):
                found[names[index]] = index, bool(flags & _UP), parts
    return {name: Found(index=index, up=up, tunnel=_tunnel(parts, names)) for name, (index, up, parts) in found.items()}


def _tunnel(parts: dict[int, bytes], names: dict[int, str]) -> Tunnel:
    info = dict(attributes(parts.get(_IFLA_LINKINFO, b"")))
    data, slave = (dict(attributes(info.get(kind, b""))) for kind in (_INFO_DATA, _INFO_SLAVE_DATA))
    if info.get(_INFO_KIND, b"").rstrip(b"\0") != b"vxlan":
        data = {}
    quiet = all(slave.get(kind) == value for kind, value in _QUIET.items()) and data.get(_VXLAN_LEARNING) == b"\0"
    return Tunnel(
        network=parts.get(_IFLA_ALIAS, b"").rstrip(b"\0").decode(errors="replace"),
        vni=int.from_bytes(data.get(_VXLAN_ID, b""), "little"),
        local=str(IPv4Address(data.get(_VXLAN_LOCAL, bytes(4)))),
        mtu=int.from_bytes(parts.get(_IFLA_MTU, b""), "little"),
        bridge=names.get(int.from_bytes(parts.get(_IFLA_MASTER, b""), "little"), ""),
        port=int.from_bytes(data.get(_VXLAN_PORT, b""), "big"),
        quiet=quiet,
    )


def entries(route: RouteSocket, links: dict[int, str]) -> tuple[frozenset[Entry], frozenset[Entry]]:
    """Where the tunnels *links* (names by index) forward to, and what is led to them by their bridges."""
    forwards: set[Entry] = set()
    bridged: set[Entry] = set()
    for index, state, flags, parts in _neighbours(route, socket.AF_BRIDGE):
        if index not in links or len(parts.get(_LLADDR, b"")) != 6:
            continue
        mac = parts[_LLADDR].hex(":")
        if flags & _SELF:
            to = str(IPv4Address(parts[_DST])) if len(parts.get(_DST, b"")) == 4 else ""
            forwards.add(Entry(link=links[index], mac=mac, to=to))
        elif _NDA_MASTER in parts and not state & _PERMANENT:  # (its own MAC is the link's for good)
            bridged.add(Entry(link=links[index], mac=mac))
    return frozenset(forwards), frozenset(bridged)


def answers(route: RouteSocket, links: dict[int, str]) -> frozenset[Entry]:
    """The addresses that the bridges *links* (names by index) know for good."""
    return frozenset(
        Entry(link=links[index], mac=parts[_LLADDR].hex(":"), to=str(IPv4Address(parts[_DST])))
        for index, state, _, parts in _neighbours(route, socket.AF_INET)
        if index in links and state & _PERMANENT and len(parts.get(_LLADDR, b"")) == 6 and _DST in parts
    )


def _neighbours(route: RouteSocket, family: int) -> list[tuple[int, int, int, dict[int, bytes]]]:
    found: list[tuple[int, int, int, dict[int, bytes]]] = []
    for kind, body in route.ask(_GET_NEIGHBOUR, _NEIGHBOUR.pack(family, 0, 0, 0, 0), dump=True):
        if kind == _NEW_NEIGHBOUR:
            _, index, state, flags, _ = _NEIGHBOUR.unpack_from(body)
            found.append((index, state, flags, dict(attributes(body[_NEIGHBOUR.size :]))))
    return found


def link_of(route: RouteSocket, address: str) -> int | None:
    """The index of the link that has the IPv4 *address*."""
    wanted = IPv4Address(address).packed
    for kind, body in route.ask(_GET_ADDRESS, _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0), dump=True):
        if kind == _NEW_ADDRESS and dict(attributes(body[_ADDRESS.size :])).get(_LOCAL) == wanted:
            return int(_ADDRESS.unpack_from(body)[4])
    return None
