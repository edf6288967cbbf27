"""Firewalls: stateful groups of rules that ports of instances belong to (security groups, elsewhere)."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.resource import Condition, Resource


class Protocol(StrEnum):
    """``any`` is every packet; ``icmp`` is that of either family."""

    ANY = "any"
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"


PortNumber = Annotated[int, Meta(ge=1, le=65535)]


# What of ICMPv6 (RFC 4443) means the same as a type of ICMP: answer, unreachable, echo, time exceeded, parameter problem.
ICMP6 = {0: 129, 3: 1, 8: 128, 11: 3, 12: 4}


def icmp6_types(types: Iterable[int]) -> list[int]:
    """The types of ICMPv6 that stand for *types* of ICMP, as far as there are such."""
    return [ICMP6[type] for type in types if type in ICMP6]


class PortRange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """From ``first`` to ``last``, both included."""

    first: PortNumber
    last: PortNumber


class Rule(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Packets that may pass. ``ports`` are the destination's (none: all); ``types`` are of ICMP messages (none: all), and in
    IPv6 those that mean the same. ``peer`` is who is at the other end: a prefix (``10.0.0.0/8``, ``fd10::/64``), a firewall
    (``firewall:app``: whoever belongs to it; kept as its id), or empty: anybody."""

    protocol: Protocol = Protocol.ANY
    ports: Annotated[list[PortRange], Meta(max_length=64)] = []
    types: Annotated[list[Annotated[int, Meta(ge=0, le=255)]], Meta(max_length=16)] = []
    peer: Annotated[str, Meta(max_length=80)] = ""


Rules = Annotated[list[Rule], Meta(max_length=256)]


class FirewallSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may come in to its members, and what may go out of them (``None``: everything). Nothing else may; answers to what may always
    pass, and so does what is published on the host."""

    inbound: Rules = []
    outbound: Rules | None = None


class FirewallStatus(msgspec.Struct, kw_only=True):
    conditions: list[Condition] = []


Firewall = Resource[FirewallSpec, FirewallStatus]

FIREWALL = "firewall:"

# Instead of the names of a NIC's firewalls: not even the project's default one. No firewall is called so.
NONE = "none"
