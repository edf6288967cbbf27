"""The text of the rules that routers need, computed from values alone: a table in each router's namespace, and one in the layer's.

In a router's namespace, its legs bear the names of :func:`gateway_name`, and ``up`` leads to the layer:

    map inbound     protocol . port at ``up`` -> address . port of an instance: what is published
    map floating    address from outside -> address of a port, and ``leaving`` the other way
    set isolated    legs on networks that nothing goes out of
    set turning     leg . leg of every network: what is led back to where it came from is answered past the router, which sees half of it

Whoever on the router's networks asks for a floating address comes back through the router (its flow bears a mark): an answer that took
the short way would come from an address that nobody asked.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, collapse_addresses

from lamella.host.network.driver import DesiredNetwork, DesiredPort
from lamella.host.network.names import BRIDGE_PREFIX, GATEWAY_PREFIX, ROUTER_PREFIX, gateway_name, port_name
from lamella.host.network.plan import PROTOCOLS, Forward, Transfer, address_of
from lamella.host.network.routers.desired import DesiredRouter
from lamella.host.network.rules import METADATA, METADATA_PORT

UPLINK = "up"
_HAIRPIN = "0x1a"
_LEGS = f'"{GATEWAY_PREFIX}*"'


def router_rules(
    table: str,
    router: DesiredRouter,
    networks: Iterable[DesiredNetwork],
    between: Transfer,
    forwards: Iterable[Forward],
) -> str:
    """All of the router's table, in place of what was there. *between* joins it to the layer, whose end is the outer one."""
    own = between.layer.ip
    inbound = {
        f"{PROTOCOLS[one.protocol]} . {one.uplink_port}": f"{one.address} . {one.port}"
        for one in forwards
        if one.via == str(own)
    }
    legs = {f'"{gateway_name(network.id)}"': network for network in networks}
    isolated = [leg for leg, network in legs.items() if network.isolated]
    out = f'add rule ip {table} forward iifname {_LEGS} oifname "{UPLINK}" accept' if router.uplink else ""
    return f"""
add table ip {table}
delete table ip {table}
add table ip {table}
add map ip {table} inbound {{ type inet_proto . inet_service : ipv4_addr . inet_service; {_map(inbound)}}}
add set ip {table} floats {{ type ipv4_addr; {_set(router.floating)}}}
add map ip {table} floating {{ type ipv4_addr : ipv4_addr; {_map(router.floating)}}}
add map ip {table} leaving {{ type ipv4_addr : ipv4_addr; {_map({to: at for at, to in router.floating.items()})}}}
add set ip {table} isolated {{ type ifname; {_set(isolated)}}}
add set ip {table} turning {{ type ifname . ifname; {_set(f"{leg} . {leg}" for leg in legs)}}}
add chain ip {table} prerouting {{ type nat hook prerouting priority dstnat; policy accept; }}
add chain ip {table} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
add chain ip {table} input {{ type filter hook input priority filter; policy drop; }}
add chain ip {table} forward {{ type filter hook forward priority filter; policy drop; }}
add rule ip {table} prerouting iifname "{UPLINK}" ip daddr {own} dnat ip to meta l4proto . th dport map @inbound
add rule ip {table} prerouting iifname {_LEGS} ip daddr @floats ct mark set {_HAIRPIN}
add rule ip {table} prerouting dnat ip to ip daddr map @floating
add rule ip {table} postrouting oifname {_LEGS} ct mark {_HAIRPIN} snat ip to ip saddr map @leaving
add rule ip {table} postrouting oifname {_LEGS} ct mark {_HAIRPIN} masquerade
add rule ip {table} postrouting oifname "{UPLINK}" snat ip to ip saddr map @leaving
add rule ip {table} postrouting oifname "{UPLINK}" masquerade
add rule ip {table} input iifname "lo" accept
add rule ip {table} input ct state established,related accept
add rule ip {table} input iifname {_LEGS} icmp type echo-request accept
add rule ip {table} input iifname {_LEGS} udp dport {{ 53, 67 }} accept
add rule ip {table} input iifname {_LEGS} tcp dport 53 accept
add rule ip {table} input iifname {_LEGS} tcp dport {METADATA_PORT} ct original ip daddr {METADATA} accept
add rule ip {table} forward ct state established,related accept
add rule ip {table} forward iifname . oifname @turning ip daddr != 169.254.0.0/16 accept
add rule ip {table} forward ct state invalid drop
add rule ip {table} forward ip daddr 169.254.0.0/16 drop
add rule ip {table} forward iifname "{UPLINK}" ct status dnat accept
add rule ip {table} forward iifname @isolated oifname "{UPLINK}" drop
add rule ip {table} forward iifname {_LEGS} oifname {_LEGS} accept
{out}
"""


