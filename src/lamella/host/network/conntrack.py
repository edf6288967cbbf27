"""Flows that the kernel remembers: the translation of a UDP flow is decided by its first packet and outlives the rule, and so does what a
firewall once let pass.

Layouts: linux/netfilter/nfnetlink.h, linux/netfilter/nfnetlink_conntrack.h. Filtered deletion came with Linux 5.8.
"""

import os
import socket
import struct
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

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
    """An IPv4 flow by its first packet, which went to ``port`` of ``destination``. ``answers`` and ``answering_port`` are who answers: not
    the destination's when that was translated. ``known_as`` is whom they answer: not the source when that was. ``original`` is the kernel's
    own description of it, in its ``zone``."""

    source: IPv4Address
    destination: IPv4Address
    protocol: int
    answers: IPv4Address
    known_as: IPv4Address | None = None
    answering_port: int = 0
    port: int = 0
    type: int = 0
    original: bytes = b""
    zone: int = 0


def flows() -> list[Flow]:
    """The IPv4 flows of this thread's namespace. :raise OSError: when the kernel refuses."""
    found: list[Flow] = []
    with _channel() as channel:
        channel.send(_message(_GET, _REQUEST_DUMP, b""))
        while True:
            for kind, body in _messages(channel.recv(1 << 18)):
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    raise OSError(code, os.strerror(code))
                if (flow := _flow(body)) is not None:
                    found.append(flow)


def forget(flows: Iterable[Flow]) -> None:
    """Forget these; one that has ended meanwhile is fine. :raise OSError: when the kernel refuses."""
    with _channel() as channel:
        for flow in flows:
            zone = _attribute(_ZONE, flow.zone.to_bytes(2, "big"))
            channel.send(_message(_DELETE, _REQUEST_ACK, _attribute(_TUPLE_ORIGINAL, flow.original) + zone))
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


def _message(kind: int, flags: int, body: bytes) -> bytes:
    body = struct.pack("=BBH", socket.AF_INET, 0, 0) + body
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
    """Of one message of a dump; ``None`` when it is of no IPv4 flow."""
    if len(body) < 4 or body[0] != socket.AF_INET:
        return None
    attributes = _attributes(body[4:])
    original, reply = _attributes(attributes.get(1, b"")), _attributes(attributes.get(2, b""))
    there, back = _attributes(original.get(1, b"")), _attributes(reply.get(1, b""))
    protocol, answering = _attributes(original.get(2, b"")), _attributes(reply.get(2, b""))
    if not {1, 2} <= there.keys() or 1 not in back or 1 not in protocol:
        return None
    return Flow(
        source=IPv4Address(there[1]),
        destination=IPv4Address(there[2]),
        protocol=protocol[1][0],
        answers=IPv4Address(back[1]),
        known_as=IPv4Address(back[2]) if 2 in back else None,
        answering_port=int.from_bytes(answering.get(2, b""), "big"),
        port=int.from_bytes(protocol.get(3, b""), "big"),
        type=int.from_bytes(protocol.get(5, b""), "big"),
        original=attributes[1],
        zone=int.from_bytes(attributes.get(_ZONE, b""), "big"),
    )
