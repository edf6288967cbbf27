"""Which address, MAC and host-id range an instance gets. Pure: given what is taken, the answer is always the same."""

import hashlib
from collections.abc import Container
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from lamella.model.errors import Conflict, Invalid, NoRoom

# Host ids from 0x70000000 up: above what distributions hand to people (subuid) and to systemd-nspawn.
FIRST_ID = 0x7000_0000
IDS_EACH = 1 << 16
ID_RANGES = 32768


def gateway_of(subnet: IPv4Network) -> IPv4Address:
    """The first address of *subnet* belongs to the layer."""
    return subnet.network_address + 1


def free_address(subnet: IPv4Network, taken: Container[str], *, near: int = 0) -> IPv4Interface:
    """The first free address at or after the offset *near*, going round; never the network's, the gateway's or the broadcast.

    :raise NoRoom: when every address is taken.
    """
    first, count = 2, subnet.num_addresses - 3
    for step in range(count):
        address = subnet.network_address + first + (near + step) % count
        if str(address) not in taken:
            return IPv4Interface((address, subnet.prefixlen))
    raise NoRoom(f"every address of {subnet} is taken", hint="remove instances, or use a network with a larger subnet")


def static_address(
    subnet: IPv4Network, wanted: str, taken: Container[str], *, field: str = "spec.nics.address"
) -> IPv4Interface:
    """The address that somebody asked for by name.

    :raise Invalid: when it is none that an instance on *subnet* can have. :raise Conflict: when it is taken.
    """
    try:
        address = IPv4Address(wanted)
    except ValueError:
        raise Invalid(f"{wanted!r} is no IPv4 address", hint=f"write one of {subnet}", field=field) from None
    if address not in subnet:
        raise Invalid(
            f"address {address} is not in subnet {subnet} of its network", hint="choose one of it", field=field
        )
    if address in (subnet.network_address, subnet.broadcast_address):
        raise Invalid(f"{address} is the address of all of {subnet}", hint="choose one between its ends", field=field)
    if address == gateway_of(subnet):
        raise Conflict(f"{address} is the gateway of {subnet}", hint="choose another one", field=field)
    if str(address) in taken:
        raise Conflict(f"address {address} is taken", hint="lamella port ls tells by whom", field=field)
    return IPv4Interface((address, subnet.prefixlen))


def mac_of(port_id: str) -> str:
    """A locally administered unicast MAC that follows from the port's id (RFC 7042, section 2.1)."""
    digest = hashlib.blake2b(port_id.encode(), digest_size=5).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest))


def free_id_range(taken: Container[str], *, seed: str) -> int:
    """The first id of a range of 65536 that nobody has. Layers that share a machine begin to look at different places (*seed*).

    :raise NoRoom: when all ranges are taken.
    """
    start = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=4).digest(), "big") % ID_RANGES
    for step in range(ID_RANGES):
        base = FIRST_ID + (start + step) % ID_RANGES * IDS_EACH
        if str(base) not in taken:
            return base
    raise NoRoom("every range of host ids is taken", hint="remove instances, or add a host")