def no_layer_rules(table: str) -> str:
    """While there are no routers: what every packet goes through costs every packet."""
    return f"add table ip {table}\ndelete table ip {table}\n"


def layer_rules(table: str, uplink: str, floating: Iterable[str]) -> str:
    """All of the layer's table for routers: what leaves by a *floating* address keeps it, and who comes from a network without a router
    is answered whatever its address is to the router. Instances reach floating addresses by it, and nothing that the host leads to a
    router for others: it may be published for the host alone."""
    floating = list(floating)
    bridges, routers = f'"{BRIDGE_PREFIX}*"', f'"{ROUTER_PREFIX}*"'
    return f"""
add table ip {table}
delete table ip {table}
add table ip {table}
add map ip {table} floating {{ type ipv4_addr : ipv4_addr; {_map({one: one for one in floating})}}}
add set ip {table} floats {{ type ipv4_addr; {_set(floating)}}}
add chain ip {table} forward {{ type filter hook forward priority 10; policy accept; }}
add chain ip {table} postrouting {{ type nat hook postrouting priority 99; policy accept; }}
add rule ip {table} forward iifname != "{uplink}" oifname {routers} ct state new ip daddr != @floats drop
add rule ip {table} forward iifname {bridges} oifname {routers} meta mark set {_HAIRPIN}
add rule ip {table} postrouting oifname "{uplink}" snat ip to ip saddr map @floating
add rule ip {table} postrouting oifname {routers} meta mark {_HAIRPIN} masquerade
"""


def host_elements(table: str, floating: Iterable[str], outside: Iterable[str]) -> str:
    """The addresses that may come in to the host by the uplink beside the layer's own: exactly *floating*; *outside* are prefixes."""
    # Such a set takes no two that overlap.
    prefixes = collapse_addresses(map(IPv4Network, outside))
    text = ""
    for name, elements in (("floating", sorted(floating)), ("outside", sorted(map(str, prefixes)))):
        text += f"flush set ip {table} {name}\n"
        text += f"add element ip {table} {name} {{ {', '.join(elements)} }}\n" if elements else ""
    return text


def permitted(table: str, routers: Iterable[DesiredRouter], ports: Iterable[DesiredPort]) -> str:
    """What lies behind ports by the routers' routes, as elements of the bridges' rules: those ports may send as it. Not those with
    firewalls, whose rules know them by their own address alone."""
    routing = [router for router in routers if router.routes]
    places = {(port.network, str(address_of(port))): port for port in ports if not port.firewalls} if routing else {}
    behind: dict[str, list[IPv4Network]] = {}
    for router in routing:
        for route in router.routes:
            for network in router.networks:
                if (port := places.get((network, route.via))) is not None:
                    place = f'"{port_name(port.id)}" . {port.mac.lower()}'
                    behind.setdefault(place, []).append(IPv4Network(route.destination))
    # Such a set takes no two that overlap.
    found = {f"{place} . {one}" for place, several in behind.items() for one in collapse_addresses(several)}
    text = f"flush set bridge {table} routed\n"
    return text + f"add element bridge {table} routed {{ {', '.join(sorted(found))} }}\n" if found else text


def _map(elements: Mapping[str, str]) -> str:
    found = ", ".join(f"{key} : {value}" for key, value in sorted(elements.items()))
    return f"elements = {{ {found} }}; " if found else ""


def _set(elements: Iterable[str]) -> str:
    found = ", ".join(sorted(elements))
    return f"elements = {{ {found} }}; " if found else ""
