"""Flows that the kernel remembers: the translation of a UDP flow is decided by its first packet and outlives the rule.

Layouts: linux/netfilter/nfnetlink.h, linux/netfilter/nfnetlink_conntrack.h. Filtered deletion came with Linux 5.8.
"""

import os
import socket
import struct
from collections.abc import Iterable

_NETFILTER = 12
_DELETE = 1 << 8 | 2
_REQUEST_ACK = 0x1 | 0x4
_NESTED = 0x8000
_TUPLE_ORIGINAL, _FILTER = 1 | _NESTED, 25 | _NESTED
_TUPLE_PROTOCOL, _PROTOCOL_NUMBER, _DESTINATION_PORT = 2 | _NESTED, 1, 3
_BY_PROTOCOL_AND_DESTINATION = 1 << 3 | 1 << 5


def forget_udp(ports: Iterable[int]) -> None:
    """Forget the IPv4 flows of this thread's namespace that were sent to one of these UDP ports.

    :raise OSError: when the kernel refuses.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER) as channel:
        channel.settimeout(10)
        channel.bind((0, 0))
        for port in ports:
            channel.send(_request(port))
            code = -struct.unpack_from("=i", channel.recv(4096), 16)[0]
            if code != 0:
                raise OSError(code, os.strerror(code))


def _request(port: int) -> bytes:
    destination = _attribute(_PROTOCOL_NUMBER, bytes([socket.IPPROTO_UDP]))
    destination += _attribute(_DESTINATION_PORT, port.to_bytes(2, "big"))
    body = struct.pack("=BBH", socket.AF_INET, 0, 0)
    body += _attribute(_TUPLE_ORIGINAL, _attribute(_TUPLE_PROTOCOL, destination))
    body += _attribute(
        _FILTER,
        _attribute(1, struct.pack("=I", _BY_PROTOCOL_AND_DESTINATION)) + _attribute(2, struct.pack("=I", 0)),
    )
    return struct.pack("=IHHII", 16 + len(body), _DELETE, _REQUEST_ACK, 1, 0) + body


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)
