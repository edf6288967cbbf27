"""Flows that the kernel remembers: the translation of a UDP flow is decided by its first packet and outlives the rule, and so does what a
firewall once let pass.

Layouts: linux/netfilter/nfnetlink.h, linux/netfilter/nfnetlink_conntrack.h. Filtered deletion came with Linux 5.8.
"""

import os
import socket
import struct
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

_NETFILTER = 12
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_REQUEST_ACK, _REQUEST_DUMP = 0x1 | 0x4, 0x1 | 0x300
_ERROR, _DONE = 2, 3
_NESTED = 0x8000
_TUPLE_ORIGINAL, _FILTER = 1 | _NESTED, 25 | _NESTED
_TUPLE_ADDRESSES, _TUPLE_PROTOCOL, _PROTOCOL_NUMBER, _DESTINATION_PORT = 1 | _NESTED, 2 | _NESTED, 1, 3
_ZONE = 18
_BY_PROTOCOL_AND_DESTINATION = 1 << 3 | 1 << 5


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """A flow by its first packet, which went to ``port`` of ``destination``. ``answers`` and ``answering_port`` are who answers: not
    the destination's when that was translated. ``known_as`` is whom they answer: not the source when that was. ``original`` is the kernel's
    own description of it, in its ``zone``."""

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    protocol: int
    answers: IPv4Address | IPv6Address
    known_as: IPv4Address | IPv6Address | None = None
    answering_port: int = 0
    port: int = 0
    type: int = 0
    original: bytes = b""
    zone: int = 0


def flows(family: int = socket.AF_INET) -> list[Flow]:
    """The flows of this thread's namespace, IPv4's or those of ``AF_INET6``. :raise OSError: when the kernel refuses."""
    found: list[Flow] = []
    with _channel() as channel:
        channel.send(_message(_GET, _REQUEST_DUMP, b"", family))
        while True:
            for kind, body in _messages(channel.recv(1 << 18)):
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    raise OSError(code, os.strerror(code))
                if body[:1] == bytes([family]) and (flow := _flow(body)) is not None:
                    found.append(flow)


def forget(flows: Iterable[Flow]) -> None:
    """Forget these; one that has ended meanwhile is fine. :raise OSError: when the kernel refuses."""
    with _channel() as channel:
        for flow in flows:
            zone = _attribute(_ZONE, flow.zone.to_bytes(2, "big"))
            family = socket.AF_INET if flow.source.version == 4 else socket.AF_INET6
            channel.send(_message(_DELETE, _REQUEST_ACK, _attribute(_TUPLE_ORIGINAL, flow.original) + zone, family))
            _acknowledged(channel, allowed=(2,))


def forget_udp(ports: Iterable[int]) -> None:
    """Forget the IPv4 flows of this thread's namespace that were sent to one of these UDP ports.

    :raise OSError: when the kernel refuses.
    """
    with _channel() as channel:
        for port in ports:
            channel.send(_request(port))
            _acknowledged(channel)


@contextmanager
def _channel() -> Generator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER) as channel:
        channel.settimeout(10)
        channel.bind((0, 0))
        yield channel


def _acknowledged(channel: socket.socket, allowed: tuple[int, ...] = ()) -> None:
    code = -struct.unpack_from("=i", channel.recv(4096), 16)[0]
    if code != 0 and code not in allowed:
        raise OSError(code, os.strerror(code))


def _request(port: int) -> bytes:
    destination = _attribute(_PROTOCOL_NUMBER, bytes([socket.IPPROTO_UDP]))
    destination += _attribute(_DESTINATION_PORT, port.to_bytes(2, "big"))
    body = _attribute(_TUPLE_ORIGINAL, _attribute(_TUPLE_PROTOCOL, destination))
    body += _attribute(
        _FILTER,
        _attribute(1, struct.pack("=I", _BY_PROTOCOL_AND_DESTINATION)) + _attribute(2, struct.pack("=I", 0)),
    )
    return _message(_DELETE, _REQUEST_ACK, body)


def _message(kind: int, flags: int, body: bytes, family: int = socket.AF_INET) -> bytes:
    body = struct.pack("=BBH", family, 0, 0) + body
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        yield kind, data[16:length]
        data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def _flow(body: bytes) -> Flow | None:
    """Of one message of a dump; ``None`` when it is of no IP flow."""
    if len(body) < 4 or body[0] not in (socket.AF_INET, socket.AF_INET6):
        return None
    # What addresses and the type of a message are called.
    source, destination, type = (1, 2, 5) if body[0] == socket.AF_INET else (3, 4, 8)
    attributes = _attributes(body[4:])
    original, reply = _attributes(attributes.get(1, b"")), _attributes(attributes.get(2, b""))
    there, back = _attributes(original.get(1, b"")), _attributes(reply.get(1, b""))
    protocol, answering = _attributes(original.get(2, b"")), _attributes(reply.get(2, b""))
    if not {source, destination} <= there.keys() or source not in back or 1 not in protocol:
        return None
    return Flow(
        source=ip_address(there[source]),
        destination=ip_address(there[destination]),
        protocol=protocol[1][0],
        answers=ip_address(back[source]),
        known_as=ip_address(back[destination]) if destination in back else None,
        answering_port=int.from_bytes(answering.get(2, b""), "big"),
        port=int.from_bytes(protocol.get(3, b""), "big"),
        type=int.from_bytes(protocol.get(type, b""), "big"),
        original=attributes[1],
        zone=int.from_bytes(attributes.get(_ZONE, b""), "big"),
    )
