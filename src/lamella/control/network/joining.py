"""What may be behind a router: in the transaction that changes it, networks are told, and what is wrong is said."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

import msgspec

from lamella.control.network.subnets import V4
from lamella.model.errors import Conflict, Invalid, NotFound
from lamella.model.network import Network
from lamella.model.router import FloatingAddress, Router, RouterSpec, StaticRoute
from lamella.store.store import Transaction

_NETWORKS, _ROUTES = "spec.networks", "spec.routes"


def join(tx: Transaction, router: Router, wanted: RouterSpec) -> RouterSpec:
    """*wanted* as it is kept, with networks by id; those that join or leave *router* are changed.

    :raise NotFound: when there is no such network. :raise Conflict: when that cannot be as things are.
    :raise Invalid: for a route that leads nowhere.
    """
    networks = [_find(tx, router, name) for name in dict.fromkeys(wanted.networks)]
    networks = list({network.id: network for network in networks}.values())
    _check_apart(networks)
    routes = checked_routes(wanted.routes, networks)
    kept = {network.id for network in networks}
    left = [network for id in router.spec.networks if id not in kept and (network := tx.by_id(id)) is not None]
    _check_floating(tx, router, wanted, {network.id for network in left})
    for network in left:
        leave(tx, router, network)
    for network in networks:
        if network.status.router != router.id:
            _enter(tx, router, network)
    return RouterSpec(networks=[network.id for network in networks], uplink=wanted.uplink, routes=routes)


def begin(tx: Transaction, router: Router, network: Network) -> Network:
    """*network* is new, and behind *router* from the first moment on. :raise Conflict: when one of the router's networks overlaps it."""
    router.spec = join(tx, router, msgspec.structs.replace(router.spec, networks=[*router.spec.networks, network.id]))
    tx.update(router)
    return tx.by_id(network.id) or network


def check_unrouted(network: Network) -> None:
    """:raise Conflict: when a router has its gateway: balancers act where the layer has it."""
    if network.status.router:
        raise Conflict(
            f"network {network.name} is behind a router, and balancers have addresses of networks without one",
            hint="name another network: --network default",
            field="network",
        )


def forget(tx: Transaction, network: Network) -> None:
    """*network* is about to go: its router knows it no more. :raise Conflict: when a route of the router goes by it."""
    router: Router | None = tx.by_id(network.status.router) if network.status.router else None
    if router is None:
        return
    subnet = IPv4Network(network.spec.subnet)
    for route in router.spec.routes:
        if IPv4Address(route.via) in subnet:
            raise Conflict(
                f"router {router.name} leads to {route.destination} by {route.via} of network {network.name}",
                hint=f"lamella router set {router.name} --route …: say the routes that are left",
            )
    networks = [id for id in router.spec.networks if id != network.id]
    router.spec = msgspec.structs.replace(router.spec, networks=networks)
    tx.update(router)


def _find(tx: Transaction, router: Router, name: str) -> Network:
    network = tx.get("network", router.project, name) or tx.by_id(name)
    if network is None or network.kind != "network" or network.project != router.project:
        raise NotFound(
            f"no network is called {name!r} in project {router.project}",
            hint="lamella network ls lists them",
            field=_NETWORKS,
        )
    if network.spec.external:
        raise Conflict(
            f"network {network.name} is outside: routers lead to it by their uplink",
            hint="lamella router create NAME --network FRONT --uplink",
            field=_NETWORKS,
        )
    if network.spec.subnet6:
        raise Conflict(
            f"network {network.name} has IPv6 ({network.spec.subnet6}), and routers carry IPv4 alone",
            hint="lamella network create NAME --router ROUTER makes one of IPv4",
            field=_NETWORKS,
        )
    balancer = next((one for one in tx.list("balancer") if one.spec.network == network.id), None)
    if balancer is not None:
        raise Conflict(
            f"balancer {balancer.name} has an address of network {network.name}, and no router may have that",
            hint=f"lamella balancer rm {balancer.name}, or give it another network",
            field=_NETWORKS,
        )
    other = tx.by_id(network.status.router) if network.status.router not in ("", router.id) else None
    if other is not None:
        raise Conflict(
            f"network {network.name} is behind router {other.name} already, and a network has one gateway",
            hint=f"join both networks by one router, or: lamella router set {other.name} --network …, without it",
            field=_NETWORKS,
        )
    return network


