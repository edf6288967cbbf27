"""Networks as rows: made, changed, removed; addresses that are asked for."""

import asyncio

import pytest
from test_device_changes import ANN, ROOT, create, layer  # noqa: F401  (layer is a fixture)

from lamella.control.layer import Layer
from lamella.model.errors import Conflict, Invalid, NotFound, StaleRevision, Unsupported
from lamella.model.instance import InstanceSpec, Nic
from lamella.model.network import Network
from lamella.model.network_bodies import NetworkCreate
from lamella.model.requests import InstanceCreate, ResourcePatch


async def made(layer: Layer, name: str, **asked: object) -> Network:  # noqa: F811
    return await layer.networks.create(ROOT, "default", NetworkCreate(name=name, **asked))  # type: ignore[arg-type]


async def removed(layer: Layer, name: str, expected: int | None = None) -> None:  # noqa: F811
    await layer.delete(ROOT, "default", "network", name, force=False, expected=expected, wait=0)


async def test_a_network_has_a_gateway_and_overlaps_no_other(layer: Layer) -> None:  # noqa: F811
    front = await made(layer, "front", subnet="10.10.0.0/24", isolated=True)
    assert (front.status.gateway, front.spec.isolated) == ("10.10.0.1", True)
    for subnet in ("10.10.0.0/24", "10.10.0.128/25", "10.0.0.0/8", "10.83.7.0/24"):
        with pytest.raises(Conflict, match="overlaps"):
            await made(layer, "other", subnet=subnet)
    with pytest.raises(Conflict):
        await made(layer, "front")
    with pytest.raises(NotFound):
        await layer.networks.create(ROOT, "nowhere", NetworkCreate(name="x"))


async def test_free_subnets_are_chosen_even_by_many_at_once(layer: Layer) -> None:  # noqa: F811
    found = await asyncio.gather(*(made(layer, f"n{number}") for number in range(12)))
    assert len({network.spec.subnet for network in found}) == 12


async def test_a_network_goes_when_nobody_is_on_it(layer: Layer) -> None:  # noqa: F811
    front = await made(layer, "front")
    asked = await create(layer, nics=[Nic(network="front")])
    with pytest.raises(Conflict, match="in use by db"):
        await removed(layer, "front")
    assert asked.network is not None and asked.network.id == front.id
    await made(layer, "back")
    with pytest.raises(StaleRevision):
        await removed(layer, "back", expected=1)
    await removed(layer, "back")
    with pytest.raises(Conflict, match="stays"):
        await removed(layer, "default")
    with pytest.raises(NotFound, match="no network"):
        await removed(layer, "back")
    # Its subnet is free again, and hosts are told of all that are left.
    assert (await made(layer, "again")).spec.subnet == "10.84.1.0/24"
    told = await layer.desk.assignments(asked.instance.status.host or "", 1, 0)
    assert {network.name for network in told.networks} == {"default", "front", "again"}


async def test_only_whether_it_is_isolated_can_be_changed(layer: Layer) -> None:  # noqa: F811
    await made(layer, "front")

    async def patched(**spec: object) -> Network:
        body = ResourcePatch(spec=spec, labels={"tier": "web"})
        return await layer.patch(ANN, "default", "network", "front", body, expected=None, wait=0)

    after = await patched(isolated=True)
    assert (after.spec.isolated, after.generation, after.labels) == (True, 2, {"tier": "web"})
    with pytest.raises(Unsupported):
        await patched(mtu=9000)
    with pytest.raises(Invalid):
        await patched(isolated="perhaps")


async def test_an_address_that_is_asked_for(layer: Layer) -> None:  # noqa: F811
    await made(layer, "front", subnet="10.10.0.0/29")
    asked = await create(layer, nics=[Nic(network="front", address="10.10.0.5")])
    assert asked.port is not None and asked.port.spec.address == "10.10.0.5/29"
    for address, error in (
        ("10.10.0.5", Conflict),
        ("10.10.0.1", Conflict),
        ("10.10.0.0", Invalid),
        ("10.10.0.7", Invalid),
        ("10.10.1.5", Invalid),
        ("10.10.0.300", Invalid),
    ):
        spec = InstanceSpec(image="debian:12", isolation=asked.instance.spec.isolation)
        spec.nics = [Nic(network="front", address=address)]
        with pytest.raises(error):
            await layer.create_instance(
                ROOT, "default", InstanceCreate(name="other", spec=spec), wait=0, idempotency_key=None
            )
    # Two NICs of one machine do not get one address either.
    spec.nics = [Nic(network="front"), Nic(network="front", name="b", address="10.10.0.2")]
    await layer.create_instance(ROOT, "default", InstanceCreate(name="two", spec=spec), wait=0, idempotency_key=None)
