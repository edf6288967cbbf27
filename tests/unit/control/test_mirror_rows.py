"""Mirrors as rows: who is copied to whom, what has no end, and what goes with either end."""

import pytest
from test_device_changes import ROOT, layer  # noqa: F401  (layer is a fixture)

from lamella.control.layer import Layer
from lamella.model.assignment import InstanceReport
from lamella.model.errors import Conflict, NotFound
from lamella.model.instance import Instance, InstanceSpec, Isolation, Nic
from lamella.model.network import Port
from lamella.model.network_bodies import PortMirror
from lamella.model.requests import InstanceCreate


async def made(layer: Layer, name: str, *nics: Nic) -> Instance:  # noqa: F811
    spec = InstanceSpec(image="debian:12", isolation=Isolation.VM, nics=list(nics))
    body = InstanceCreate(name=name, spec=spec)
    return await layer.create_instance(ROOT, "default", body, wait=0, idempotency_key=None)


async def mirrored(layer: Layer, name: str, to: str | None, nic: str | None = None) -> Port:  # noqa: F811
    return await layer.networks.mirror(ROOT, "default", name, PortMirror(to=to, nic=nic))


async def test_a_mirror_begins_changes_and_ends(layer: Layer) -> None:  # noqa: F811
    one, two, three = [await made(layer, name, Nic()) for name in ("one", "two", "three")]
    assert (await mirrored(layer, "one", "two")).spec.mirror == two.status.port
    since = await layer.store.revision()
    assert (await mirrored(layer, "one", "three")).spec.mirror == three.status.port
    # The host of what is mirrored hears of it.
    news = await layer.desk.assignments(one.status.host or "", since, 0)
    assert [told.port.spec.mirror for told in news.instances if told.port is not None] == [three.status.port]
    for _ in range(2):
        assert (await mirrored(layer, "one", None)).spec.mirror == ""


async def test_copies_have_an_end(layer: Layer) -> None:  # noqa: F811
    for name in ("one", "two", "three"):
        await made(layer, name, Nic())
    with pytest.raises(Conflict, match="itself"):
        await mirrored(layer, "one", "one")
    await mirrored(layer, "one", "two")
    await mirrored(layer, "two", "three")
    for back in ("one", "two"):
        with pytest.raises(Conflict, match="mirrored to it"):
            await mirrored(layer, "three", back)


async def test_what_is_not_there_is_said(layer: Layer) -> None:  # noqa: F811
    await made(layer, "one", Nic())
    await made(layer, "alone")
    for name, to, nic in (("nobody", "one", None), ("one", "nobody", None), ("one", "alone", None), ("one", None, "x")):
        with pytest.raises(NotFound):
            await mirrored(layer, name, to, nic)


async def test_it_goes_with_the_one_that_listens(layer: Layer) -> None:  # noqa: F811
    one, two = [await made(layer, name, Nic()) for name in ("one", "two")]
    target = two.status.port or ""
    await mirrored(layer, "one", "two")
    gone = InstanceReport(id=two.id, status=two.status, removed=True)
    await layer.delete(ROOT, "default", "instance", "two", force=True, expected=None, wait=0)
    await layer.desk.report(two.status.host or "", [gone])
    assert (await layer.store.by_id(one.status.port or "")).spec.mirror == ""
    assert await layer.store.read(lambda tx: tx.claims(f"mirror:{target}")) == {}
