"""Which subnets a network may have, of IPv4 and of IPv6, and which is free. Pure."""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_interface
from typing import TypeVar

import msgspec

from lamella.model.errors import Conflict, Invalid, NoRoom

Net = TypeVar("Net", IPv4Network, IPv6Network)

# Where subnets are chosen from (RFC 1918), 256 addresses each; the network ``default`` has 10.83.0.0/16.
CHOSEN_FROM = IPv4Network("10.84.0.0/14")
CHOSEN_LENGTH = 24


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What a family of addresses lets a network have: prefixes of ``largest`` to ``smallest`` bits, and nothing of what is ``kept``.
    ``length`` is a usual prefix, ``example`` one that is free of all that, ``field`` the request's that names it."""

    noun: str
    largest: int
    smallest: int
    length: int
    example: str
    field: str
    kept: Mapping[str, str]


V4 = Bounds(
    noun="subnet",
    largest=8,
    smallest=29,
    length=24,
    example="10.10.0.0/24",
    field="subnet",
    # RFC 1122 (this host, loopback), 3927, 5771, 1112, and 6598 and 2544, where uplinks lie.
    kept={
        "0.0.0.0/8": "means this host",
        "127.0.0.0/8": "is loopback",
        "169.254.0.0/16": "is link-local",
        "100.64.0.0/10": "is what uplinks are made of",
        "198.18.0.0/15": "is what uplinks are made of",
        "224.0.0.0/4": "is multicast",
        "240.0.0.0/4": "is reserved",
    },
)
V6 = Bounds(
    noun="subnet of IPv6",
    largest=64,
    smallest=112,
    length=64,
    example="fd10::/64",
    field="subnet6",
    # RFC 4291, 6052 (translation), 3879; the last is what uplinks are made of.
    kept={
        "::/8": "is reserved",
        "64:ff9b::/96": "means addresses of IPv4",
        "fe80::/10": "is link-local",
        "fec0::/10": "is no more in use",
        "ff00::/8": "is multicast",
        "fd6c:616d::/32": "is what uplinks are made of",
    },
)


def bounds(family: type[IPv4Network] | type[IPv6Network]) -> Bounds:
    return V4 if family is IPv4Network else V6


def parse(text: str, family: type[Net]) -> Net:
    """The subnet of that family that *text* names.

    :raise Invalid: when it names none, or one that no network can have; the hint says what to write.
    """
    may = bounds(family)
    try:
        subnet = family(text, strict=False)
    except ValueError:
        raise Invalid(f"{text!r} is no {may.noun}", hint=f"write it like {may.example}", field=may.field) from None
    if not _is_written(text, subnet):
        prefix = f"{subnet.network_address}/{may.length}"
        hint = f"did you mean {subnet}?" if "/" in text else f"write how long its prefix is: {prefix}"
        raise Invalid(f"{text!r} is an address, no subnet", hint=hint, field=may.field)
    if not may.largest <= subnet.prefixlen <= may.smallest:
        raise Invalid(
            f"a {may.noun} has a prefix of {may.largest} to {may.smallest} bits, {text} has {subnet.prefixlen}",
            hint=f"{subnet.network_address}/{may.length} has room",
            field=may.field,
        )
    for kept, why in may.kept.items():
        if subnet.overlaps(family(kept)):
            raise Invalid(f"subnet {text} overlaps {kept}, which {why}", hint=f"{may.example} is fine", field=may.field)
    return subnet


def check_free(subnet: Net, taken: Iterable[tuple[str, Net]]) -> None:
    """*taken* are what has a subnet, in words, and the subnet. :raise Conflict: when one of them overlaps *subnet*."""
    for owner, other in taken:
        if subnet.overlaps(other):
            chosen = ", or leave --subnet out: a free one is chosen" if subnet.version == 4 else ""
            raise Conflict(
                f"subnet {subnet} overlaps {other}, which {owner} has",
                hint=f"choose another one{chosen}",
                field=bounds(type(subnet)).field,
            )


def choose(taken: Iterable[IPv4Network]) -> IPv4Network:
    """The first free subnet of ``CHOSEN_FROM``. :raise NoRoom: when there is none."""
    occupied = list(taken)
    for subnet in CHOSEN_FROM.subnets(new_prefix=CHOSEN_LENGTH):
        if not any(subnet.overlaps(other) for other in occupied):
            return subnet
    raise NoRoom(f"no subnet of {CHOSEN_FROM} is free", hint="say which one: --subnet 192.168.7.0/24", field=V4.field)


def _is_written(text: str, subnet: IPv4Network | IPv6Network) -> bool:
    """Whether *text* is *subnet*, and not an address of it. IPv6 may be written in more than one way."""
    if subnet.version == 4 or "/" not in text:
        return text == str(subnet)
    return ip_interface(text).ip == subnet.network_address
