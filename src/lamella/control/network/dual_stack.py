"""IPv6 beside IPv4: which address of it a port gets, and what carries a packet of it. Pure.

Whoever has 10.10.0.7 of 10.10.0.0/24 has fd10::7 of fd10::/64, unless somebody asked for that by name: then the next free one.
"""

from collections.abc import Container, Iterable
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, IPv6Network

from lamella.control.addressing import FIRST_ADDRESS, free_address, static_address
from lamella.model.errors import Invalid
from lamella.model.instance import Isolation, Nic
from lamella.model.network import Network, Port
from lamella.model.network_bodies import NetworkCreate

# Where the metadata services of EC2 and of Google's clouds answer by IPv6.
SECRETS = (IPv6Address("fd00:ec2::254"), IPv6Address("fd20:ce::254"))
# Their guests do not configure IPv6: an address would be told to others and never answer.
WITHOUT = (Isolation.UNIKERNEL, Isolation.WASM)


def check_alone(body: NetworkCreate) -> None:
    """:raise Invalid: when a network is to have IPv6 and what carries IPv4 alone."""
    if body.subnet6 and (body.router or body.external):
        what = "routers carry" if body.router else "floating addresses are of"
        raise Invalid(f"{what} IPv4 alone", hint="leave the subnet of IPv6 out", field="subnet6")


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
                hint="containers, microVMs and full machines have IPv6",
                field="spec.nics.address6",
            )
        return ""
    subnet = IPv6Network(network.spec.subnet6)
    if nic.address6:
        return str(static_address(subnet, nic.address6, taken, field="spec.nics.address6"))
    four = IPv4Interface(address)
    near = int(four.ip) - int(four.network.network_address) - FIRST_ADDRESS
    return str(free_address(subnet, taken, near=near))


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
    if destination.is_link_local or destination in SECRETS:
        return False, "it is not forwarded: a cloud gives out its host's secrets there", None
    if network.spec.isolated:
        return False, f"network {network.name} is isolated: nothing goes out of it", None
    return (
        True,
        "it goes out through the host, under the host's address; what is beyond decides",
        None,
    )
