"""What comes from other hosts, as rules of nftables computed from values alone: ports that are there, and nothing else.

In the layer's namespace, in a table of its own (``<mark>-x``):

    bridge  set far          link . MAC . address of every port on another host
            chain prerouting marks what they send, which the layer's own rules let by then; everything else from a tunnel is dropped there

and in the host's, where tunnels end:

    ip      chain arrives    drops packets of our networks (by their number) that no host sent which has ports on them
            chain leaves     with it: connection tracking has no part in what tunnels carry; inside, it has
"""

from collections.abc import Iterable

from lamella.host.network.names import OVERLAY_PREFIX
from lamella.host.network.overlay.plan import PORT, Overlay
from lamella.host.network.rules import FROM_NEIGHBOUR

# Before the layer's own chain, which drops what it does not know, at -200.
_PRIORITY = -210
# The number behind the headers of UDP and VXLAN (RFC 7348, section 5).
_VNI = "@th,96,24"
FAR = ("bridge", "set", "far")


def frame(table: str) -> str:
    """The table in the layer, whole but for elements; running it again changes nothing that is in force."""
    tunnels = f'"{OVERLAY_PREFIX}*"'
    return f"""
add table bridge {table}
add set bridge {table} far {{ type ifname . ether_addr . ipv4_addr; }}
add chain bridge {table} prerouting {{ type filter hook prerouting priority {_PRIORITY}; policy accept; }}
flush table bridge {table}
add rule bridge {table} prerouting iifname {tunnels} ether type ip \
iifname . ether saddr . ip saddr @far meta mark set {FROM_NEIGHBOUR}
add rule bridge {table} prerouting iifname {tunnels} ether type arp \
iifname . arp saddr ether . arp saddr ip @far iifname . ether saddr . arp saddr ip @far meta mark set {FROM_NEIGHBOUR}
"""


def elements(table: str, gone: Iterable[str], come: Iterable[str]) -> str:
    """Lines that lead the set ``far`` from one content to another."""
    return "".join(
        f"{verb} element bridge {table} far {{ {key} }}\n"
        for verb, keys in (("delete", gone), ("add", come))
        for key in sorted(keys)
    )


def host_rules(table: str, overlay: Overlay) -> str:
    """The table in the host's namespace, anew. What others send each other over VXLAN passes by it."""
    numbers = {link: tunnel.vni for link, tunnel in overlay.tunnels.items()}
    local = ", ".join(sorted({tunnel.local for tunnel in overlay.tunnels.values()}))
    senders: dict[int, set[str]] = {vni: set() for vni in numbers.values()}
    for entry in overlay.forwards:
        senders[numbers[entry.link]].add(entry.to)
    here = f"udp dport {PORT} {_VNI}"
    lines = "".join(
        f"add rule ip {table} arrives ip daddr {{ {local} }} {here} {vni} ip saddr != {{ {', '.join(sorted(hosts))} }} drop\n"
        for vni, hosts in sorted(senders.items())
    )
    every = ", ".join(map(str, sorted(senders)))
    return f"""
add table ip {table}
add chain ip {table} arrives {{ type filter hook prerouting priority raw; policy accept; }}
add chain ip {table} leaves {{ type filter hook output priority raw; policy accept; }}
flush table ip {table}
{lines}add rule ip {table} arrives ip daddr {{ {local} }} {here} {{ {every} }} notrack
add rule ip {table} leaves ip saddr {{ {local} }} {here} {{ {every} }} notrack
"""


def no_host_rules(table: str) -> str:
    """Without it."""
    return f"add table ip {table}\ndelete table ip {table}\n"
