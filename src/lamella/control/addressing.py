"""Which address, MAC and host-id range an instance gets. Pure: given what is taken, the answer is always the same."""

import hashlib
from collections.abc import Container
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
)
from typing import overload

from lamella.model.errors import Conflict, Invalid, NoRoom

AnyNetwork = IPv4Network | IPv6Network
AnyAddress = IPv4Address | IPv6Address
AnyInterface = IPv4Interface | IPv6Interface

# The network's own address and the gateway's come before the first that an instance may have. No more than so many are tried.
FIRST_ADDRESS = 2
MOST_TRIED = 100_000

# Host ids from 0x70000000 up: above what distributions hand to people (subuid) and to systemd-nspawn.
FIRST_ID = 0x7000_0000
IDS_EACH = 1 << 16
ID_RANGES = 32768


@overload
def gateway_of(subnet: IPv4Network) -> IPv4Address: ...
@overload
def gateway_of(subnet: IPv6Network) -> IPv6Address: ...
def gateway_of(subnet: AnyNetwork) -> AnyAddress:
    """The first address of *subnet* that a host may have belongs to the layer (in IPv6 the one before is any router's: RFC 4291, 2.6.1)."""
    return subnet.network_address + 1


def free_address(subnet: AnyNetwork, taken: Container[str], *, near: int = 0) -> AnyInterface:
    """The first free address at or after the offset *near* of those that instances may have, going round.

    :raise NoRoom: when every address is taken (of IPv6: a hundred thousand in a row).
    """
    ends = 3 if subnet.version == 4 else 2
    count = subnet.num_addresses - ends
    for step in range(min(count, MOST_TRIED)):
        address = subnet.network_address + FIRST_ADDRESS + (near + step) % count
        if str(address) not in taken:
            return ip_interface((address, subnet.prefixlen))
    raise NoRoom(f"every address of {subnet} is taken", hint="remove instances, or use a network with a larger subnet")


def static_address(
    subnet: AnyNetwork, wanted: str, taken: Container[str], *, field: str = "spec.nics.address"
) -> AnyInterface:
    """The address that somebody asked for by name.

    :raise Invalid: when it is none that an instance on *subnet* can have. :raise Conflict: when it is taken.
    """
    try:
        address = IPv4Address(wanted) if subnet.version == 4 else IPv6Address(wanted)
    except ValueError:
        raise Invalid(
            f"{wanted!r} is no IPv{subnet.version} address", hint=f"write one of {subnet}", field=field
        ) from None
    if address not in subnet:
        raise Invalid(
            f"address {address} is not in subnet {subnet} of its network", hint="choose one of it", field=field
        )
    if subnet.version == 6 and address == subnet.network_address:
        raise Invalid(f"{address} is any router's of {subnet}", hint="choose another one", field=field)
    if subnet.version == 4 and address in (subnet.network_address, subnet.broadcast_address):
        raise Invalid(f"{address} is the address of all of {subnet}", hint="choose one between its ends", field=field)
    if address == gateway_of(subnet):
        raise Conflict(f"{address} is the gateway of {subnet}", hint="choose another one", field=field)
    if str(address) in taken:
        raise Conflict(f"address {address} is taken", hint="lamella port ls tells by whom", field=field)
    return ip_interface((address, subnet.prefixlen))


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
