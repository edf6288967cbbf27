"""Links of networks and ports: what of them the kernel has, and what is put back that somebody undid."""

from collections.abc import Iterable, Mapping

from lamella.host.network import attach, rtnetlink
from lamella.host.network.driver import Attachment, DesiredNetwork, DesiredPort
from lamella.host.network.names import (
    BRIDGE_PREFIX,
    GATEWAY_PREFIX,
    OVERLAY_PREFIX,
    PORT_PREFIX,
    SHAPER_PREFIX,
    bridge_name,
    port_name,
)
from lamella.host.network.namespace import Seat
from lamella.host.network.six import dual_stack
from lamella.host.network.traffic import shaper


def attachment(port: DesiredPort, network: DesiredNetwork) -> Attachment:
    """What whoever runs in the instance is told of its port."""
    return Attachment(
        port=port.id,
        mac=port.mac,
        address=port.address,
        gateway=network.gateway,
        mtu=network.mtu,
        interface=attach.INTERFACE,
        address6=port.address6,
        gateway6=network.gateway6 if port.address6 else "",
    )


def filtered(port: DesiredPort) -> list[rtnetlink.Request]:
    """What shows the packets on the port's network to the firewalls."""
    name = bridge_name(port.network)
    families = (False, True) if port.address6 else (False,)
    return [rtnetlink.set_bridge_filtered(name, True, six=six) for six in families]


def unused(seat: Seat) -> set[str]:
    """Ids on bridges of ours that no port is on."""
    links = list(seat.route.links())
    used = {link.master for link in links if not link.name.startswith((GATEWAY_PREFIX, OVERLAY_PREFIX))}
    return {link.alias for link in links if link.name.startswith(BRIDGE_PREFIX) and link.index not in used}


def labels(seat: Seat) -> set[str]:
    """Ids on links of ports."""
    return {link.alias for link in seat.route.links() if link.name.startswith((PORT_PREFIX, SHAPER_PREFIX))}


def relink(seat: Seat, networks: Mapping[str, DesiredNetwork], ports: Iterable[DesiredPort]) -> None:
    """Bridges with their addresses, and the links that there are of *ports* in them, up, with their ceilings."""
    ports = list(ports)
    bridges = {network.id: attach.ensure_bridge(seat, network) for network in networks.values()}
    for network in networks.values():
        dual_stack.settle(seat, network, bridges[network.id])
    seat.route.send(
        *{request for port in ports if port.firewalls and port.network in networks for request in filtered(port)}
    )
    links = {link.name: link for link in seat.route.links()}
    for port in ports:
        link, bridge = links.get(port_name(port.id)), bridges.get(port.network)
        if link is not None and bridge is not None and (link.master != bridge or not link.up):
            seat.route.send(rtnetlink.set_link(link.name, master=bridge))
    for port in ports:
        if port_name(port.id) in links and port.network in networks:
            shaper.shape(seat, port, networks[port.network].mtu)
