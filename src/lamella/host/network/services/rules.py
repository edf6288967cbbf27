"""What lets instances reach the services of their network, as rules of nftables computed from values alone.

In the layer's namespace, in tables of their own (``<mark>-s``):

    bridge  set clients      link . MAC of every port: what may ask for an address, before it has one
            chain prerouting marks their requests, which the layer's own rules let by then: everything else without the port's address is
                             dropped there
            chain forward    DHCP does not go from instance to instance: nobody plays the server, nobody hears the others ask
    ip      set resolvers    bridge . gateway: a network's names are told on that network alone
"""

from collections.abc import Iterable

import msgspec

from lamella.host.network.driver import DesiredPort
from lamella.host.network.names import BRIDGE_PREFIX, port_name
from lamella.host.network.rules import ASKS_FOR_ADDRESS
from lamella.host.network.services.plan import Service

# Before the layer's own chain, which drops what it does not know, at -200.
_PRIORITY = -210


class Doors(msgspec.Struct, frozen=True, kw_only=True):
    """Elements as nft writes them."""

    clients: frozenset[str] = frozenset()
    resolvers: frozenset[str] = frozenset()


def doors(services: Iterable[Service], ports: Iterable[DesiredPort]) -> Doors:
    """What is to be in force."""
    services = list(services)
    served = {service.network for service in services}
    return Doors(
        clients=frozenset(f'"{port_name(port.id)}" . {port.mac.lower()}' for port in ports if port.network in served),
        resolvers=frozenset(
            f'"{one.site.interface}" . {one.site.gateway}' for one in services if one.site.netns is None
        ),
    )


def frame(table: str) -> str:
    """The two tables, empty: nobody is served. Whole, whatever was there."""
    return f"""
add table bridge {table}
delete table bridge {table}
add table bridge {table}
add set bridge {table} clients {{ type ifname . ether_addr; }}
add chain bridge {table} prerouting {{ type filter hook prerouting priority {_PRIORITY}; policy accept; }}
add chain bridge {table} forward {{ type filter hook forward priority {_PRIORITY}; policy accept; }}
add rule bridge {table} prerouting ether type ip ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 \
iifname . ether saddr @clients meta mark set {ASKS_FOR_ADDRESS}
add rule bridge {table} forward ether type ip udp dport {{ 67, 68 }} drop
add table ip {table}
delete table ip {table}
add table ip {table}
add set ip {table} resolvers {{ type ifname . ipv4_addr; }}
add chain ip {table} input {{ type filter hook input priority -10; policy accept; }}
add rule ip {table} input iifname "{BRIDGE_PREFIX}*" meta l4proto {{ tcp, udp }} th dport 53 \
iifname . ip daddr != @resolvers drop
"""


def change(table: str, before: Doors, after: Doors) -> str:
    """The transaction that leads from *before* to *after*; empty when they are the same."""
    lines: list[str] = []
    for family, name, old, new in (
        ("bridge", "clients", before.clients, after.clients),
        ("ip", "resolvers", before.resolvers, after.resolvers),
    ):
        for verb, found in (("delete", old - new), ("add", new - old)):
            if found:
                lines.append(f"{verb} element {family} {table} {name} {{ {', '.join(sorted(found))} }}\n")
    return "".join(lines)
