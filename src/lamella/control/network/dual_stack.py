"""IPv6 beside IPv4: which prefixes a network may have, and which address of it a port gets. Pure.

Whoever has 10.10.0.7 of 10.10.0.0/24 has fd10::7 of fd10::/64, unless somebody asked for that by name: then the next free one.
"""

from collections.abc import Container, Iterable
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, IPv6Network

from lamella.model.errors import Conflict, Invalid, NoRoom
from lamella.model.instance import Isolation, Nic
from lamella.model.network import Network, Port
from lamella.model.network_bodies import NetworkCreate

LARGEST, SMALLEST = 64, 112
# No instance can have an address of these: RFC 4291, 6052 (translation), 3879; the last is what uplinks are made of.
KEPT = {
    "::/8": "is reserved",
    "64:ff9b::/96": "means addresses of IPv4",
    "fe80::/10": "is link-local",
    "fec0::/10": "is no more in use",
    "ff00::/8": "is multicast",
    "fd6c:616d::/32": "is what uplinks are made of",
}
_FIELD = "subnet6"
# Their guests do not configure IPv6: an address would be told to others and never answer.
WITHOUT = (Isolation.MICROVM, Isolation.UNIKERNEL, Isolation.WASM)


def parse(text: str) -> IPv6Network:
    """The prefix that *text* names.

    :raise Invalid: when it names none, or one that no network can have; the hint says what to write.
    """
    try:
        subnet = IPv6Network(text, strict=False)
    except ValueError:
        raise Invalid(f"{text!r} is no subnet of IPv6", hint="write it like fd10::/64", field=_FIELD) from None
    if "/" not in text or subnet.network_address != IPv6Address(text.partition("/")[0]):
        hint = f"did you mean {subnet}?" if "/" in text else f"write how long its prefix is: {text}/64"
        raise Invalid(f"{text!r} is an address, no subnet", hint=hint, field=_FIELD)
    if not LARGEST <= subnet.prefixlen <= SMALLEST:
        raise Invalid(
            f"a subnet of IPv6 has a prefix of {LARGEST} to {SMALLEST} bits, {text} has {subnet.prefixlen}",
            hint=f"{subnet.network_address}/64 is fine",
            field=_FIELD,
        )
    for kept, why in KEPT.items():
        if subnet.overlaps(IPv6Network(kept)):
            raise Invalid(f"subnet {text} overlaps {kept}, which {why}", hint="fd10::/64 is fine", field=_FIELD)
    return subnet


def check_alone(body: NetworkCreate) -> None:
    """:raise Invalid: when a network is to have IPv6 and what carries IPv4 alone."""
    if body.subnet6 and (body.router or body.external):
        what = "routers carry" if body.router else "floating addresses are of"
        raise Invalid(f"{what} IPv4 alone", hint="leave the subnet of IPv6 out", field=_FIELD)


def check_free(subnet: IPv6Network, taken: Iterable[tuple[str, str]]) -> None:
    """*taken* are what has a prefix, in words, and the prefix. :raise Conflict: when one of them overlaps *subnet*."""
    for owner, other in taken:
        if subnet.overlaps(IPv6Network(other)):
            raise Conflict(
                f"subnet {subnet} overlaps {other}, which {owner} has", hint="choose another one", field=_FIELD
            )


def gateway_of(subnet: IPv6Network) -> IPv6Address:
    """The first address of *subnet* that a host may have belongs to the layer (the one before is for any router: RFC 4291, 2.6.1)."""
    return subnet.network_address + 1


def canonical(text: str) -> str:
    """*text* as claims write it; what is no address stays: admission says so."""
    try:
        return str(IPv6Address(text))
    except ValueError:
        return text


def address6(
    network: Network, nic: Nic, address: str, taken: Container[str], isolation: Isolation = Isolation.CONTAINER
) -> str:
    """The address of a port that has *address* of IPv4 on *network*, with its prefix length; empty where there is no IPv6, or the
    *isolation* of its instance has none.

    :raise Invalid: when the one that *nic* asks for is no instance's. :raise Conflict: when it is taken. :raise NoRoom: when all are.
    """
    if not network.spec.subnet6:
        if nic.address6:
            raise Invalid(
                f"network {network.name} has no IPv6, so no {nic.address6}",
                hint="lamella network create NAME --subnet fd10::/64",
                field="spec.nics.address6",
            )
        return ""
    if isolation in WITHOUT:
        if nic.address6:
            raise Invalid(
                f"a {isolation} has IPv4 alone, so no {nic.address6}",
                hint="containers and full machines have IPv6",
                field="spec.nics.address6",
            )
        return ""
    subnet = IPv6Network(network.spec.subnet6)
    if nic.address6:
        return str(static_address(subnet, nic.address6, taken))
    four = IPv4Interface(address)
    return str(free_address(subnet, taken, near=int(four.ip) - int(four.network.network_address)))


def free_address(subnet: IPv6Network, taken: Container[str], *, near: int) -> IPv6Interface:
    """The first free address at or after the number *near* in *subnet*, going round.

    :raise NoRoom: when a hundred thousand in a row are taken.
    """
    first, count = 2, subnet.num_addresses - 2
    for step in range(min(count, 100_000)):
        address = subnet.network_address + first + (near - first + step) % count
        if str(address) not in taken:
            return IPv6Interface((address, subnet.prefixlen))
    raise NoRoom(f"no address of {subnet} is free", hint="remove instances, or use a network with a larger subnet")


def static_address(subnet: IPv6Network, wanted: str, taken: Container[str]) -> IPv6Interface:
    """The address that somebody asked for by name.

    :raise Invalid: when it is none that an instance on *subnet* can have. :raise Conflict: when it is taken.
    """
    field = "spec.nics.address6"
    try:
        address = IPv6Address(wanted)
    except ValueError:
        raise Invalid(f"{wanted!r} is no IPv6 address", hint=f"write one of {subnet}", field=field) from None
    if address not in subnet:
        raise Invalid(
            f"address {address} is not in subnet {subnet} of its network", hint="choose one of it", field=field
        )
    if address == subnet.network_address:
        raise Invalid(f"{address} is any router's of {subnet}", hint="choose another one", field=field)
    if address == gateway_of(subnet):
        raise Conflict(f"{address} is the gateway of {subnet}", hint="choose another one", field=field)
    if str(address) in taken:
        raise Conflict(f"address {address} is taken", hint="lamella port ls tells by whom", field=field)
    return IPv6Interface((address, subnet.prefixlen))


def address6_of(port: Port) -> IPv6Address | None:
    """Without its prefix; ``None`` where its network has no IPv6."""
    return IPv6Interface(port.spec.address6).ip if port.spec.address6 else None


def way6(
    network: Network, all: Iterable[Network], destination: IPv6Address, receiver: Port | None
) -> tuple[bool, str, Port | None]:
    """Whether a packet on *network* comes to *destination*, in words (which go on with the receiver's name where there is one).

    *receiver* is who has that address, if anybody; *all* are the layer's networks.
    """
    if destination in IPv6Network(network.spec.subnet6):
        if receiver is None or receiver.spec.network != network.id:
            return False, f"nobody has {destination} on network {network.name}", None
        return True, f"the switch of network {network.name} carries it to", receiver
    if any(other.spec.subnet6 and destination in IPv6Network(other.spec.subnet6) for other in all):
        return False, "networks of IPv6 are not joined: no router carries it", None
    return False, "nothing of IPv6 goes out of its network", None
