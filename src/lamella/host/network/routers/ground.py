"""One router in the kernel: its namespace, its legs, its routes and its rules, made as they are asked. In the layer's thread."""

import json
import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any, cast

import msgspec

from lamella.host.network import attach, forwarding, plan, rtnetlink
from lamella.host.network.driver import DesiredNetwork
from lamella.host.network.names import GATEWAY_PREFIX, gateway_name, router_name
from lamella.host.network.namespace import Seat
from lamella.host.network.nft import Nft
from lamella.host.network.plan import Transfer
from lamella.host.network.routers.desired import DesiredRouter
from lamella.host.network.routers.rules import UPLINK
from lamella.host.network.routers.spaces import Spaces
from lamella.host.network.rtnetlink import RouteSocket

# The link to the layer is no bottleneck of packet size: paths are discovered on the links beyond.
_MTU = 65535

_Route = tuple[IPv4Network, int, IPv4Address]


class Inside(msgspec.Struct, frozen=True):
    """Sockets in a router's namespace, whose descriptor is ``space``."""

    space: int
    route: RouteSocket
    nft: Nft


@contextmanager
def inside(seat: Seat, space: int) -> Generator[Inside]:
    """*space* is closed at the end."""
    try:
        with seat.visit(space):
            route, nft = RouteSocket(), Nft()
        try:
            yield Inside(space, route, nft)
        finally:
            nft.close()
            route.close()
    finally:
        os.close(space)


def joined(seat: Seat, router: str, there: Inside, taken: Iterable[IPv4Network]) -> Transfer:
    """Its link to the layer, made or found; *taken* are networks that it must not cover."""
    name = router_name(router)
    link, far = seat.route.link(name), there.route.link(UPLINK)
    if link is None or far is None:
        if link is not None:
            seat.route.send(rtnetlink.delete_link(name))
        if far is not None:
            there.route.send(rtnetlink.delete_link(UPLINK))
        seat.route.send(
            rtnetlink.add_veth(name, peer=UPLINK, peer_namespace=there.space, mtu=_MTU),
            rtnetlink.set_link(name, alias=router),
        )
        link, far = seat.route.link(name), there.route.link(UPLINK)
    if link is None or far is None:
        raise OSError(f"link {name} vanished")
    between = transfer(seat, router)
    if between is None:
        between = plan.transfer(router, [*taken, *(route.destination for route in seat.route.routes())])
    seat.route.send(rtnetlink.set_link(name), rtnetlink.add_address(link.index, between.host))
    there.route.send(
        rtnetlink.set_link("lo"),
        rtnetlink.set_link(UPLINK),
        rtnetlink.add_address(far.index, between.layer),
        rtnetlink.add_default_route(IPv4Address(between.host.ip), far.index),
    )
    with seat.visit(there.space):
        forwarding.set_sysctl("ip_forward", "1")
        forwarding.set_sysctl("conf/all/send_redirects", "0")
        forwarding.set_sysctl("conf/default/send_redirects", "0")
    return between


def transfer(seat: Seat, router: str) -> Transfer | None:
    """What the router's link to the layer has."""
    link = seat.route.link(router_name(router))
    if link is None:
        return None
    for route in seat.route.routes():
        if route.link == link.index and route.destination.prefixlen == 30:
            return Transfer(route.destination)
    return None


