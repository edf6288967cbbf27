"""The text of the rules of IPv6 in the two namespaces, in tables of their own (``<mark>-6``). Ports are elements (``plan``).

    bridge  set known       link . MAC . address of every port, its own and its link-local one
            set targets     the same, the address as a number: whom it may speak for in neighbour discovery
            set linked      link . MAC as a number: what it may give as its link's address there
            chain sent      marks what a port may send; the layer's own chain drops everything of IPv6 that bears no mark
            chain forward   what is meant for routers and DHCP servers goes to no other instance
    ip6     chain input     an echo, neighbours, and the services of a network at its own gateway
            chain forward   what stays on its network, where firewalls have it shown to these rules, and what goes out by the uplink
            set outbound    links of the networks that something goes out of

There they are as soon as one network has IPv6; they never change while the layer runs.
"""

from lamella.host.network.names import BRIDGE_PREFIX
from lamella.host.network.rules import IPV6
from lamella.host.network.six.plan import Uplink6

# Where clouds give out their hosts' secrets by IPv6: the metadata services of EC2 and of Google's.
_SECRETS = "fd00:ec2::254, fd20:ce::254"
# Before the layer's own chain, which drops what bears no mark, at -200.
_PRIORITY = -220
# Of the message: the target of a solicitation or advertisement of a neighbour, then its first option: type and length, and a MAC.
_TARGET, _OPTION, _OPTION_MAC = "@th,64,128", "@th,192,16", "@th,208,48"
# The same of a solicitation of routers, which has no target.
_EARLY_OPTION, _EARLY_MAC = "@th,64,16", "@th,80,48"
_SOURCE_LINK, _TARGET_LINK = "0x0101", "0x0201"


def host_rules(table: str, uplink: str, between: Uplink6) -> str:
    """The host's table, whole; *uplink* is its end. What comes by it is masqueraded once more: networks never meet the host's routes."""
    inner = between.layer.ip
    return f"""
add table ip6 {table}
add chain ip6 {table} guard {{ type filter hook prerouting priority raw; policy accept; }}
add chain ip6 {table} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
flush table ip6 {table}
add rule ip6 {table} guard iifname "{uplink}" ip6 saddr != {{ {inner}, fe80::/10 }} drop
add rule ip6 {table} postrouting oifname != "{uplink}" ip6 saddr {inner} masquerade
"""


def masquerading(table: str, uplink: str) -> str:
    """The layer's table that has what goes out by *uplink* look as if the layer sent it, whole."""
    return f"""
add table ip6 {table}
add chain ip6 {table} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
flush table ip6 {table}
add rule ip6 {table} postrouting oifname "{uplink}" masquerade
"""


def layer_rules(table: str, uplink: str) -> str:
    """Whole but for elements; running it again changes nothing that is in force. *table* is that of IPv6, *uplink* the layer's end.

    Of neighbour discovery (RFC 4861) a port may say what is true of itself: messages have no further headers (RFC 6980) and at most one
    option, which gives the port's own MAC. Detection of duplicate addresses asks for the port's own, with a nonce for option (RFC 7527).
    Router advertisements and redirects come from nobody but the layer, and so do answers of DHCPv6.
    """
    bridges = f'"{BRIDGE_PREFIX}*"'
    mark = f"meta mark set {IPV6}"
    sender, speaker = "iifname . ether saddr . ip6 saddr @known", f"iifname . ether saddr . {_TARGET} @targets"
    linked = f"iifname . {_OPTION_MAC} @linked"
    return f"""
add table bridge {table}
add set bridge {table} known {{ type ifname . ether_addr . ipv6_addr; }}
add set bridge {table} targets {{ typeof iifname . ether saddr . {_TARGET}; }}
add set bridge {table} linked {{ typeof iifname . {_OPTION_MAC}; }}
add chain bridge {table} neighbours
add chain bridge {table} sent {{ type filter hook prerouting priority {_PRIORITY}; policy accept; }}
add chain bridge {table} forward {{ type filter hook forward priority {_PRIORITY}; policy accept; }}
add table ip6 {table}
add set ip6 {table} bridged {{ type ifname . ifname; }}
add set ip6 {table} gateways {{ type ifname . ipv6_addr; }}
add set ip6 {table} outbound {{ type ifname; }}
add chain ip6 {table} input {{ type filter hook input priority filter; policy drop; }}
add chain ip6 {table} forward {{ type filter hook forward priority filter; policy drop; }}
flush table bridge {table}
flush table ip6 {table}
add rule bridge {table} sent ether type != ip6 accept
add rule bridge {table} sent icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, \
nd-redirect }} goto neighbours
add rule bridge {table} sent udp sport 547 udp dport 546 accept
add rule bridge {table} sent {sender} {mark}
add rule bridge {table} neighbours ip6 nexthdr != icmpv6 accept
add rule bridge {table} neighbours icmpv6 type nd-neighbor-solicit ip6 saddr :: ip6 length {{ 24, 32 }} {speaker} {mark} accept
add rule bridge {table} neighbours icmpv6 type nd-router-solicit ip6 saddr :: \
ip6 length 8 {mark} accept
add rule bridge {table} neighbours iifname . ether saddr . ip6 saddr != @known accept
add rule bridge {table} neighbours icmpv6 type nd-neighbor-solicit ip6 length 24 {mark} accept
add rule bridge {table} neighbours icmpv6 type nd-neighbor-solicit ip6 length 32 {_OPTION} {_SOURCE_LINK} {linked} {mark} accept
add rule bridge {table} neighbours icmpv6 type nd-neighbor-advert ip6 length 24 {speaker} {mark} accept
add rule bridge {table} neighbours icmpv6 type nd-neighbor-advert ip6 length 32 {_OPTION} {_TARGET_LINK} {linked} {speaker} \
{mark} accept
add rule bridge {table} neighbours icmpv6 type nd-router-solicit ip6 length 8 {mark} accept
add rule bridge {table} neighbours icmpv6 type nd-router-solicit ip6 length 16 {_EARLY_OPTION} {_SOURCE_LINK} \
iifname . {_EARLY_MAC} @linked {mark} accept
add rule bridge {table} forward ether type ip6 icmpv6 type nd-router-solicit drop
add rule bridge {table} forward ether type ip6 udp dport {{ 546, 547 }} drop
add rule ip6 {table} input iifname "lo" accept
add rule ip6 {table} input ct state established,related accept
add rule ip6 {table} input icmpv6 type {{ echo-request, nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept
add rule ip6 {table} input iifname {bridges} udp dport 547 accept
add rule ip6 {table} input iifname . ip6 daddr @gateways meta l4proto {{ tcp, udp }} th dport 53 accept
add rule ip6 {table} forward ct state established,related accept
add rule ip6 {table} forward ct state invalid drop
add rule ip6 {table} forward iifname . oifname @bridged accept
add rule ip6 {table} forward ip6 daddr {{ {_SECRETS} }} drop
add rule ip6 {table} forward iifname @outbound oifname "{uplink}" accept
add rule ip6 {table} forward iifname {bridges} oifname "{uplink}" reject with icmpv6 type admin-prohibited
"""
