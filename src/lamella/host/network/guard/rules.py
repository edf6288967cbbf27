"""Firewalls as rules of nftables, computed from values alone.

In the layer's namespace, in tables of their own, those of IPv6 (``ip6``) beside those of IPv4:

    ip      chain forward   answers pass; what a guarded port sends goes through the rules of its way out, what one is sent through
                            those of its way in: one lookup each, however many ports there are
            map out, in     bridge . address of a guarded port (in IPv6 its link-local one, too) -> the chain of its firewalls
            map zones       bridge -> zone of connection tracking: behind different routers the same addresses may be
            set m_…         bridge . address of every member of a firewall that a rule names
            chain o_…, i_…  of one combination of firewalls; ports with the same firewalls share it
    bridge  set links       links of guarded ports
            set places      link . MAC . address of guarded ports: a frame that is sent to their link for another address (a broadcast)
                            would pass by the maps, and is dropped

A port is told by its bridge and address: whoever sends with another one is dropped before (``rules``). Bridged frames come to the family
``ip`` because of br_netfilter, switched on for bridges with guarded ports alone.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from ipaddress import ip_network

import msgspec

from lamella.host.network.driver import DesiredPort
from lamella.host.network.guard.family import IPV4, Family
from lamella.host.network.names import bridge_name, port_name
from lamella.model.firewall import FIREWALL, FirewallSpec, PortRange, Protocol, Rule

FORWARD_PRIORITY = -10


class Guarded(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is in force for one layer. Elements are as nft writes them; ``bridges`` are the names of those with guarded ports,
    ``zones`` the numbers of those that have one."""

    chains: dict[str, tuple[str, ...]] = {}
    members: dict[str, set[str]] = {}
    inward: dict[str, str] = {}
    outward: dict[str, str] = {}
    links: set[str] = set()
    places: set[str] = set()
    bridges: set[str] = set()
    zones: dict[str, int] = {}


def guarded(firewalls: Mapping[str, FirewallSpec], ports: Iterable[DesiredPort], family: Family = IPV4) -> Guarded:
    """What is to be in force for *ports* and *firewalls* (by id). A port that names a firewall that is not there lets nothing in by it."""
    chains: dict[str, tuple[str, ...]] = {}
    members: dict[str, set[str]] = {id: set() for id in _named(firewalls)}
    inward: dict[str, str] = {}
    outward: dict[str, str] = {}
    links: set[str] = set()
    places: set[str] = set()
    bridges: set[str] = set()
    zones: dict[str, int] = {}
    ways: dict[tuple[str, ...], tuple[str, str]] = {}
    for port in ports:
        addresses = family.addresses(port) if port.firewalls else []
        if not addresses:
            continue
        link = port_name(port.id)
        for id in port.firewalls:
            if id in members:
                on = (port.network, *port.beside)
                members[id].update(f'"{bridge_name(other)}" . {address}' for other in on for address in addresses)
        combination = tuple(sorted(port.firewalls))
        if combination not in ways:
            ways[combination] = _ways(chains, [firewalls.get(id, FirewallSpec()) for id in combination], family)
        into, out = ways[combination]
        for place in places_of(port, family):
            inward[place] = into
            if out:
                outward[place] = out
        bridges.add(bridge_name(port.network))
        if port.zone:
            zones[bridge_name(port.network)] = port.zone
        links.add(f'"{link}"')
        places.update(f'"{link}" . {port.mac.lower()} . {address}' for address in addresses)
    return Guarded(
        chains=chains,
        members={_set(id): some for id, some in members.items()},
        inward=inward,
        outward=outward,
        links=links,
        places=places,
        bridges=bridges,
        zones=zones,
    )


def step(
    before: Guarded,
    firewalls: Mapping[str, FirewallSpec],
    gone: Iterable[DesiredPort],
    come: Iterable[DesiredPort],
    family: Family = IPV4,
) -> tuple[Guarded, Guarded]:
    """The parts of *before*, and of what is in force then, that differ when of its ports those of *gone* go and those of *come* are new,
    with the same *firewalls*: :func:`change` leads from one to the other, and :func:`take` makes *before* what is in force then. A port
    that has other firewalls goes and comes.

    Both are as small as the difference but for ``chains``, which are all. No two ports may have the same place, before or after.
    """
    minus, plus = guarded(firewalls, gone, family), guarded(firewalls, come, family)
    chains = {**before.chains, **plus.chains}
    for name in minus.chains.keys() - plus.chains.keys():
        for map, leaving in ((before.inward, minus.inward), (before.outward, minus.outward)):
            if any(chain == name and place not in leaving for place, chain in map.items()):
                break
        else:
            del chains[name]
    left = {name for name in minus.bridges if not _stays(f'"{name}" ', before, minus)}
    zones = {name: zone for name, zone in minus.zones.items() if name in left}
    new = {name: zone for name, zone in plus.zones.items() if name in zones or before.zones.get(name) != zone}
    replace = msgspec.structs.replace
    return replace(minus, chains={**before.chains}, bridges=left, zones=zones), replace(plus, chains=chains, zones=new)


