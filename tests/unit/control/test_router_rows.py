"""Routers and floating addresses as rows: what may be joined, where routes lead, and what hosts are told."""

import pytest
from test_device_changes import ROOT, create, layer  # noqa: F401  (layer is a fixture)

from lamella.control.layer import Layer
from lamella.model.assignment import Assignments
from lamella.model.balancer import Listener
from lamella.model.errors import Conflict, Invalid, LamellaError, NotFound
from lamella.model.instance import Nic
from lamella.model.network import Network
from lamella.model.network_bodies import BalancerCreate, NetworkCreate
from lamella.model.requests import ResourcePatch
from lamella.model.router import FloatingAddress, Router, StaticRoute
from lamella.model.router_bodies import AddressAttach, AddressCreate, RouterCreate


async def network(layer: Layer, name: str, subnet: str = "", **more: object) -> Network:  # noqa: F811
    return await layer.networks.create(ROOT, "default", NetworkCreate(name=name, subnet=subnet, **more))  # type: ignore[arg-type]


async def router(layer: Layer, name: str, *networks: str, **more: object) -> Router:  # noqa: F811
    body = RouterCreate(name=name, networks=list(networks), **more)  # type: ignore[arg-type]
    return await layer.routers.create(ROOT, "default", body)


async def changed(layer: Layer, kind: str, name: str, **spec: object) -> None:  # noqa: F811
    await layer.patch(ROOT, "default", kind, name, ResourcePatch(spec=spec), expected=None, wait=0)


async def removed(layer: Layer, kind: str, name: str) -> None:  # noqa: F811
    await layer.delete(ROOT, "default", kind, name, force=False, expected=None, wait=0)


async def behind(layer: Layer, name: str) -> str:  # noqa: F811
    return (await layer.get(ROOT, "default", "network", name)).status.router  # type: ignore[no-any-return]


async def told(layer: Layer) -> Assignments:  # noqa: F811
    host = (await layer.store.list("host")).items[0]
    return await layer.desk.assignments(host.id, 0, 0)


async def test_networks_are_behind_one_router_each(layer: Layer) -> None:  # noqa: F811
    front, back = await network(layer, "front", "10.10.0.0/24"), await network(layer, "back", "10.20.0.0/24")
    edge = await router(layer, "edge", "front", back.id, "front", uplink=True)
    assert edge.spec.networks == [front.id, back.id] and await behind(layer, "front") == edge.id
    with pytest.raises(Conflict, match="front is behind router edge already"):
        await router(layer, "other", "front")
    with pytest.raises(NotFound):
        await router(layer, "other", "nothing")
    with pytest.raises(Conflict):
        await router(layer, "edge")
    assert {one.name for one in (await told(layer)).routers or []} == {"edge"}
    await changed(layer, "router", "edge", networks=["back"])
    assert await behind(layer, "front") == "" and await behind(layer, "back") == edge.id
    await removed(layer, "router", "edge")
    assert await behind(layer, "back") == "" and (await told(layer)).routers == []


async def test_subnets_overlap_behind_different_routers_alone(layer: Layer) -> None:  # noqa: F811
    await network(layer, "front", "10.10.0.0/24")
    left, right = await router(layer, "left", "front"), await router(layer, "right")
    twin = await network(layer, "twin", "10.10.0.0/24", router="right")
    assert twin.status.router == right.id
    for asked, said in (
        ({"router": "left"}, "which network front has"),
        ({"router": "right"}, "which network twin has"),
    ):
        with pytest.raises(Conflict, match=said):
            await network(layer, "third", "10.10.0.128/25", **asked)
    # One of them may be without a router, not both.
    await changed(layer, "router", "left", networks=[])
    for refused in (changed(layer, "router", "right", networks=[]), removed(layer, "router", "right")):
        with pytest.raises(Conflict, match=r"twin .* overlaps front"):
            await refused
    with pytest.raises(Conflict, match=r"front .* overlap"):
        await changed(layer, "router", "right", networks=["twin", "front"])
    assert await behind(layer, "front") == "" and await behind(layer, "twin") == right.id
    with pytest.raises(Conflict, match="front has"):
        await network(layer, "third", "10.10.0.0/24")
    # Gone from its router with its last instance; then the other one is alone.
    await removed(layer, "network", "twin")
    assert (await layer.get(ROOT, "default", "router", "right")).spec.networks == []
    await changed(layer, "router", "right", networks=["front"])
    await network(layer, "third", "10.10.0.0/24")
    await network(layer, "fourth", "10.10.0.0/24", router=left.id)


@pytest.mark.parametrize(
    ("destination", "via", "said"),
    [
        ("10.99.0.0/24", "10.30.0.5", "on no network of the router"),
        ("10.99.0.0/24", "10.10.0.1", "is the router itself"),
        ("10.99.0.0/24", "10.10.0.255", "address of all"),
        ("10.10.0.0/25", "10.10.0.5", "would take packets from network front"),
        ("10.0.0.0/8", "10.10.0.5", "would take packets"),
        ("0.0.0.0/0", "10.10.0.5", "by the uplink"),
        ("169.254.0.0/16", "10.10.0.5", "link-local"),
        ("10.99.0.1/24", "10.10.0.5", "no route"),
        ("here", "there", "no route"),
    ],
)
async def test_a_route_that_leads_nowhere_is_refused(
    layer: Layer,  # noqa: F811
    destination: str,
    via: str,
    said: str,
) -> None:
    await network(layer, "front", "10.10.0.0/24")
    with pytest.raises(Invalid, match=said):
        await router(layer, "edge", "front", routes=[StaticRoute(destination=destination, via=via)])
    assert await behind(layer, "front") == ""


