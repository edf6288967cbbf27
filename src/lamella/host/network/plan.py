"""What a port is in the two namespaces, computed from values alone: elements of sets and maps, and choices of numbers.

The rules (``rules``) are shared by all ports, so that a thousand ports cost a packet what one costs. In the layer's
namespace, of two tables that bear the mark:

    bridge   set known       link . MAC . IP of every port: whatever else comes in from an instance is dropped
    ip       map inbound     protocol . port at the uplink -> address . port of an instance
             set isolated    links of the networks that nothing goes out of
             set bridged     link . link of every network: what stays on it, where firewalls have it shown to these rules

and in the host's, of one:

    ip       map specific    host address . protocol . host port -> the uplink's address . port
             map wildcard    protocol . host port -> the same
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import msgspec

from lamella.host.network.driver import DesiredNetwork, DesiredPort
from lamella.host.network.names import bridge_name, port_name
from lamella.model.errors import Conflict, Invalid, NoRoom, Unsupported
from lamella.model.host import Capability
from lamella.model.ids import is_id
from lamella.model.instance import Publish

# Shared address space (RFC 6598), then the benchmarking range (RFC 2544) for hosts where an overlay network took all of it.
TRANSFER_RANGES = (IPv4Network("100.64.0.0/10"), IPv4Network("198.18.0.0/15"))
EPHEMERAL = range(32768, 61000)
MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
ANY = "0.0.0.0"
PROTOCOLS = {"tcp": 6, "udp": 17}


class Transfer(msgspec.Struct, frozen=True):
    """The /30 between the host and the layer."""

    network: IPv4Network

    @property
    def host(self) -> IPv4Interface:
        return IPv4Interface((self.network.network_address + 1, self.network.prefixlen))

    @property
    def layer(self) -> IPv4Interface:
        return IPv4Interface((self.network.network_address + 2, self.network.prefixlen))


class Forward(msgspec.Struct, kw_only=True, frozen=True):
    """A published port on its way: host address and port -> port of the uplink -> address and port of an instance. ``via`` is where its
    router takes it from the layer, at the uplink's port, when there is one."""

    owner: str
    protocol: str
    host_address: str
    host_port: int
    uplink_port: int
    address: str
    port: int
    via: str = ""

    @property
    def published(self) -> Publish:
        return Publish(host_address=self.host_address, host_port=self.host_port, port=self.port, protocol=self.protocol)


class Element(msgspec.Struct, kw_only=True, frozen=True):
    """One element of a set, or with a ``value`` of a map; ``owner`` is the id of its port, kept as the element's comment."""

    family: str
    container: str
    key: str
    value: str = ""
    owner: str


def transfer(mark: str, taken: Iterable[IPv4Network]) -> Transfer:
    """A /30 that overlaps no network of *taken*; where the search begins depends on the mark, so layers spread.

    :raise NoRoom: when 256 of them are all taken.
    """
    occupied = list(taken)
    start = int.from_bytes(hashlib.sha256(mark.encode()).digest()[:4], "big")
    for whole in TRANSFER_RANGES:
        count = whole.num_addresses // 4
        for step in range(128):
            first = whole.network_address + 4 * ((start + step * 8191) % count)
            network = IPv4Network((first, 30))
            if not any(network.overlaps(other) for other in occupied):
                return Transfer(network)
    raise NoRoom(
        "no free /30 network for the uplink", hint=f"leave some of {' or '.join(map(str, TRANSFER_RANGES))} unrouted"
    )


def known(port: DesiredPort) -> Element:
    """The element without which nothing that the port sends gets in. :raise Invalid: as :func:`check_port`."""
    check_port(port)
    address = address_of(port)
    return Element(
        family="bridge",
        container="known",
        key=f'"{port_name(port.id)}" . {port.mac.lower()} . {address}',
        owner=port.id,
    )


def of_network(network: DesiredNetwork) -> list[Element]:
    """What lets its instances reach each other, and keeps them in when it is isolated, or goes out by its router alone."""
    link = f'"{bridge_name(network.id)}"'
    bridged = Element(family="ip", container="bridged", key=f"{link} . {link}", owner=network.id)
    isolated = Element(family="ip", container="isolated", key=link, owner=network.id)
    return [bridged, isolated] if network.isolated or network.router else [bridged]


def address_of(port: DesiredPort) -> IPv4Address:
    """Without its prefix."""
    return IPv4Address(port.address.partition("/")[0])


def host_element(forward: Forward, between: Transfer) -> Element:
    protocol = PROTOCOLS[forward.protocol]
    key = f"{protocol} . {forward.host_port}"
    specific = forward.host_address != ANY
    return Element(
        family="ip",
        container="specific" if specific else "wildcard",
        key=f"{forward.host_address} . {key}" if specific else key,
        value=f"{between.layer.ip} . {forward.uplink_port}",
        owner=forward.owner,
    )


def layer_element(forward: Forward) -> Element:
    return Element(
        family="ip",
        container="inbound",
        key=f"{PROTOCOLS[forward.protocol]} . {forward.uplink_port}",
        value=f"{forward.via} . {forward.uplink_port}" if forward.via else f"{forward.address} . {forward.port}",
        owner=forward.owner,
    )