def _stays(prefix: str, before: Guarded, minus: Guarded) -> bool:
    return any(place.startswith(prefix) and place not in minus.inward for place in before.inward)


def collide(before: Guarded, minus: Guarded, plus: Guarded) -> bool:
    """Whether a port of *plus* would have the place of one that stays."""
    return any(place in before.inward and place not in minus.inward for place in plus.inward)


def take(all: Guarded, minus: Guarded, plus: Guarded) -> None:
    """Make *all* what it is after the :func:`step` of *minus* and *plus*."""
    for map, old, new in ((all.inward, minus.inward, plus.inward), (all.outward, minus.outward, plus.outward)):
        for place in old:
            del map[place]
        map.update(new)
    for name in minus.zones:
        del all.zones[name]
    all.zones.update(plus.zones)
    for found, old, new in (
        (all.links, minus.links, plus.links),
        (all.places, minus.places, plus.places),
        (all.bridges, minus.bridges, plus.bridges),
        *((all.members[name], minus.members[name], plus.members[name]) for name in all.members),
    ):
        found -= old
        found |= new
    for name in all.chains.keys() - plus.chains.keys():
        del all.chains[name]
    all.chains.update(plus.chains)


def places_of(port: DesiredPort, family: Family = IPV4) -> list[str]:
    """How the maps tell a port: by each of its addresses."""
    return [f'"{bridge_name(port.network)}" . {address}' for address in family.addresses(port)]


def _named(firewalls: Mapping[str, FirewallSpec]) -> set[str]:
    """Ids of the firewalls that rules name."""
    return {
        rule.peer.removeprefix(FIREWALL)
        for spec in firewalls.values()
        for rule in (*spec.inbound, *(spec.outbound or ()))
        if rule.peer.startswith(FIREWALL)
    }


def _set(id: str) -> str:
    return f"m_{id[-12:]}"


def _ways(chains: dict[str, tuple[str, ...]], specs: Sequence[FirewallSpec], family: Family) -> tuple[str, str]:
    """The chains of the way in to ports with these firewalls, and of the way out (empty: everything may go), put into *chains*."""
    inward = _chain(chains, "i", [rule for spec in specs for rule in spec.inbound], family, inward=True)
    if any(spec.outbound is None for spec in specs):
        return inward, ""
    outward = [rule for spec in specs for rule in spec.outbound or ()]
    return inward, _chain(chains, "o", outward, family, inward=False)


def _chain(
    chains: dict[str, tuple[str, ...]], prefix: str, rules: Sequence[Rule], family: Family, *, inward: bool
) -> str:
    """The name of the chain of *rules*, which is put into *chains*: the same rules have the same chain."""
    verdict = "accept" if inward else "return"
    matches = (match(rule, family, inward=inward) for rule in rules)
    lines = (*dict.fromkeys(f"{words}{verdict}" for words in matches if words is not None), "drop")
    name = f"{prefix}_{hashlib.sha256(';'.join(lines).encode()).hexdigest()[:16]}"
    chains[name] = lines
    return name


def match(rule: Rule, family: Family = IPV4, *, inward: bool) -> str | None:
    """What a packet has to be, in nft's words; a space at the end, or nothing for every packet. ``None`` when it is of no packet of that
    family."""
    words: list[str] = []
    if rule.peer.startswith(FIREWALL):
        link, address = ("iifname", "saddr") if inward else ("oifname", "daddr")
        words.append(f"{link} . {family.name} {address} @{_set(rule.peer.removeprefix(FIREWALL))}")
    elif rule.peer:
        prefix = ip_network(rule.peer)
        if prefix.version != family.version:
            return None
        words.append(f"{family.name} {'saddr' if inward else 'daddr'} {prefix}")
    if rule.protocol is Protocol.ICMP:
        types = family.types(rule.types)
        if rule.types and not types:
            return None
        words.append(
            f"{family.icmp} type {{ {', '.join(map(str, types))} }}" if types else f"meta l4proto {family.protocol}"
        )
    elif rule.ports:
        ports = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in _joined(rule.ports))
        words.append(f"{rule.protocol} dport {{ {ports} }}")
    elif rule.protocol is not Protocol.ANY:
        words.append(f"meta l4proto {rule.protocol}")
    return "".join(f"{word} " for word in words)


