"""What lets instances reach the services of their network, as rules of nftables computed from values alone.

In tables of their own (``<mark>-s``), in the layer's namespace:

    bridge  set clients      link . MAC . the same as a number, of every port: what may ask for an address, before it has one
            chain asked      marks their requests, which the layer's own rules let by then: everything else without the port's address is
                             dropped there. Within the request, too, is the port's MAC: nobody gives back what is another's
            chain forward    DHCP does not go from instance to instance: nobody plays the server, nobody hears the others ask

and wherever gateways are, there and in the namespaces of routers:

    ip      set resolvers    link . gateway: a network's names are told on that network alone
            map metadata     link . 169.254.169.254 -> gateway . port: where the layer answers for it
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from lamella.host.network.driver import DesiredPort
from lamella.host.network.names import BRIDGE_PREFIX, GATEWAY_PREFIX, port_name
from lamella.host.network.rules import ASKS_FOR_ADDRESS, METADATA, METADATA_PORT
from lamella.host.network.services.plan import Service, Site

# Before the layer's own chain, which drops what it does not know, at -200.
_PRIORITY = -210
# chaddr of a BOOTP message, behind the header of UDP.
_CHADDR = "@th,288,48"


class Doors(msgspec.Struct, frozen=True, kw_only=True):
    """Elements as nft writes them, of one namespace."""

    clients: frozenset[str] = frozenset()
    resolvers: frozenset[str] = frozenset()
    metadata: frozenset[str] = frozenset()


def doors(sites: Iterable[Site], services: Iterable[Service], ports: Iterable[DesiredPort]) -> dict[Path | None, Doors]:
    """What is to be in force, by namespace: *services* are those that dnsmasq answers, *sites* where metadata are told."""
    places, services = list(sites), list(services)
    served = {service.network for service in services}
    clients = frozenset(_client(port) for port in ports if port.network in served)
    return {
        netns: Doors(
            clients=clients if netns is None else frozenset(),
            resolvers=frozenset(_place(one.site) for one in services if one.site.netns == netns),
            metadata=frozenset(
                f'"{site.interface}" . {METADATA} : {site.gateway} . {METADATA_PORT}'
                for site in places
                if site.netns == netns
            ),
        )
        for netns in {None, *(site.netns for site in places)}
    }


def _client(port: DesiredPort) -> str:
    mac = port.mac.lower()
    return f'"{port_name(port.id)}" . {mac} . {int(mac.replace(":", ""), 16)}'


def _place(site: Site) -> str:
    return f'"{site.interface}" . {site.gateway}'


def frame(table: str, netns: Path | None) -> str:
    """The tables of one namespace, empty: nobody is served. Whole, whatever was there."""
    if netns is not None:
        return _gateways(table, GATEWAY_PREFIX)
    return f"""
add table bridge {table}
delete table bridge {table}
add table bridge {table}
add set bridge {table} clients {{ typeof iifname . ether saddr . {_CHADDR}; }}
add chain bridge {table} asked
add chain bridge {table} prerouting {{ type filter hook prerouting priority {_PRIORITY}; policy accept; }}
add chain bridge {table} forward {{ type filter hook forward priority {_PRIORITY}; policy accept; }}
add rule bridge {table} prerouting iifname != "{GATEWAY_PREFIX}*" ether type ip udp dport 67 goto asked
add rule bridge {table} asked iifname . ether saddr . {_CHADDR} @clients ip saddr 0.0.0.0 ip daddr 255.255.255.255 \
udp sport 68 meta mark set {ASKS_FOR_ADDRESS}
add rule bridge {table} asked iifname . ether saddr . {_CHADDR} @clients accept
add rule bridge {table} asked drop
add rule bridge {table} forward oifname "{GATEWAY_PREFIX}*" ether type ip udp dport 67 accept
add rule bridge {table} forward iifname "{GATEWAY_PREFIX}*" ether type ip udp dport 68 accept
add rule bridge {table} forward ether type ip udp dport {{ 67, 68 }} drop
{_gateways(table, BRIDGE_PREFIX)}"""


def _gateways(table: str, prefix: str) -> str:
    return f"""
add table ip {table}
delete table ip {table}
add table ip {table}
add set ip {table} resolvers {{ type ifname . ipv4_addr; }}
add map ip {table} metadata {{ type ifname . ipv4_addr : ipv4_addr . inet_service; }}
add chain ip {table} prerouting {{ type nat hook prerouting priority -101; policy accept; }}
add chain ip {table} input {{ type filter hook input priority -10; policy accept; }}
add rule ip {table} prerouting ip daddr {METADATA} tcp dport 80 dnat ip to iifname . ip daddr map @metadata
add rule ip {table} input iifname "{prefix}*" meta l4proto {{ tcp, udp }} th dport 53 \
iifname . ip daddr != @resolvers drop
"""


def change(table: str, before: Doors, after: Doors) -> str:
    """The transaction that leads from *before* to *after*; empty when they are the same."""
    lines: list[str] = []
    for family, name, old, new in (
        ("bridge", "clients", before.clients, after.clients),
        ("ip", "resolvers", before.resolvers, after.resolvers),
        ("ip", "metadata", before.metadata, after.metadata),
    ):
        for verb, found in (("delete", old - new), ("add", new - old)):
            if found:
                lines.append(f"{verb} element {family} {table} {name} {{ {', '.join(sorted(found))} }}\n")
    return "".join(lines)
