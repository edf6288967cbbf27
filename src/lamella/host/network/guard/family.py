"""What is different between IPv4 and IPv6 where firewalls are rules: how nft calls things, and which addresses a port has."""

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address

import msgspec

from lamella.host.network import plan
from lamella.host.network.driver import DesiredPort
from lamella.host.network.six import plan as six
from lamella.model.firewall import icmp6_types

Address = IPv4Address | IPv6Address


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """``name`` is nft's, ``kind`` that of its addresses, ``suffix`` what the tables are called behind the mark. ``always`` is the text of a
    match for packets that no firewall stops: without its neighbours nobody speaks IPv6."""

    version: int
    name: str
    kind: str
    suffix: str
    icmp: str
    protocol: str
    always: str
    addresses: Callable[[DesiredPort], list[Address]]
    types: Callable[[Iterable[int]], list[int]]


def _four(port: DesiredPort) -> list[Address]:
    return [plan.address_of(port)]


def _six(port: DesiredPort) -> list[Address]:
    return [*six.addresses_of(port)]


IPV4 = Family(
    version=4,
    name="ip",
    kind="ipv4_addr",
    suffix="g",
    icmp="icmp",
    protocol="icmp",
    always="",
    addresses=_four,
    types=list,
)
IPV6 = Family(
    version=6,
    name="ip6",
    kind="ipv6_addr",
    suffix="g6",
    icmp="icmpv6",
    protocol="ipv6-icmp",
    always="icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ",
    addresses=_six,
    types=icmp6_types,
)
