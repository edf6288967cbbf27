"""What firewalls say of one packet, and which rule says it: the same as the rules of nftables, walked by hand. Pure."""

from collections.abc import Mapping
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_network

import msgspec

from lamella.model.firewall import FIREWALL, FirewallSpec, Protocol, Rule, icmp6_types

Address = IPv4Address | IPv6Address


class Packet(msgspec.Struct, frozen=True, kw_only=True):
    """The first packet of a flow. ``port`` is the destination's, ``type`` an ICMP message's (in IPv6 an ICMPv6 one's). ``published`` ones
    came to a port of the host."""

    source: Address
    destination: Address
    protocol: str
    port: int = 0
    type: int = 0
    published: bool = False


class Side(StrEnum):
    OUT = "out"
    IN = "in"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """``side`` is where it was decided: on the way out of its sender or in to its receiver. ``firewall`` is the id of the one whose
    ``rule`` lets it pass; without one it passes since nothing guards that side, or is dropped since no rule lets it pass."""

    passes: bool
    side: Side | None = None
    port: str = ""
    firewall: str = ""
    rule: Rule | None = None


class Member(msgspec.Struct, frozen=True):
    """A port, by its id, and the ids of its firewalls."""

    port: str
    firewalls: list[str]


class World(msgspec.Struct, frozen=True):
    """Firewalls by id, ports by address."""

    firewalls: Mapping[str, FirewallSpec]
    ports: Mapping[Address, Member]


def decide(world: World, packet: Packet) -> Verdict:
    """Out of its sender, then in to its receiver. Where neither is guarded on that side, it passes and no side is told."""
    found = out_of(world, packet) or Verdict(passes=True)
    return found if not found.passes else into(world, packet) or found


def out_of(world: World, packet: Packet) -> Verdict | None:
    """What its sender's firewalls say; ``None`` when they let everything out, or there are none."""
    sender = world.ports.get(packet.source)
    if sender is None or not sender.firewalls:
        return None
    specs = _specs(world, sender)
    if any(spec.outbound is None for spec in specs.values()):
        return None
    return _first(world, {id: spec.outbound or [] for id, spec in specs.items()}, packet, Side.OUT, sender)


def into(world: World, packet: Packet) -> Verdict | None:
    """What its receiver's firewalls say; ``None`` when there are none, or it is published."""
    receiver = world.ports.get(packet.destination)
    if receiver is None or not receiver.firewalls or packet.published:
        return None
    inbound = {id: spec.inbound for id, spec in _specs(world, receiver).items()}
    return _first(world, inbound, packet, Side.IN, receiver)


def _specs(world: World, port: Member) -> dict[str, FirewallSpec]:
    return {id: world.firewalls.get(id, FirewallSpec()) for id in sorted(port.firewalls)}


def _first(world: World, rules: Mapping[str, list[Rule]], packet: Packet, side: Side, port: Member) -> Verdict:
    for id, some in rules.items():
        for rule in some:
            if matches(world, rule, packet, side):
                return Verdict(passes=True, side=side, port=port.port, firewall=id, rule=rule)
    return Verdict(passes=False, side=side, port=port.port)


def matches(world: World, rule: Rule, packet: Packet, side: Side) -> bool:
    """Whether *rule* is of packets such as *packet*; *side* says which end its peer is."""
    if rule.protocol not in (Protocol.ANY, packet.protocol):
        return False
    types = rule.types if packet.source.version == 4 else icmp6_types(rule.types)
    if rule.protocol is Protocol.ICMP and rule.types and packet.type not in types:
        return False
    if rule.ports and not any(each.first <= packet.port <= each.last for each in rule.ports):
        return False
    peer = packet.source if side is Side.IN else packet.destination
    if rule.peer.startswith(FIREWALL):
        other = world.ports.get(peer)
        return other is not None and rule.peer.removeprefix(FIREWALL) in other.firewalls
    return not rule.peer or peer in ip_network(rule.peer)