def add(table: str, elements: Iterable[Element]) -> Iterator[str]:
    """Lines that add elements."""
    for element in elements:
        value = f" : {element.value}" if element.value else ""
        yield (
            f"add element {element.family} {table} {element.container} "
            f'{{ {element.key} comment "{element.owner}"{value} }}\n'
        )


def remove(table: str, elements: Iterable[Element]) -> Iterator[str]:
    """Lines that remove elements, each of which has to be there."""
    for element in elements:
        yield f"delete element {element.family} {table} {element.container} {{ {element.key} }}\n"


def flush(table: str, containers: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Lines that empty sets and maps, given as (family, ``set`` or ``map``, name)."""
    for family, kind, name in containers:
        yield f"flush {kind} {family} {table} {name}\n"


HOST_CONTAINERS = (("ip", "map", "specific"), ("ip", "map", "wildcard"))
NETWORK_CONTAINERS = (("ip", "set", "isolated"), ("ip", "set", "bridged"))
LAYER_CONTAINERS = (("bridge", "set", "known"), ("ip", "map", "inbound"), *NETWORK_CONTAINERS)


def check_subnet(network: DesiredNetwork, others: Iterable[DesiredNetwork], between: Transfer) -> None:
    """:raise Conflict: when the network's subnet overlaps the uplink's, or that of another network with the same router, or without one."""
    subnet = IPv4Network(network.subnet)
    taken = {
        f"network {other.name}": IPv4Network(other.subnet)
        for other in others
        if other.id != network.id and other.router == network.router
    }
    for owner, other in {**taken, "the uplink": between.network}.items():
        if subnet.overlaps(other):
            raise Conflict(
                f"subnet {subnet} of network {network.name} overlaps {other} of {owner}",
                hint="choose another subnet",
                field="subnet",
            )


def shadowed(network: DesiredNetwork, routes: Iterable[IPv4Network]) -> Capability | None:
    """What of the host's *routes* the instances of *network* cannot reach, because their own subnet covers it."""
    subnet = IPv4Network(network.subnet)
    covered = sorted({str(route) for route in routes if route.overlaps(subnet)})
    if not covered:
        return None
    return Capability(
        name=f"network.subnet.{network.name}",
        available=False,
        value=network.subnet,
        reason=f"instances cannot reach what this host reaches by {', '.join(covered)}: "
        f"the subnet of network {network.name} covers it",
    )


def check_port(port: DesiredPort) -> None:
    """:raise Invalid: when its id or MAC is none: both become part of the text of rules."""
    if not is_id(port.id):
        raise Invalid(f"{port.id!r} is not the id of a port", field="id")
    if MAC.fullmatch(port.mac) is None:
        raise Invalid(f"{port.mac!r} is not a MAC address", hint="write it as 02:00:00:00:00:01", field="mac")


def check_publish(publish: list[Publish]) -> None:
    """:raise Unsupported: for a host address that is not IPv4. :raise Conflict: when two want the same host port."""
    seen: list[Publish] = []
    for one in publish:
        try:
            address = IPv4Address(one.host_address)
        except ValueError as error:
            raise Unsupported(
                f"cannot publish on host address {one.host_address!r}",
                hint="use an IPv4 address of the host, or 0.0.0.0 for all of them",
                field="publish",
            ) from error
        if address.is_multicast or address == IPv4Address("255.255.255.255"):
            raise Invalid(
                f"{address} is not the address of a host", hint="use an IPv4 address of the host", field="publish"
            )
        for other in seen:
            if one.host_port and overlaps(one, other):
                raise Conflict(
                    f"host port {one.host_port}/{one.protocol} is published twice",
                    hint="choose another",
                    field="publish",
                )
        seen.append(one)


def overlaps(one: Publish, other: Publish) -> bool:
    """Whether a packet could be meant for both."""
    return (
        one.protocol == other.protocol
        and one.host_port == other.host_port
        and (one.host_address == other.host_address or ANY in (one.host_address, other.host_address))
    )


def uplink_port(taken: set[tuple[str, int]], protocol: str, wanted: int) -> int:
    """The uplink's port for a host port: the same number, or the next free one when another host address has that already.

    :raise NoRoom: when all are taken.
    """
    for step in range(65535):
        candidate = (wanted - 1 + step) % 65535 + 1
        if (protocol, candidate) not in taken:
            return candidate
    raise NoRoom(f"all 65535 {protocol} ports of the uplink are in use", hint="publish fewer ports")


def kept(current: Iterable[Forward], port: DesiredPort) -> tuple[dict[int, Forward], list[int]]:
    """Which forwards already are what *port* wants: (by the place in ``port.publish``, the places that need a new one).

    A host port of 0 is content with whatever was chosen for it before.
    """
    address = str(address_of(port))
    free = [forward for forward in current if forward.owner == port.id and forward.address == address]
    found: dict[int, Forward] = {}
    # Exact wishes choose first, so that a 0 does not take what somebody names.
    for place, wish in sorted(enumerate(port.publish), key=lambda item: item[1].host_port == 0):
        for forward in free:
            have = forward.published
            if (wish.host_address, wish.protocol, wish.port) == (have.host_address, have.protocol, have.port) and (
                wish.host_port in (0, have.host_port)
            ):
                found[place] = forward
                free.remove(forward)
                break
    return found, [place for place in range(len(port.publish)) if place not in found]
