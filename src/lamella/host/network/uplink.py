"""The uplink: a routed veth pair that joins the layer's namespace to the host's, on a /30 of its own."""

from ipaddress import IPv4Interface
from pathlib import Path

from lamella.host.network import forwarding, rtnetlink
from lamella.host.network.namespace import Seat
from lamella.host.network.plan import Transfer
from lamella.host.network.rtnetlink import RouteSocket

# Neither end is a bottleneck of packet size: paths are discovered on the links beyond.
_MTU = 65535


def connect(host: Seat, layer: int, names: tuple[str, str], between: Transfer) -> None:
    """In the host's thread: make the pair (*layer* is a descriptor of the layer's namespace), give our end its address.

    There already is fine. One that leads elsewhere goes: somebody keeps the namespace of a room that is gone.
    """
    ours, theirs = names
    if host.route.link(ours) is not None and not _leads(host, layer, theirs):
        host.route.send(rtnetlink.delete_link(ours))
    if host.route.link(ours) is None:
        host.route.send(rtnetlink.add_veth(ours, peer=theirs, peer_namespace=layer, mtu=_MTU))
    _address(host, ours, between.host)
    forwarding.set_sysctl(f"conf/{ours}/route_localnet", "1")
    forwarding.set_sysctl(f"conf/{ours}/send_redirects", "0")


def _leads(host: Seat, layer: int, name: str) -> bool:
    with host.visit(layer):
        inside = RouteSocket()
    try:
        return inside.link(name) is not None
    finally:
        inside.close()


def settle(layer: Seat, name: str, between: Transfer) -> None:
    """In the layer's thread: our end's address, the default route, forwarding, and bridged traffic kept off the IP rules."""
    index = _address(layer, name, between.layer)
    layer.route.send(rtnetlink.set_link("lo"), rtnetlink.add_default_route(between.host.ip, index))
    forwarding.set_sysctl("ip_forward", "1")
    forwarding.set_sysctl("conf/all/send_redirects", "0")
    for family in ("ip", "ip6", "arp"):
        switch = Path(f"/proc/sys/net/bridge/bridge-nf-call-{family}tables")
        if switch.exists():
            switch.write_text("0")


def _address(seat: Seat, name: str, address: IPv4Interface) -> int:
    link = seat.route.link(name)
    if link is None:
        raise OSError(f"link {name} is not there")
    seat.route.send(rtnetlink.set_link(name), rtnetlink.add_address(link.index, address))
    return link.index
