"""The text of the rules in the two namespaces. They never change while the layer runs: ports are elements (``plan``)."""

from lamella.host.network.names import BRIDGE_PREFIX, GATEWAY_PREFIX, ROUTER_PREFIX
from lamella.host.network.plan import Transfer

# What the services' rules (services/rules.py) mark a request for an address with: its sender has none yet.
ASKS_FOR_ADDRESS = 0x64686370
# What the tunnels' rules (overlay/rules.py) mark frames from other hosts with, when they are of ports that are there.
FROM_NEIGHBOUR = 0x76786C6E
# Where instances ask for what is known of them, and the port of their gateway that answers.
METADATA, METADATA_PORT = "169.254.169.254", 9254

# What the rules of IPv6 (six/rules.py) mark a frame with: its sender may send it.
IPV6 = 0x69707636

# What comes to a balancer that reads HTTP bears this mark in the layer, and is let in.
BALANCED = 0x62616C37


def host_rules(table: str, uplink: str, between: Transfer) -> str:
    """The host's table, whole but for elements; running it again changes nothing that is in force.

    Outbound traffic comes masqueraded to the uplink's address from the layer already, so instance subnets never meet the
    host's routes; here it takes the host's address. ``guard`` makes up for ``route_localnet``, which lets replies to
    127.0.0.1 come back: nobody may come in by it. It also drops TCP segments without any flag, which no stack listens to, but
    some send (pasta of Debian 12, to announce a window): to connection tracking they are invalid, so they would not be led
    back to the instance, and the host would answer them with a reset that ends the instance's connection. What comes for an
    address of an external network (``outside``) that leads to nobody ends here: it would go back to who sent it here, and come again.
    """
    inner = between.layer.ip
    return f"""
add table ip {table}
add map ip {table} specific {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
add map ip {table} wildcard {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
add set ip {table} floating {{ type ipv4_addr; }}
add set ip {table} outside {{ type ipv4_addr; flags interval; }}
add chain ip {table} published
add chain ip {table} guard {{ type filter hook prerouting priority raw; policy accept; }}
add chain ip {table} prerouting {{ type nat hook prerouting priority dstnat; policy accept; }}
add chain ip {table} output {{ type nat hook output priority -100; policy accept; }}
add chain ip {table} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
add chain ip {table} forward {{ type filter hook forward priority filter; policy accept; }}
flush table ip {table}
add rule ip {table} guard iifname "{uplink}" ip daddr 127.0.0.0/8 drop
add rule ip {table} guard iifname "{uplink}" ip saddr != {inner} ip saddr != @floating drop
add rule ip {table} guard tcp flags & (fin | syn | rst | psh | ack | urg) == 0 drop
add rule ip {table} prerouting fib daddr type local jump published
add rule ip {table} output fib daddr type local jump published
add rule ip {table} published dnat ip to ip daddr . meta l4proto . th dport map @specific
add rule ip {table} published dnat ip to meta l4proto . th dport map @wildcard
add rule ip {table} postrouting oifname "{uplink}" ip saddr {{ 127.0.0.0/8, {inner} }} masquerade
add rule ip {table} postrouting oifname != "{uplink}" ip saddr {inner} masquerade
add rule ip {table} forward iifname != "{uplink}" ip daddr @outside ip daddr != @floating drop
"""


def layer_rules(table: str, uplink: str) -> str:
    """The layer's two tables, whole but for elements; running it again changes nothing that is in force.

    Instances reach their own network and, unless that is isolated, masqueraded whatever the host reaches but for link-local
    addresses (a cloud's metadata service gives out the host's credentials there); of the layer itself they reach an echo and
    the services of their network.
    Routers are joined by links of their own and have rules of their own (``routers.rules``). What lies behind a port by their routes, that
    port may send as (``routed``).
    """
    bridges, routers, gateways = (f'"{prefix}*"' for prefix in (BRIDGE_PREFIX, ROUTER_PREFIX, GATEWAY_PREFIX))
    return f"""
add table bridge {table}
add set bridge {table} known {{ type ifname . ether_addr . ipv4_addr; }}
add set bridge {table} routed {{ type ifname . ether_addr . ipv4_addr; flags interval; }}
add chain bridge {table} prerouting {{ type filter hook prerouting priority -200; policy drop; }}
add table ip {table}
add map ip {table} inbound {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
add set ip {table} isolated {{ type ifname; }}
add set ip {table} bridged {{ type ifname . ifname; }}
add chain ip {table} prerouting {{ type nat hook prerouting priority dstnat; policy accept; }}
add chain ip {table} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
add chain ip {table} input {{ type filter hook input priority filter; policy drop; }}
add chain ip {table} forward {{ type filter hook forward priority filter; policy drop; }}
flush table bridge {table}
flush table ip {table}
add rule bridge {table} prerouting ether type ip iifname . ether saddr . ip saddr @known accept
add rule bridge {table} prerouting meta mark {FROM_NEIGHBOUR} ether type {{ ip, arp }} accept
add rule bridge {table} prerouting ether type arp iifname . arp saddr ether . arp saddr ip @known \
iifname . ether saddr . arp saddr ip @known accept
add rule bridge {table} prerouting iifname {gateways} ether type {{ ip, arp }} accept
add rule bridge {table} prerouting ether type ip iifname . ether saddr . ip saddr @routed accept
add rule bridge {table} prerouting meta mark {ASKS_FOR_ADDRESS} ether type ip ip saddr 0.0.0.0 accept
add rule bridge {table} prerouting meta mark {IPV6} ether type ip6 accept
add rule ip {table} prerouting iifname "{uplink}" dnat ip to meta l4proto . th dport map @inbound
add rule ip {table} postrouting oifname "{uplink}" masquerade
add rule ip {table} input iifname "lo" accept
add rule ip {table} input ct state established,related accept
add rule ip {table} input icmp type echo-request accept
add rule ip {table} input meta mark {BALANCED} accept
add rule ip {table} input iifname {bridges} udp dport {{ 53, 67 }} accept
add rule ip {table} input iifname {bridges} tcp dport 53 accept
add rule ip {table} input iifname {bridges} tcp dport {METADATA_PORT} ct original ip daddr {METADATA} accept
add rule ip {table} forward ct state established,related accept
add rule ip {table} forward ct state invalid drop
add rule ip {table} forward iifname . oifname @bridged accept
add rule ip {table} forward ip daddr 169.254.0.0/16 drop
add rule ip {table} forward iifname "{uplink}" ct status dnat accept
add rule ip {table} forward iifname "{uplink}" oifname {routers} accept
add rule ip {table} forward iifname @isolated drop
add rule ip {table} forward iifname {bridges} oifname "{uplink}" accept
add rule ip {table} forward iifname {bridges} oifname {routers} accept
add rule ip {table} forward iifname {routers} oifname "{uplink}" accept
add rule ip {table} forward iifname {routers} oifname {routers} accept
"""
