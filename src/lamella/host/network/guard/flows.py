"""Flows that the kernel lets pass because they began when they might, and may no more: found, and forgotten.

What is forgotten is decided anew by its next packet. Flows that the rules still allow are left alone.
"""

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from socket import AF_INET, AF_INET6

from lamella.host.network import conntrack
from lamella.host.network.conntrack import Flow
from lamella.host.network.driver import DesiredPort
from lamella.host.network.guard.family import IPV4, Address, Family
from lamella.host.network.guard.rules import Guarded
from lamella.host.network.names import zone_of
from lamella.model.firewall import FirewallSpec
from lamella.model.verdict import Member, Packet, World, decide

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}


def world(firewalls: Mapping[str, FirewallSpec], ports: Iterable[DesiredPort], family: Family = IPV4) -> World:
    """What is asked, as verdicts want it."""
    members = {address: Member(port.id, port.firewalls) for port in ports for address in family.addresses(port)}
    return World(firewalls, members)


def affected(before: Guarded, after: Guarded) -> frozenset[Address]:
    """Addresses of ports for which less may pass than before, as far as can be told without looking at packets."""
    places = {
        place
        for old, new in ((before.inward, after.inward), (before.outward, after.outward))
        for place in old.keys() | new.keys()
        if old.get(place) != new.get(place) and place in new
    }
    for name, members in before.members.items():
        places |= members - after.members.get(name, set())
    return frozenset(ip_address(place.rpartition(" ")[2]) for place in places)


def forget_forbidden(
    firewalls: Mapping[str, FirewallSpec],
    ports: Iterable[DesiredPort],
    addresses: frozenset[Address],
    family: Family = IPV4,
) -> int:
    """Forget the flows of this thread's namespace that *addresses* have part in and that *firewalls* forbid; how many they were.

    :raise OSError: when the kernel refuses.
    """
    touched = [
        flow
        for flow in conntrack.flows(AF_INET if family is IPV4 else AF_INET6)
        if not addresses.isdisjoint(_ends(flow))
    ]
    if not touched:
        return 0
    every = list(ports)
    worlds = {zone: world(firewalls, _within(every, zone), family) for zone in {flow.zone for flow in touched}}
    forbidden = [flow for flow in touched if not decide(worlds[flow.zone], packet_of(flow)).passes]
    conntrack.forget(forbidden)
    return len(forbidden)


def _within(ports: Iterable[DesiredPort], zone: int) -> list[DesiredPort]:
    """Those whose packets are seen in *zone*."""
    return [port for port in ports if port.zone == zone or (zone and zone in map(zone_of, port.beside))]


def _ends(flow: Flow) -> set[Address]:
    return {flow.source, flow.destination, flow.answers}


def packet_of(flow: Flow) -> Packet:
    """The packet that began *flow*, as the rules saw it: behind the translation of its destination."""
    return Packet(
        source=flow.source,
        destination=flow.answers,
        protocol=_PROTOCOLS.get(flow.protocol, str(flow.protocol)),
        port=flow.answering_port,
        type=flow.type,
        published=flow.answers != flow.destination,
    )
