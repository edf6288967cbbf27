"""Links, addresses and routes: the dozen rtnetlink(7) messages that this wing sends, a batch a system call.

Why not pyroute2: attaching a port is on the path of a person who waits, and these messages take 0.3 ms where that library
takes 5 ms, without its 0.2 s of import. Layouts: linux/netlink.h, linux/rtnetlink.h, linux/if_link.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

import msgspec

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=8BI")
_ATTRIBUTE = struct.Struct("=HH")

_REQUEST, _ACK, _DUMP, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
_ECHO = 0x8
_ACK_TLVS = 0x200
_ERROR, _DONE = 2, 3
_NEW_LINK, _DELETE_LINK, _GET_LINK = 16, 17, 18
_NEW_ADDRESS, _DELETE_ADDRESS, _NEW_ROUTE, _DELETE_ROUTE, _GET_ROUTE = 20, 21, 24, 25, 26

_IFLA_ADDRESS, _IFLA_NAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 10, 18
_IFLA_ALIAS, _IFLA_STATS64, _IFLA_NET_NS_FD, _IFLA_EXT_MASK = 20, 23, 28, 29
_IFLA_TX_QUEUES = 31
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_BRIDGE_FORWARD_DELAY, _BRIDGE_STP, _BRIDGE_MCAST_SNOOPING, _BRIDGE_CALL_IPTABLES = 1, 5, 23, 36
_BRIDGE_CALL_IP6TABLES = 37
# linux/if_addr.h: no detection of duplicates, which nobody waits for where addresses are claims.
_NO_DETECTION = 0x02
_SKIP_STATS = 1 << 3
_UP = 0x1
_SOL_NETLINK, _EXT_ACK, _CAP_ACK = 270, 11, 10


class Request(msgspec.Struct, frozen=True):
    """One message; errors in *allowed* are as good as success."""

    kind: int
    flags: int
    body: bytes
    allowed: tuple[int, ...] = ()


class Link(msgspec.Struct, kw_only=True, frozen=True):
    """A link as the kernel describes it. Bytes are counted by the link itself: *received* came in through it."""

    index: int
    name: str
    alias: str
    kind: str
    master: int
    mtu: int
    up: bool
    mac: str = ""
    received: int = 0
    sent: int = 0


class Route(msgspec.Struct, frozen=True):
    """Where to, by the link with which index (0: by several or by none), and by which gateway there (``None``: straight)."""

    destination: IPv4Network
    link: int
    gateway: IPv4Address | None = None


class RouteSocket:
    """A netlink socket in the namespace of the thread that made it; used by one thread at a time."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._socket.settimeout(20)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def send(self, *requests: Request) -> None:
        """Send all in one batch; the kernel takes each in turn and goes on after one that fails.

        :raise OSError: the first failure, with the kernel's own words where it has any.
        """
        if not requests:
            return
        awaited: dict[int, Request] = {}
        batch = bytearray()
        for request in requests:
            self._sequence += 1
            awaited[self._sequence] = request
            batch += _message(request.kind, request.flags | _ACK, self._sequence, request.body)
        self._socket.send(batch)
        failure: OSError | None = None
        while awaited:
            for kind, flags, sequence, body in self._receive():
                request = awaited.pop(sequence, None)
                if request is None or kind != _ERROR:
                    continue
                error = _failure(flags, body)
                if error is not None and error.errno not in request.allowed:
                    failure = failure or error
        if failure is not None:
            raise failure

    def links(self) -> list[Link]:
        """Every link of the namespace, without counters."""
        mask = _attribute(_IFLA_EXT_MASK, struct.pack("=I", _SKIP_STATS))
        return [_link(body) for kind, body in self._dump(_GET_LINK, _link_header() + mask) if kind == _NEW_LINK]

    def link(self, name: str) -> Link | None:
        """The link of that name, with counters."""
        try:
            bodies = list(self._ask(_GET_LINK, _REQUEST | _ACK, _link_header() + _text(_IFLA_NAME, name)))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return next((_link(body) for kind, body in bodies if kind == _NEW_LINK), None)

    def routes(self) -> list[Route]:
        """The IPv4 routes of every table but for default ones, those to the host's own addresses included."""
        found: list[Route] = []
        for kind, body in self._dump(_GET_ROUTE, _ROUTE.pack(socket.AF_INET, *bytes(7), 0)):
            length = _ROUTE.unpack_from(body)[1]
            attributes = dict(_attributes(body, _ROUTE.size))
            if kind == _NEW_ROUTE and 1 in attributes:
                link = int.from_bytes(attributes.get(4, b""), "little")
                gateway = IPv4Address(attributes[5]) if 5 in attributes else None
                found.append(Route(IPv4Network((attributes[1], length)), link, gateway))
        return found

    def gateways(self) -> set[IPv4Address]:
        """By whom IPv4 routes lead, default ones included."""
        bodies = self._dump(_GET_ROUTE, _ROUTE.pack(socket.AF_INET, *bytes(7), 0))
        found = [dict(_attributes(body, _ROUTE.size)) for kind, body in bodies if kind == _NEW_ROUTE]
        return {IPv4Address(attributes[5]) for attributes in found if 5 in attributes}

    def ask(self, kind: int, body: bytes, *, dump: bool = False) -> list[tuple[int, bytes]]:
        """What the kernel answers to a message of another theme: kind and body of each. :raise OSError: when it refuses."""
        return list(self._ask(kind, _REQUEST | (_DUMP if dump else _ACK | _ECHO), body))

    def _dump(self, kind: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        return self._ask(kind, _REQUEST | _DUMP, body)

    def _ask(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        self._sequence += 1
        self._socket.send(_message(kind, flags, self._sequence, body))
        while True:
            for answer, answer_flags, sequence, content in self._receive():
                if sequence != self._sequence:
                    continue
                if answer == _DONE:
                    return
                if answer == _ERROR:
                    failure = _failure(answer_flags, content)
                    if failure is not None:
                        raise failure
                    return
                yield answer, content

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        data = self._socket.recv(1 << 18)
        offset = 0
        while offset < len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
            offset += length + 3 & ~3


def add_veth(
    name: str,
    *,
    peer: str,
    peer_namespace: int,
    mtu: int,
    master: int = 0,
    peer_mac: str = "",
) -> Request:
    """A pair: *name* here and up, *peer* still down in the namespace that the descriptor *peer_namespace* holds.

    (The kernel makes the peer first, and an end without the other cannot be up.)
    """
    far = _link_header() + _text(_IFLA_NAME, peer) + _number(_IFLA_MTU, mtu)
    far += _number(_IFLA_NET_NS_FD, peer_namespace)
    if peer_mac:
        far += _attribute(_IFLA_ADDRESS, _mac(peer_mac))
    near = _link_header(up=True) + _text(_IFLA_NAME, name) + _number(_IFLA_MTU, mtu)
    if master:
        near += _number(_IFLA_MASTER, master)
    return Request(_NEW_LINK, _REQUEST | _CREATE | _EXCLUSIVE, near + _info("veth", _attribute(_VETH_PEER, far)))


def add_ifb(name: str, *, mtu: int) -> Request:
    """A link for queues alone, up: what is led to it goes on from where it came. One that is there already is fine."""
    body = _link_header(up=True) + _text(_IFLA_NAME, name) + _number(_IFLA_MTU, mtu)
    body += _info("ifb", b"")
    return Request(_NEW_LINK, _REQUEST | _CREATE | _EXCLUSIVE, body, (errno.EEXIST,))


def knows_kind(route: RouteSocket, kind: str) -> bool:
    """Whether the kernel has links of that kind; no link is made: one with so many queues is refused."""
    body = _link_header() + _text(_IFLA_NAME, "lamella-none") + _number(_IFLA_TX_QUEUES, 1 << 20) + _info(kind, b"")
    try:
        route.send(Request(_NEW_LINK, _REQUEST | _CREATE | _EXCLUSIVE, body))
    except OSError as error:
        return error.errno != errno.EOPNOTSUPP
    return True


def add_bridge(name: str, *, mac: str, mtu: int) -> Request:
    """A bridge that forwards at once and floods multicast; one that is there already is fine."""
    data = _number(_BRIDGE_FORWARD_DELAY, 0) + _number(_BRIDGE_STP, 0)
    data += _attribute(_BRIDGE_MCAST_SNOOPING, b"\0")
    body = _link_header(up=True) + _text(_IFLA_NAME, name) + _attribute(_IFLA_ADDRESS, _mac(mac))
    body += _number(_IFLA_MTU, mtu) + _info("bridge", data)
    return Request(_NEW_LINK, _REQUEST | _CREATE | _EXCLUSIVE, body, (errno.EEXIST,))


def set_bridge_filtered(name: str, filtered: bool, *, six: bool = False) -> Request:
    """Whether what of IPv4, or of IPv6 (*six*), the bridge *name* forwards is shown to IP rules (br_netfilter); a bridge that is gone is
    fine."""
    attribute = _BRIDGE_CALL_IP6TABLES if six else _BRIDGE_CALL_IPTABLES
    body = _link_header() + _text(_IFLA_NAME, name)
    body += _info("bridge", _attribute(attribute, bytes([filtered])))
    return Request(_NEW_LINK, _REQUEST, body, (errno.ENODEV,))


def set_link(
    name: str,
    *,
    up: bool = True,
    master: int | None = None,
    mtu: int = 0,
    alias: str = "",
    mac: str = "",
    allowed: tuple[int, ...] = (),
) -> Request:
    """Change the link *name*; ``alias`` is what people and :meth:`RouteSocket.links` read of it."""
    body = _link_header(up=up) + _text(_IFLA_NAME, name)
    if master is not None:
        body += _number(_IFLA_MASTER, master)
    if mtu:
        body += _number(_IFLA_MTU, mtu)
    if alias:
        body += _attribute(_IFLA_ALIAS, alias.encode())
    if mac:
        body += _attribute(_IFLA_ADDRESS, _mac(mac))
    return Request(_NEW_LINK, _REQUEST, body, allowed)


def delete_link(name: str) -> Request:
    """Remove the link; gone already is fine. Takes the kernel 10 to 40 ms."""
    return Request(_DELETE_LINK, _REQUEST, _link_header() + _text(_IFLA_NAME, name), (errno.ENODEV,))


def add_address(index: int, address: IPv4Interface | IPv6Interface) -> Request:
    """Give the link an address with its prefix; there already is fine. One of IPv6 may be used at once."""
    packed = address.ip.packed
    if isinstance(address, IPv6Interface):
        body = _ADDRESS.pack(socket.AF_INET6, address.network.prefixlen, _NO_DETECTION, 0, index)
        body += _attribute(2, packed) + _attribute(1, packed)
        return Request(_NEW_ADDRESS, _REQUEST | _CREATE | _EXCLUSIVE, body, (errno.EEXIST,))
    body = _ADDRESS.pack(socket.AF_INET, address.network.prefixlen, 0, 0, index)
    body += _attribute(2, packed) + _attribute(1, packed)
    body += _attribute(4, address.network.broadcast_address.packed)
    return Request(_NEW_ADDRESS, _REQUEST | _CREATE | _EXCLUSIVE, body, (errno.EEXIST,))


def delete_address(index: int, address: IPv4Interface) -> Request:
    """Take an address from the link; gone already is fine."""
    body = _ADDRESS.pack(socket.AF_INET, address.network.prefixlen, 0, 0, index) + _attribute(2, address.ip.packed)
    return Request(_DELETE_ADDRESS, _REQUEST, body, (errno.EADDRNOTAVAIL,))


def add_default_route(gateway: IPv4Address | IPv6Address, index: int) -> Request:
    """The default route by *gateway*; there already is fine."""
    if isinstance(gateway, IPv6Address):
        return add_route(IPv6Network("::/0"), index, gateway)
    return add_route(IPv4Network("0.0.0.0/0"), index, gateway)


def add_route(destination: IPv4Network | IPv6Network, index: int, gateway: IPv4Address | IPv6Address) -> Request:
    """The route to *destination* by *gateway*, on the link with that index; there already is fine."""
    return Request(_NEW_ROUTE, _REQUEST | _CREATE | _EXCLUSIVE, _route(destination, index, gateway), (errno.EEXIST,))


def delete_route(destination: IPv4Network, index: int, gateway: IPv4Address) -> Request:
    """Remove what :func:`add_route` made; gone already is fine."""
    return Request(_DELETE_ROUTE, _REQUEST, _route(destination, index, gateway), (errno.ESRCH,))


def _route(destination: IPv4Network | IPv6Network, index: int, gateway: IPv4Address | IPv6Address) -> bytes:
    main, boot, universe, unicast = 254, 3, 0, 1
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    body = _ROUTE.pack(family, destination.prefixlen, 0, 0, main, boot, universe, unicast, 0)
    if destination.prefixlen:
        body += _attribute(1, destination.network_address.packed)
    return body + _attribute(5, gateway.packed) + _number(4, index)


def _link_header(*, up: bool = False) -> bytes:
    return _LINK.pack(socket.AF_UNSPEC, 0, 0, _UP if up else 0, _UP if up else 0)


def _info(kind: str, data: bytes) -> bytes:
    return _attribute(_IFLA_LINKINFO, _attribute(_INFO_KIND, kind.encode()) + _attribute(_INFO_DATA, data))


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _attribute(kind: int, data: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(data)
    return _ATTRIBUTE.pack(length, kind) + data + bytes(-length % 4)


def _attributes(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[offset + _ATTRIBUTE.size : offset + length]
        offset += length + 3 & ~3


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    length = _HEADER.size + len(body)
    return _HEADER.pack(length, kind, flags, sequence, 0) + body + bytes(-length % 4)


def _failure(flags: int, body: bytes) -> OSError | None:
    code = -struct.unpack_from("=i", body)[0]
    if code == 0:
        return None
    # With NETLINK_CAP_ACK only the header of our request comes back before the attributes.
    said = dict(_attributes(body, 4 + _HEADER.size)).get(1, b"") if flags & _ACK_TLVS else b""
    words = said.rstrip(b"\0").decode(errors="replace")
    return OSError(code, f"{os.strerror(code)} ({words})" if words else os.strerror(code))


def _link(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    attributes = dict(_attributes(body, _LINK.size))
    info = dict(_attributes(attributes.get(_IFLA_LINKINFO, b""), 0))
    counters = attributes.get(_IFLA_STATS64, bytes(32))
    _, _, received, sent = struct.unpack_from("=4Q", counters)
    return Link(
        index=index,
        name=attributes.get(_IFLA_NAME, b"").rstrip(b"\0").decode(errors="replace"),
        alias=attributes.get(_IFLA_ALIAS, b"").rstrip(b"\0").decode(errors="replace"),
        kind=info.get(_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace"),
        master=int.from_bytes(attributes.get(_IFLA_MASTER, b""), "little"),
        mtu=int.from_bytes(attributes.get(_IFLA_MTU, b""), "little"),
        up=bool(flags & _UP),
        mac=attributes.get(_IFLA_ADDRESS, b"").hex(":"),
        received=received,
        sent=sent,
    )
