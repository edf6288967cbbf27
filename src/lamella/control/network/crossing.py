"""A packet's way beyond its network, by routers and floating addresses, or none. Pure."""

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network

import msgspec

from lamella.model.network import Network, Port
from lamella.model.router import Router
from lamella.model.trace import TraceStep
from lamella.model.verdict import Address

# What a router's link to the layer has its address from: hosts choose it, and nobody meets it elsewhere.
_TRANSFER = IPv4Address("100.64.0.1")


class Roads(msgspec.Struct, frozen=True, kw_only=True):
    """Networks and routers by id, all ports, and floating addresses with the id of the port that each leads to."""

    networks: Mapping[str, Network]
    ports: Sequence[Port]
    routers: Mapping[str, Router] = {}
    floating: Mapping[IPv4Address, str] = {}


class Crossed(msgspec.Struct, frozen=True, kw_only=True):
    """What was said on the way, and to whom it came, if to anybody: ``source`` and ``destination`` are the packet's by then."""

    steps: list[TraceStep]
    source: Address
    destination: Address
    receiver: Port | None = None


def met(roads: Roads, source: Port) -> list[Port]:
    """Ports that *source* tells by their addresses: of its own network, and of those that a router joins it to."""
    router = roads.networks[source.spec.network].status.router
    if not router:
        return [port for port in roads.ports if not roads.networks[port.spec.network].status.router]
    return [port for port in roads.ports if roads.networks[port.spec.network].status.router == router]


def address_of(port: Port) -> IPv4Address:
    return IPv4Address(port.spec.address.partition("/")[0])


def beyond(roads: Roads, source: Port, destination: IPv4Address, *, echo: bool) -> Crossed:
    """From the network of *source* to *destination*, which is not on it; *echo*: the packet asks for one."""
    network = roads.networks[source.spec.network]
    router = roads.routers.get(network.status.router)
    if router is None:
        return _without_router(roads, source, network, destination)
    own = address_of(source)

    def end(where: str, passes: bool, text: str, receiver: Port | None = None) -> Crossed:
        return Crossed(
            steps=[TraceStep(where=where, passes=passes, because=text)],
            source=own,
            destination=destination,
            receiver=receiver,
        )

    for id in router.spec.networks:
        other = roads.networks[id]
        if destination in IPv4Network(other.spec.subnet):
            if str(destination) == other.status.gateway:
                return end("router", echo, f"{destination} is router {router.name} itself: it answers an ICMP echo")
            receiver = next((port for port in met(roads, source) if address_of(port) == destination), None)
            if receiver is None:
                return end("router", False, f"nobody has {destination} on network {other.name}")
            return end("router", True, f"router {router.name} carries it to network {other.name}", receiver)
    routes = [one for one in router.spec.routes if destination in IPv4Network(one.destination)]
    if routes:
        route = max(routes, key=lambda one: IPv4Network(one.destination).prefixlen)
        via = next((port for port in met(roads, source) if str(address_of(port)) == route.via), None)
        if via is not None and via.spec.firewalls:
            return end("router", False, f"{route.via} has firewalls, so it is sent nothing for other addresses")
        return end("router", True, f"router {router.name} leads to {route.destination} by {route.via}; it decides")
    target = _target(roads, destination)
    if target is not None and roads.networks[target.spec.network].status.router == router.id:
        # It comes back through the router, under an address that is answered through it.
        seen = _floating_of(roads, source) or IPv4Address(roads.networks[target.spec.network].status.gateway)
        return _floated(target, destination, seen, f"router {router.name} leads")
    if network.spec.isolated:
        return end("router", False, f"network {network.name} is isolated: router {router.name} does not lead out of it")
    if not router.spec.uplink:
        return end("router", False, f"router {router.name} has no uplink")
    leaving = _floating_of(roads, source)
    if target is not None:
        return _floated(target, destination, leaving or _TRANSFER, f"router {router.name} and the layer lead")
    if _inside(roads, destination):
        return end("router", False, f"{destination} is in the subnet of another network, and no router joins the two")
    how = f"under its floating address {leaving}" if leaving else "under the host's address"
    return end("uplink", True, f"it goes out by router {router.name} through the host, {how}; what is beyond decides")


def _without_router(roads: Roads, source: Port, network: Network, destination: IPv4Address) -> Crossed:
    target = _target(roads, destination)
    if network.spec.isolated:
        step = TraceStep(
            where="network", passes=False, because=f"network {network.name} is isolated: nothing goes out of it"
        )
    elif target is not None:
        return _floated(target, destination, _TRANSFER, "the layer leads")
    elif _inside(roads, destination):
        text = f"{destination} is in the subnet of another network, and networks do not reach each other"
        step = TraceStep(where="network", passes=False, because=text)
    else:
        text = "it goes out through the host, under the host's address; what is beyond decides"
        step = TraceStep(where="uplink", passes=True, because=text)
    return Crossed(steps=[step], source=address_of(source), destination=destination)


def _floated(target: Port, destination: IPv4Address, source: IPv4Address, who: str) -> Crossed:
    text = f"{who} floating address {destination} to {address_of(target)}"
    step = TraceStep(where="address", passes=True, because=text)
    return Crossed(steps=[step], source=source, destination=address_of(target), receiver=target)


def _target(roads: Roads, destination: IPv4Address) -> Port | None:
    id = roads.floating.get(destination)
    return next((port for port in roads.ports if port.id == id), None) if id else None


def _floating_of(roads: Roads, port: Port) -> IPv4Address | None:
    return next((address for address, id in roads.floating.items() if id == port.id), None)


def _inside(roads: Roads, destination: IPv4Address) -> bool:
    """Whether the layer itself has it: networks behind routers it does not see."""
    return any(
        destination in IPv4Network(one.spec.subnet)
        for one in roads.networks.values()
        if not one.status.router and not one.spec.external
    )
