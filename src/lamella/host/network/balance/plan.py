"""Balancers as rules of nftables, computed from values alone.

In a table of the layer's namespace of their own:

    map services     address . protocol . port of a listener -> its chain
    map published    protocol . port of the uplink of a listener that is published -> its chain
    map own          address of a balancer -> itself: what comes by it goes on under it, so that the answer comes back by the layer, also
                     when client and backend are on one network. What is published keeps the client's address
    set heads        bridge . listener of HTTP, which haproxy serves: what comes to it from there, or is published, is marked and let in
    set fronts       every other listener: a connection that no chain has led on has no backend, and is refused at once
    chain s_…        one listener: a map of slots, one for each backend that takes connections

A listener's chain is replaced in one transaction, so no connection meets half of a change; those that are there already stay with
connection tracking.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address

import msgspec

from lamella.host.network.balance.desired import Backend, DesiredBalancer
from lamella.host.network.names import bridge_name
from lamella.host.network.plan import PROTOCOLS, Forward
from lamella.host.network.rules import BALANCED
from lamella.model.balancer import Listener

# Before the maps of published ports, which lead to one instance each, and before the uplink's masquerade.
DESTINATION_PRIORITY, SOURCE_PRIORITY, INPUT_PRIORITY = -110, 90, -10


class Balanced(msgspec.Struct, kw_only=True, frozen=True):
    """Everything that is in force for one layer. Elements are as nft writes them."""

    chains: dict[str, str] = {}
    services: dict[str, str] = {}
    published: dict[str, str] = {}
    own: frozenset[str] = frozenset()
    fronts: frozenset[str] = frozenset()
    heads: frozenset[str] = frozenset()


def balanced(
    balancers: Iterable[DesiredBalancer],
    forwards: Mapping[str, Sequence[Forward]],
    up: Callable[[str, Backend], bool],
) -> Balanced:
    """What is to be in force. *forwards* are the published ports by the balancer's id; a backend that is not *up* (told by the balancer's
    id and itself) gets no connection."""
    chains: dict[str, str] = {}
    services: dict[str, str] = {}
    published: dict[str, str] = {}
    own: set[str] = set()
    heads: set[str] = set()
    for balancer in balancers:
        own.add(balancer.address)
        for place, listener in enumerate(balancer.listeners):
            if listener.reads:
                front = f"{balancer.address} . {PROTOCOLS[listener.transport]} . {listener.port}"
                heads.add(f'"{bridge_name(balancer.network)}" . {front}')
                continue
            takers = [
                backend
                for backend in balancer.backends
                if backend.listener == place and not backend.draining and up(balancer.id, backend)
            ]
            name = chain_name(balancer.id, listener)
            chains[name] = _rule(listener, takers, source=balancer.source)
            number = PROTOCOLS[listener.protocol]
            services[f"{balancer.address} . {number} . {listener.port}"] = name
            for forward in forwards.get(balancer.id, ()):
                if (forward.protocol, forward.port) == (listener.protocol, listener.port):
                    published[f"{number} . {forward.uplink_port}"] = name
    return Balanced(
        chains=chains,
        services=services,
        published=published,
        own=frozenset(own),
        fronts=frozenset(services),
        heads=frozenset(heads),
    )


def chain_name(balancer: str, listener: Listener) -> str:
    words = f"{balancer} {listener.protocol} {listener.port}"
    return f"s_{hashlib.sha256(words.encode()).hexdigest()[:16]}"


def _rule(listener: Listener, takers: Iterable[Backend], *, source: bool) -> str:
    """Where a new connection goes; empty when nobody takes it."""
    slots = sorted({(IPv4Address(backend.address), backend.port) for backend in takers})
    if not slots:
        return ""
    choice = "jhash ip saddr" if source else "numgen inc"
    map = ", ".join(f"{number} : {address} . {port}" for number, (address, port) in enumerate(slots))
    return f"meta l4proto {listener.protocol} dnat ip to {choice} mod {len(slots)} map {{ {map} }}"


# --- text


def frame(table: str, uplink: str) -> str:
    """The table, empty. Whole, whatever was there."""
    return f"""
add table ip {table}
delete table ip {table}
add table ip {table}
add map ip {table} services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
add map ip {table} published {{ type inet_proto . inet_service : verdict; }}
add map ip {table} own {{ type ipv4_addr : ipv4_addr; }}
add set ip {table} fronts {{ type ipv4_addr . inet_proto . inet_service; }}
add set ip {table} heads {{ type ifname . ipv4_addr . inet_proto . inet_service; }}
add chain ip {table} prerouting {{ type nat hook prerouting priority {DESTINATION_PRIORITY}; policy accept; }}
add chain ip {table} postrouting {{ type nat hook postrouting priority {SOURCE_PRIORITY}; policy accept; }}
add chain ip {table} input {{ type filter hook input priority {INPUT_PRIORITY}; policy accept; }}
add rule ip {table} prerouting ip daddr . meta l4proto . th dport vmap @services
add rule ip {table} prerouting iifname "{uplink}" meta l4proto . th dport vmap @published
add rule ip {table} postrouting ct status dnat snat ip to ct original ip daddr map @own
add rule ip {table} input iifname . ip daddr . meta l4proto . th dport @heads meta mark set {BALANCED}
add rule ip {table} input iifname "{uplink}" ct status dnat meta mark set {BALANCED}
add rule ip {table} input ip daddr . meta l4proto . th dport @fronts meta l4proto tcp reject with tcp reset
add rule ip {table} input ip daddr . meta l4proto . th dport @fronts reject
"""


def change(table: str, before: Balanced, after: Balanced) -> str:
    """The transaction that leads from *before* to *after*; empty when they are the same."""
    lines: list[str] = []
    for name in sorted(after.chains):
        rule = after.chains[name]
        if name not in before.chains:
            lines.append(f"add chain ip {table} {name}")
        elif before.chains[name] != rule:
            lines.append(f"flush chain ip {table} {name}")
        if rule and before.chains.get(name) != rule:
            lines.append(f"add rule ip {table} {name} {rule}")
    for name, old, new in (
        ("services", _jumps(before.services), _jumps(after.services)),
        ("published", _jumps(before.published), _jumps(after.published)),
        ("own", _selves(before.own), _selves(after.own)),
        ("fronts", before.fronts, after.fronts),
        ("heads", before.heads, after.heads),
    ):
        for verb, found in (("delete", old - new), ("add", new - old)):
            if found:
                lines.append(f"{verb} element ip {table} {name} {{ {', '.join(sorted(found))} }}")
    for name in sorted(before.chains.keys() - after.chains.keys()):
        lines += [f"flush chain ip {table} {name}", f"delete chain ip {table} {name}"]
    return "".join(f"{line}\n" for line in lines)


def _jumps(map: Mapping[str, str]) -> frozenset[str]:
    return frozenset(f"{key} : jump {chain}" for key, chain in map.items())


def _selves(addresses: Iterable[str]) -> frozenset[str]:
    return frozenset(f"{address} : {address}" for address in addresses)