def plug(seat: Seat, there: Inside, networks: Mapping[str, DesiredNetwork]) -> None:
    """A leg on each of *networks* that bears its gateway, and no other leg."""
    wanted = {gateway_name(network.id): network for network in networks.values()}
    for link in there.route.links():
        if link.name.startswith(GATEWAY_PREFIX) and link.name not in wanted:
            there.route.send(rtnetlink.delete_link(link.name))
    for name, network in wanted.items():
        bridge = attach.ensure_bridge(seat, network)
        near, far = seat.route.link(name), there.route.link(name)
        if near is None or far is None or far.mac != attach.gateway_mac(network):
            if near is not None:
                seat.route.send(rtnetlink.delete_link(name))
            if far is not None:
                there.route.send(rtnetlink.delete_link(name))
            seat.route.send(
                rtnetlink.add_veth(
                    name,
                    peer=name,
                    peer_namespace=there.space,
                    peer_mac=attach.gateway_mac(network),
                    mtu=network.mtu,
                    master=bridge,
                )
            )
            far = there.route.link(name)
        seat.route.send(rtnetlink.set_link(name, master=bridge, mtu=network.mtu, alias=network.id))
        if far is None:
            raise OSError(f"link {name} vanished")
        length = IPv4Network(network.subnet).prefixlen
        there.route.send(
            rtnetlink.set_link(name, mtu=network.mtu),
            rtnetlink.add_address(far.index, IPv4Interface(f"{network.gateway}/{length}")),
        )


def lead(there: Inside, router: DesiredRouter, networks: Mapping[str, DesiredNetwork]) -> None:
    """Exactly the router's static routes."""
    wanted, present = _routes(there, router, networks)
    there.route.send(
        *(rtnetlink.delete_route(*one) for one in present - wanted),
        *(rtnetlink.add_route(*one) for one in wanted - present),
    )


def _routes(
    there: Inside, router: DesiredRouter, networks: Mapping[str, DesiredNetwork]
) -> tuple[set[_Route], set[_Route]]:
    """By a gateway: what is to be there, and what is."""
    links = {
        IPv4Network(network.subnet): link.index
        for network in networks.values()
        if (link := there.route.link(gateway_name(network.id))) is not None
    }
    wanted: set[_Route] = set()
    for route in router.routes:
        via = IPv4Address(route.via)
        link = next((index for subnet, index in links.items() if via in subnet), None)
        if link is not None:
            wanted.add((IPv4Network(route.destination), link, via))
    present = {
        (route.destination, route.link, route.gateway)
        for route in there.route.routes()
        if route.gateway is not None and route.destination.prefixlen
    }
    return wanted, present


def remove(seat: Seat, spaces: Spaces, router: str) -> None:
    """All of it; gone already is fine."""
    space = spaces.open(router)
    if space is not None:
        with inside(seat, space) as there:
            for link in there.route.links():
                if link.name.startswith(GATEWAY_PREFIX):
                    there.route.send(rtnetlink.delete_link(link.name))
    seat.route.send(rtnetlink.delete_link(router_name(router)))
    spaces.remove(router)


def whole(
    seat: Seat, spaces: Spaces, router: DesiredRouter, table: str, networks: Mapping[str, DesiredNetwork], printed: str
) -> bool:
    """Whether its namespace is there, its rules as they were *printed*, its routes, and its legs to the layer and to those *networks* (by
    id) that are here."""
    space = spaces.open(router.id)
    if space is None:
        return False
    here = {id: networks[id] for id in router.networks if id in networks}
    with inside(seat, space) as there:
        ruled = ("ip", table) in there.nft.tables() and print_of(there.nft, table) == printed
        legs = {link.name for link in there.route.links() if link.up}
        wanted, present = _routes(there, router, here)
    outer = {link.name for link in seat.route.links() if link.up and link.master}
    names = set(map(gateway_name, here))
    joined = seat.route.link(router_name(router.id)) is not None
    return ruled and joined and wanted == present and legs >= {UPLINK, *names} and outer >= names


def print_of(nft: Nft, table: str) -> str:
    """What tells the rules of *table* in force from others: its listing, whatever numbers the kernel gave them."""
    return json.dumps([_plain(item) for item in nft.listing(f"list table ip {table}") if "metainfo" not in item])


def _plain(item: Any) -> Any:
    if isinstance(item, dict):
        parts = cast("dict[str, Any]", item)
        # Elements of a set come in no order.
        return {
            key: sorted(json.dumps(_plain(one)) for one in value) if key == "elem" else _plain(value)
            for key, value in sorted(parts.items())
            if key != "handle"
        }
    return [_plain(one) for one in cast("list[Any]", item)] if isinstance(item, list) else item