def _joined(ports: Iterable[PortRange]) -> list[tuple[int, int]]:
    """The same ports in ranges that do not overlap: nft refuses others."""
    found: list[tuple[int, int]] = []
    for first, last in sorted((each.first, each.last) for each in ports):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


# --- text


def frame(table: str, uplink: str, family: Family = IPV4) -> str:
    """The two tables, empty: nothing is guarded. Whole, whatever was there."""
    ip, kind = family.name, family.kind
    always = f"add rule {ip} {table} forward {family.always}accept\n" if family.always else ""
    return f"""
add table {ip} {table}
delete table {ip} {table}
add table {ip} {table}
add map {ip} {table} in {{ type ifname . {kind} : verdict; }}
add map {ip} {table} out {{ type ifname . {kind} : verdict; }}
add map {ip} {table} zones {{ typeof iifname : ct zone; }}
add chain {ip} {table} forward {{ type filter hook forward priority {FORWARD_PRIORITY}; policy accept; }}
{always}add rule {ip} {table} forward ct state established,related accept
add rule {ip} {table} forward iifname . {ip} saddr vmap @out
add rule {ip} {table} forward iifname "{uplink}" ct status dnat accept
add rule {ip} {table} forward oifname . {ip} daddr vmap @in
add table bridge {table}
delete table bridge {table}
add table bridge {table}
add set bridge {table} links {{ type ifname; }}
add set bridge {table} places {{ type ifname . ether_addr . {kind}; }}
add chain bridge {table} forward {{ type filter hook forward priority -200; policy accept; }}
{_accepted(table, family)}\
add rule bridge {table} forward ether type {ip} oifname @links oifname . ether daddr . {ip} daddr != @places drop
"""


def _accepted(table: str, family: Family) -> str:
    return f"add rule bridge {table} forward ether type {family.name} {family.always}accept\n" if family.always else ""


def change(table: str, before: Guarded, after: Guarded, family: Family = IPV4) -> str:
    """The transaction that leads from *before* to *after*; empty when they are the same. At no moment is a port less guarded than by one
    of the two."""
    lines: list[str] = []
    ip = family.name
    zones = [{f'"{name}" : {zone}' for name, zone in part.zones.items()} for part in (before, after)]
    if zones[1] - zones[0]:
        # Only now: every packet of every network goes through such a chain.
        lines.append(f"add chain {ip} {table} apart {{ type filter hook prerouting priority raw; policy accept; }}")
        lines += [f"flush chain {ip} {table} apart", f"add rule {ip} {table} apart ct zone set iifname map @zones"]
    lines += _elements(ip, table, "zones", *zones)
    for name in sorted(after.members.keys() - before.members.keys()):
        lines.append(f"add set {ip} {table} {name} {{ type ifname . {family.kind}; }}")
    for name in sorted(after.members):
        lines += _elements(ip, table, name, before.members.get(name, set()), after.members[name])
    for name in sorted(after.chains.keys() - before.chains.keys()):
        lines.append(f"add chain {ip} {table} {name}")
        lines += [f"add rule {ip} {table} {name} {rule}" for rule in after.chains[name]]
    for name, old, new in (("in", before.inward, after.inward), ("out", before.outward, after.outward)):
        lines += _elements(ip, table, name, _jumps(old), _jumps(new))
    lines += _elements("bridge", table, "places", before.places, after.places)
    lines += _elements("bridge", table, "links", before.links, after.links)
    for name in sorted(before.chains.keys() - after.chains.keys()):
        lines += [f"flush chain {ip} {table} {name}", f"delete chain {ip} {table} {name}"]
    for name in sorted(before.members.keys() - after.members.keys()):
        lines.append(f"delete set {ip} {table} {name}")
    return "".join(f"{line}\n" for line in lines)


def _jumps(map: Mapping[str, str]) -> set[str]:
    return {f"{key} : jump {chain}" for key, chain in map.items()}


def _elements(family: str, table: str, name: str, before: Set[str], after: Set[str]) -> list[str]:
    """Removals first: a key of a map may stay with another value."""
    lines: list[str] = []
    for verb, found in (("delete", before - after), ("add", after - before)):
        if found:
            lines.append(f"{verb} element {family} {table} {name} {{ {', '.join(sorted(found))} }}")
    return lines
