"""How a port gets its link: a veth into a namespace, or a TAP. Everything here runs in the thread of the layer's namespace."""

import errno
import fcntl
import os
import struct
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path

from lamella.host.network import forwarding, rtnetlink
from lamella.host.network.driver import DesiredNetwork, DesiredPort
from lamella.host.network.names import bridge_name, gateway_name, port_name
from lamella.host.network.namespace import Seat
from lamella.host.network.rtnetlink import RouteSocket
from lamella.model.errors import Conflict, NotFound, Unavailable

INTERFACE = "eth0"

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


def gateway_mac(network: DesiredNetwork) -> str:
    """What instances know their gateway by, whether the bridge is that or a router."""
    return "02:" + IPv4Address(network.gateway).packed.hex(":") + ":01"


def ensure_bridge(seat: Seat, network: DesiredNetwork) -> int:
    """The network's bridge, with the gateway's address unless a router has that; returns its index."""
    name, routed = bridge_name(network.id), bool(network.router)
    # An address of its own: otherwise the bridge takes the lowest of its ports', and changes as they come and go.
    mac = gateway_mac(network)
    if routed:
        mac = "06" + mac[2:]
    link = seat.route.link(name)
    if link is not None and link.up and link.mtu == network.mtu and link.mac == mac:
        return link.index
    if not routed:
        seat.route.send(rtnetlink.delete_link(gateway_name(network.id)))
    seat.route.send(
        rtnetlink.add_bridge(name, mac=mac, mtu=network.mtu),
        rtnetlink.set_link(name, mtu=network.mtu, alias=network.id, mac=mac),
    )
    link = seat.route.link(name)
    if link is None:
        raise OSError(errno.ENODEV, f"bridge {name} vanished")
    gateway = IPv4Interface(f"{network.gateway}/{network.subnet.partition('/')[2]}")
    if routed:
        seat.route.send(rtnetlink.delete_address(link.index, gateway))
        # Else it would answer for what other networks of the layer have, which may have the same addresses.
        forwarding.set_sysctl(f"conf/{name}/arp_ignore", "1")
    else:
        seat.route.send(rtnetlink.add_address(link.index, gateway))
    return link.index


def join_namespace(seat: Seat, port: DesiredPort, network: DesiredNetwork, netns: Path) -> None:
    """A veth between the network's bridge and the namespace at *netns*, set up on both sides. An old link of the port goes.

    :raise NotFound: when there is no namespace at *netns*.
    """
    try:
        namespace = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(
            f"there is no network namespace at {netns}: {error.strerror}", hint="the instance may have ended"
        ) from error
    try:
        _plug(seat, port, network, namespace)
        with seat.visit(namespace):
            inside = RouteSocket()
            if port.address6:
                _listen_to_no_router()
        try:
            _configure(inside, port, network)
        finally:
            inside.close()
    except OSError:
        with suppress(OSError):
            seat.route.send(rtnetlink.delete_link(port_name(port.id)))
        raise
    finally:
        os.close(namespace)


def _plug(seat: Seat, port: DesiredPort, network: DesiredNetwork, namespace: int) -> None:
    name = port_name(port.id)
    pair = rtnetlink.add_veth(
        name,
        peer=INTERFACE,
        peer_namespace=namespace,
        peer_mac=port.mac,
        mtu=network.mtu,
        master=ensure_bridge(seat, network),
    )
    label = rtnetlink.set_link(name, alias=port.id)
    try:
        seat.route.send(pair, label)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
        # The link of an earlier start, whose namespace the kernel is still taking down.
        seat.route.send(rtnetlink.delete_link(name))
        seat.route.send(pair, label)


def _listen_to_no_router() -> None:
    """Of the instance's namespace: its addresses and routes are those that it is given; no advertisement adds any."""
    forwarding.set_sysctl(f"conf/{INTERFACE}/disable_ipv6", "0", family="ipv6")
    forwarding.set_sysctl(f"conf/{INTERFACE}/accept_ra", "0", family="ipv6")


def _configure(inside: RouteSocket, port: DesiredPort, network: DesiredNetwork) -> None:
    link = inside.link(INTERFACE)
    if link is None:
        raise OSError(errno.ENODEV, f"{INTERFACE} vanished from the instance's namespace")
    inside.send(
        rtnetlink.set_link("lo"),
        rtnetlink.set_link(INTERFACE),
        rtnetlink.add_address(link.index, IPv4Interface(port.address)),
        rtnetlink.add_default_route(IPv4Address(network.gateway), link.index),
    )
    if port.address6:
        inside.send(
            rtnetlink.add_address(link.index, IPv6Interface(port.address6)),
            rtnetlink.add_default_route(IPv6Address(network.gateway6), link.index),
        )


def make_tap(seat: Seat, port: DesiredPort, network: DesiredNetwork) -> int:
    """A TAP on the network's bridge that lives as long as its descriptor, which is returned and belongs to the caller.

    :raise Conflict: when a running process holds the port's TAP.
    :raise Unavailable: when the host has no /dev/net/tun.
    """
    name = port_name(port.id)
    bridge = ensure_bridge(seat, network)
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Unavailable(
            f"/dev/net/tun cannot be opened: {error.strerror}", hint="load the kernel module tun"
        ) from error
    try:
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, request)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Conflict(f"the TAP of port {port.id} is in use by a running machine") from error
            raise
        seat.route.send(rtnetlink.set_link(name, master=bridge, mtu=network.mtu, alias=port.id))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