async def test_routes_hold_their_network(layer: Layer) -> None:  # noqa: F811
    await network(layer, "front", "10.10.0.0/24")
    good = StaticRoute(destination="10.99.0.0/24", via="10.10.0.5")
    await router(layer, "edge", "front", routes=[good])
    with pytest.raises(Conflict, match=r"leads to 10\.99\.0\.0/24 by"):
        await removed(layer, "network", "front")
    with pytest.raises(Invalid, match="no network of the router"):
        await changed(layer, "router", "edge", networks=[])
    twice = [{"destination": "10.99.0.0/24", "via": via} for via in ("10.10.0.5", "10.10.0.6")]
    with pytest.raises(Conflict, match="two routes"):
        await changed(layer, "router", "edge", routes=twice)
    await changed(layer, "router", "edge", networks=[], routes=[])
    await removed(layer, "network", "front")


async def test_balancers_and_routers_keep_apart(layer: Layer) -> None:  # noqa: F811
    await network(layer, "front", "10.10.0.0/24")
    await router(layer, "edge")
    listener = Listener(port=80)
    body = BalancerCreate(name="www", network="front", listeners=[listener])
    await layer.balancers.create(ROOT, "default", body)
    with pytest.raises(Conflict, match="balancer www has an address of network front"):
        await changed(layer, "router", "edge", networks=["front"])
    await removed(layer, "balancer", "www")
    await changed(layer, "router", "edge", networks=["front"])
    with pytest.raises(Conflict, match="front is behind a router"):
        await layer.balancers.create(ROOT, "default", body)


async def test_an_external_network_is_nothing_but_addresses(layer: Layer) -> None:  # noqa: F811
    for wrong in ({"isolated": True}, {"router": "edge"}):
        with pytest.raises(Invalid, match="from outside"):
            await network(layer, "public", "203.0.113.0/29", external=True, **wrong)
    with pytest.raises(Invalid):
        await network(layer, "public", external=True)
    with pytest.raises(Conflict, match="no external network"):
        await layer.addresses.create(ROOT, "default", AddressCreate())
    assert (await told(layer)).outside == []
    await network(layer, "public", "203.0.113.0/29", external=True)
    assert (await told(layer)).outside == ["203.0.113.0/29"]
    assert "public" not in {one.name for one in (await told(layer)).networks}
    with pytest.raises(Conflict, match="outside"):
        await create(layer, nics=[Nic(network="public")])
    with pytest.raises(Conflict, match="outside"):
        await router(layer, "edge", "public")
    with pytest.raises(Invalid, match="inside"):
        await layer.addresses.create(ROOT, "default", AddressCreate(network="default"))
    made = [await layer.addresses.create(ROOT, "default", AddressCreate()) for _ in range(5)]
    assert made[0].name == made[0].spec.address and len({one.spec.address for one in made}) == 5
    with pytest.raises(LamellaError, match="every address"):
        await layer.addresses.create(ROOT, "default", AddressCreate())
    await removed(layer, "address", made[3].name)
    again = await layer.addresses.create(ROOT, "default", AddressCreate(name="www", address=made[3].spec.address))
    assert again.name == "www"
    with pytest.raises(Conflict, match="taken"):
        await layer.addresses.create(ROOT, "default", AddressCreate(address=made[0].spec.address))


async def test_an_address_leads_to_one_instance_at_a_time(layer: Layer) -> None:  # noqa: F811
    await network(layer, "public", "203.0.113.0/24", external=True)
    await network(layer, "front", "10.10.0.0/24")
    asked = await create(layer, nics=[Nic(network="front")])
    with pytest.raises(Conflict, match="on no network that a router leads out of"):
        await layer.addresses.create(ROOT, "default", AddressCreate(name="www", instance="db"))
    await router(layer, "edge", "front")
    await changed(layer, "router", "edge", uplink=True)
    one: FloatingAddress = await layer.addresses.create(ROOT, "default", AddressCreate(name="www", instance="db"))
    assert asked.port is not None and one.spec.port == asked.port.id and one.status.instance == asked.instance.id
    (task,) = (await told(layer)).routers or []
    assert task.floating == {one.spec.address: asked.port.spec.address.partition("/")[0]}
    with pytest.raises(Conflict, match="db has"):
        await layer.addresses.create(ROOT, "default", AddressCreate(instance="db"))
    with pytest.raises(Conflict, match="leads to db already"):
        await layer.addresses.attach(ROOT, "default", "www", AddressAttach(instance="db"))
    with pytest.raises(Conflict, match="leads to db"):
        await removed(layer, "address", "www")
    for change in ({"uplink": False}, {"networks": []}):
        with pytest.raises(Conflict, match="leads by router edge"):
            await changed(layer, "router", "edge", **change)
    with pytest.raises(Conflict, match="leads by router edge"):
        await removed(layer, "router", "edge")
    # By itself it is found too.
    await layer.addresses.detach(ROOT, "default", one.spec.address)
    assert ((await told(layer)).routers or [])[0].floating == {}
    await layer.addresses.detach(ROOT, "default", "www")
    await layer.addresses.attach(ROOT, "default", "www", AddressAttach(instance="db"))
