"""The addresses of balancers on the bridges of their networks: single ones (``/32``). Layout: linux/if_addr.h."""

import errno
import socket
import struct
from ipaddress import IPv4Address

from lamella.host.network.rtnetlink import Request

_ADD, _DELETE = 20, 21
_REQUEST, _EXCLUSIVE, _CREATE = 0x1, 0x200, 0x400
_ADDRESS, _LOCAL = 1, 2


def add(link: int, address: IPv4Address) -> Request:
    """Give it to the link with that index; there already is fine."""
    return Request(_ADD, _REQUEST | _CREATE | _EXCLUSIVE, _body(link, address), (errno.EEXIST,))


def remove(link: int, address: IPv4Address) -> Request:
    """Gone already is fine."""
    return Request(_DELETE, _REQUEST, _body(link, address), (errno.EADDRNOTAVAIL, errno.ENODEV))


def _body(link: int, address: IPv4Address) -> bytes:
    packed = address.packed
    attributes = b"".join(struct.pack("=HH", 4 + len(packed), kind) + packed for kind in (_LOCAL, _ADDRESS))
    return struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, link) + attributes
