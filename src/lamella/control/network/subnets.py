"""Which subnets a network may have, and which is free. Pure."""

from collections.abc import Iterable
from ipaddress import IPv4Network

from lamella.model.errors import Conflict, Invalid, NoRoom

# Where subnets are chosen from (RFC 1918), 256 addresses each; the network ``default`` has 10.83.0.0/16.
CHOSEN_FROM = IPv4Network("10.84.0.0/14")
CHOSEN_LENGTH = 24
LARGEST, SMALLEST = 8, 29
# No instance can have an address of these: RFC 1122 (this host, loopback), 3927, 5771, 1112, and 6598 and 2544, where uplinks lie.
KEPT = {
    "0.0.0.0/8": "means this host",
    "127.0.0.0/8": "is loopback",
    "169.254.0.0/16": "is link-local",
    "100.64.0.0/10": "is what uplinks are made of",
    "198.18.0.0/15": "is what uplinks are made of",
    "224.0.0.0/4": "is multicast",
    "240.0.0.0/4": "is reserved",
}
_FIELD = "subnet"


def parse(text: str) -> IPv4Network:
    """The subnet that *text* names.

    :raise Invalid: when it names none, or one that no network can have; the hint says what to write.
    """
    try:
        subnet = IPv4Network(text, strict=False)
    except ValueError:
        raise Invalid(f"{text!r} is no subnet", hint="write it like 10.10.0.0/24", field=_FIELD) from None
    if "/" not in text or str(subnet) != text:
        hint = (
            f"did you mean {subnet}?" if "/" in text else f"write how long its prefix is: {subnet.network_address}/24"
        )
        raise Invalid(f"{text!r} is an address, no subnet", hint=hint, field=_FIELD)
    if not LARGEST <= subnet.prefixlen <= SMALLEST:
        raise Invalid(
            f"a subnet has a prefix of {LARGEST} to {SMALLEST} bits, {text} has {subnet.prefixlen}",
            hint=f"{subnet.network_address}/24 has room for 253 instances",
            field=_FIELD,
        )
    for kept, why in KEPT.items():
        if subnet.overlaps(IPv4Network(kept)):
            raise Invalid(f"subnet {text} overlaps {kept}, which {why}", hint="10.10.0.0/24 is fine", field=_FIELD)
    return subnet


def check_free(subnet: IPv4Network, taken: Iterable[tuple[str, IPv4Network]]) -> None:
    """*taken* are what has a subnet, in words, and the subnet. :raise Conflict: when one of them overlaps *subnet*."""
    for owner, other in taken:
        if subnet.overlaps(other):
            raise Conflict(
                f"subnet {subnet} overlaps {other}, which {owner} has",
                hint="choose another one, or leave --subnet out: a free one is chosen",
                field=_FIELD,
            )


def choose(taken: Iterable[IPv4Network]) -> IPv4Network:
    """The first free subnet of ``CHOSEN_FROM``. :raise NoRoom: when there is none."""
    occupied = list(taken)
    for subnet in CHOSEN_FROM.subnets(new_prefix=CHOSEN_LENGTH):
        if not any(subnet.overlaps(other) for other in occupied):
            return subnet
    raise NoRoom(f"no subnet of {CHOSEN_FROM} is free", hint="say which one: --subnet 192.168.7.0/24", field=_FIELD)