def _check_apart(networks: list[Network]) -> None:
    for number, one in enumerate(networks):
        for other in networks[:number]:
            if IPv4Network(one.spec.subnet).overlaps(IPv4Network(other.spec.subnet)):
                raise Conflict(
                    f"networks {other.name} ({other.spec.subnet}) and {one.name} ({one.spec.subnet}) overlap: "
                    "a router could not tell them apart",
                    hint="give each a router of its own",
                    field=_NETWORKS,
                )


def checked_routes(routes: Iterable[StaticRoute], networks: list[Network]) -> list[StaticRoute]:
    """*routes* with their prefixes in the one form. :raise Invalid: for one that leads nowhere. :raise Conflict: when it is told twice."""
    found: dict[IPv4Network, StaticRoute] = {}
    for route in routes:
        destination, via = _parsed(route)
        for network in networks:
            if destination.overlaps(IPv4Network(network.spec.subnet)):
                raise Invalid(
                    f"a route to {destination} would take packets from network {network.name} ({network.spec.subnet})",
                    hint="the router is on that network itself: leave the route out",
                    field=_ROUTES,
                )
        home = next((one for one in networks if via in IPv4Network(one.spec.subnet)), None)
        if home is None:
            raise Invalid(
                f"{via} is on no network of the router",
                hint="a route goes by an address that it reaches",
                field=_ROUTES,
            )
        subnet = IPv4Network(home.spec.subnet)
        if str(via) == home.status.gateway:
            raise Invalid(
                f"{via} is the router itself: packets for {destination} would go round",
                hint=f"name an instance of network {home.name}",
                field=_ROUTES,
            )
        if via in (subnet.network_address, subnet.broadcast_address):
            raise Invalid(f"{via} is the address of all of {subnet}", hint="name an instance's", field=_ROUTES)
        if destination in found:
            raise Conflict(f"two routes lead to {destination}", hint="choose one", field=_ROUTES)
        found[destination] = StaticRoute(destination=str(destination), via=str(via))
    return list(found.values())


def _parsed(route: StaticRoute) -> tuple[IPv4Network, IPv4Address]:
    try:
        destination, via = IPv4Network(route.destination), IPv4Address(route.via)
    except ValueError:
        raise Invalid(
            f"{route.destination}={route.via} is no route", hint="write it like 10.99.0.0/24=10.10.0.5", field=_ROUTES
        ) from None
    if not destination.prefixlen:
        raise Invalid("everything else goes by the uplink", hint="route smaller prefixes", field=_ROUTES)
    for kept, why in V4.kept.items():
        if destination.overlaps(IPv4Network(kept)):
            raise Invalid(f"{destination} overlaps {kept}, which {why}", hint="route something else", field=_ROUTES)
    return destination, via


def _check_floating(tx: Transaction, router: Router, wanted: RouterSpec, leaving: set[str]) -> None:
    addresses: list[FloatingAddress] = tx.list("address")
    for address in addresses:
        port = tx.by_id(address.spec.port) if address.spec.port else None
        if port is None:
            continue
        inside = port.spec.network in router.spec.networks
        if port.spec.network in leaving or (inside and not wanted.uplink):
            raise Conflict(
                f"floating address {address.spec.address} leads by router {router.name}",
                hint=f"lamella address detach {address.name}",
                field=_NETWORKS if port.spec.network in leaving else "spec.uplink",
            )


def _enter(tx: Transaction, router: Router, network: Network) -> None:
    tx.release("subnet", network.spec.subnet, network.id)
    tx.claim(f"subnet:{router.id}", network.spec.subnet, network.id)
    network.status.router = router.id
    tx.update(network)


def leave(tx: Transaction, router: Router, network: Network) -> None:
    """:raise Conflict: when it overlaps another network without a router."""
    others: list[Network] = [one for one in tx.list("network") if one.id != network.id and not one.status.router]
    for other in others:
        if IPv4Network(network.spec.subnet).overlaps(IPv4Network(other.spec.subnet)):
            whose = other.name if other.project == network.project else "a network of another project"
            raise Conflict(
                f"network {network.name} ({network.spec.subnet}) overlaps {whose} ({other.spec.subnet}), "
                "and without a router of its own there is one of each address",
                hint=f"lamella network rm {network.name}, or leave it behind a router",
                field=_NETWORKS,
            )
    tx.release(f"subnet:{router.id}", network.spec.subnet, network.id)
    tx.claim("subnet", network.spec.subnet, network.id)
    network.status.router = ""
    tx.update(network)
