"""Disks and NICs that come and go: rows, claims, what the host is told, and what is left when it has let go."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from test_admission import a_host, a_network
from test_fitting import image_of

from lamella.control.layer import Layer
from lamella.model.assignment import Assignment, InstanceReport
from lamella.model.board import Disk
from lamella.model.errors import Conflict, Forbidden, NotFound, Unsupported
from lamella.model.image import ArtifactKind
from lamella.model.instance import InstanceSpec, Isolation, Nic, Phase, Power
from lamella.model.requests import InstanceCreate, Principal, ResourcePatch
from lamella.model.resource import Condition
from lamella.store.database import open_store

ROOT = Principal(name="unix:root", admin=True)
ANN = Principal(name="unix:ann")


@pytest.fixture
async def layer(tmp_path: Path) -> AsyncIterator[Layer]:
    store = open_store(f"sqlite:///{tmp_path}/lamella.db")
    await store.open()
    layer = Layer(store, role="all", seed="lamella-00000000")
    await layer.open()
    host = a_host()
    image = image_of(ArtifactKind.DISK, layers=True)
    image.name = "debian:12"
    cd = image_of(ArtifactKind.CDROM)
    cd.name, cd.status.digest = "tools", "sha256:" + "c" * 64
    await store.write(lambda tx: [tx.insert(item) for item in (host, image, cd)])
    yield layer
    await layer.close()
    await store.close()


async def host_of(layer: Layer) -> str:
    page = await layer.store.list("host", project="default")
    return page.items[0].id


async def create(layer: Layer, **spec: object) -> Assignment:
    wanted = InstanceSpec(image="debian:12", isolation=Isolation.VM, **spec)  # type: ignore[arg-type]
    await layer.create_instance(ROOT, "default", InstanceCreate(name="db", spec=wanted), wait=0, idempotency_key=None)
    return await assignment(layer)


async def assignment(layer: Layer) -> Assignment:
    answer = await layer.desk.assignments(await host_of(layer), 0, 0)
    return answer.instances[0]


async def patch(layer: Layer, **spec: object) -> Assignment:
    await layer.patch(ROOT, "default", "instance", "db", ResourcePatch(spec=spec), expected=None, wait=0)
    return await assignment(layer)


async def kinds(layer: Layer, kind: str) -> set[str]:
    return {item.id for item in (await layer.store.list(kind, project="default", limit=1000)).items}


async def test_a_host_is_told_of_every_disk_and_nic(layer: Layer) -> None:
    asked = await create(layer, disks=[Disk(name="data", size=1 << 30)], nics=[Nic(), Nic(name="lan")])
    assert asked.volume is not None and asked.port is not None
    assert set(asked.disks) == {"data"} and set(asked.ports) == {"lan"}
    assert asked.networks == {asked.port.spec.network: asked.network}
    assert len(await kinds(layer, "volume")) == 2 and len(await kinds(layer, "port")) == 2


async def test_what_is_taken_out_waits_until_the_host_has_let_go_of_it(layer: Layer) -> None:
    before = await create(layer, disks=[Disk(name="data", size=1 << 30)], nics=[Nic(), Nic(name="lan")])
    host = await host_of(layer)
    disk, port = before.disks["data"], before.ports["lan"]
    asked = await patch(layer, disks=[], nics=[{}])
    assert (asked.disks, asked.ports) == ({}, {})
    assert [v.id for v in asked.retired_volumes] == [disk.id] and [p.id for p in asked.retired_ports] == [port.id]
    assert disk.id in await kinds(layer, "volume")
    # The name is free at once, and what bears it now is another disk.
    again = await patch(layer, disks=[{"name": "data", "size": 2 << 30}])
    assert again.disks["data"].id != disk.id and [v.id for v in again.retired_volumes] == [disk.id]
    report = InstanceReport(id=asked.instance.id, status=asked.instance.status, released=[disk.id, port.id])
    await layer.desk.report(host, [report])
    assert disk.id not in await kinds(layer, "volume") and port.id not in await kinds(layer, "port")
    address = port.spec.address.partition("/")[0]
    claims = await layer.store.read(lambda tx: tx.claims(f"address:{port.spec.network}"))
    assert address not in claims
    # A report that comes twice changes nothing.
    await layer.desk.report(host, [report])
    assert (await assignment(layer)).retired_volumes == []


async def test_a_removed_machine_leaves_no_row_behind(layer: Layer) -> None:
    await create(layer, disks=[Disk(name="data", size=1 << 30)], nics=[Nic(), Nic(name="lan")])
    asked = await patch(layer, disks=[], nics=[{}])
    await layer.delete(ROOT, "default", "instance", "db", force=True, expected=None, wait=0)
    report = InstanceReport(id=asked.instance.id, status=asked.instance.status, removed=True)
    await layer.desk.report(await host_of(layer), [report])
    assert await kinds(layer, "volume") == set() and await kinds(layer, "port") == set()
    with pytest.raises(NotFound):
        await layer.get(ROOT, "default", "instance", "db")


async def test_what_cannot_change_is_refused_and_nothing_is_half_done(layer: Layer) -> None:
    asked = await create(layer, disks=[Disk(name="data", size=1 << 30)])
    for change in (
        {"disks": [{"name": "data", "size": 2 << 30}]},
        {"image": "other"},
        {"nics": [{"network": "default"}]},
    ):
        with pytest.raises(Unsupported):
            await patch(layer, **change)
    asked.instance.status.phase = Phase.RUNNING
    await layer.desk.report(await host_of(layer), [InstanceReport(id=asked.instance.id, status=asked.instance.status)])
    with pytest.raises(Conflict, match="running"):
        await patch(layer, board={"tpm": True})
    with pytest.raises(NotFound):
        await patch(layer, cdroms=[{"name": "cd1", "image": "nothing"}])
    with pytest.raises(Unsupported, match="no CD"):
        await patch(layer, cdroms=[{"name": "cd1", "image": "debian:12"}])
    assert (await assignment(layer)).disks == asked.disks
    changed = await patch(layer, cdroms=[{"name": "cd1", "image": "tools"}])
    assert changed.instance.status.cdroms == {"cd1": "sha256:" + "c" * 64}
    images = (await layer.desk.assignments(await host_of(layer), 0, 0)).images
    assert "sha256:" + "c" * 64 in images


async def test_a_change_that_the_host_cannot_make_is_taken_back(layer: Layer) -> None:
    before = await create(layer, disks=[Disk(name="data", size=1 << 30)], power=Power.RUNNING)
    host = await host_of(layer)

    async def report(**seen: object) -> None:
        now = await assignment(layer)
        status = msgspec.structs.replace(
            now.instance.status, phase=Phase.RUNNING, epoch=1, observed_generation=now.instance.generation, **seen
        )
        await layer.desk.report(host, [InstanceReport(id=now.instance.id, status=status)])

    await report(conditions=[])
    body = ResourcePatch(spec={"disks": [{"name": "more", "size": 1 << 30}], "memory": 1 << 30})
    asking = asyncio.create_task(layer.patch(ROOT, "default", "instance", "db", body, expected=None, wait=90))
    while (await assignment(layer)).instance.generation == before.instance.generation:
        await asyncio.sleep(0.01)
    failed = Condition(type="Ready", status=False, reason="conflict", message="the guest keeps it", hint="ask it")
    await report(conditions=[failed])
    with pytest.raises(Conflict, match="the guest keeps it"):
        await asking
    after = await assignment(layer)
    assert after.instance.spec.disks == before.instance.spec.disks and after.instance.spec.memory is None
    assert after.disks["data"].id == before.disks["data"].id
    # The disk that was never plugged in goes, the one that stays is not retired any more.
    assert [volume.id for volume in after.retired_volumes] == [
        id for id in await kinds(layer, "volume") if id not in (before.disks["data"].id, before.instance.status.volume)
    ]
    assert after.instance.status.phase is Phase.RUNNING


async def test_directories_of_the_host_are_for_administrators(layer: Layer) -> None:
    module = image_of(ArtifactKind.MODULE)
    module.name, module.status.digest = "app", "sha256:" + "d" * 64
    await layer.store.write(lambda tx: tx.insert(module))
    spec = InstanceSpec(
        image="app",
        isolation=Isolation.WASM,
        nics=[Nic()],
        power=Power.STOPPED,
        directories=[{"source": "/srv", "target": "/data"}],  # type: ignore[list-item]
    )
    body = InstanceCreate(name="calc", spec=spec)
    with pytest.raises(Forbidden):
        await layer.create_instance(ANN, "default", body, wait=0, idempotency_key=None)
    made = await layer.create_instance(ROOT, "default", body, wait=0, idempotency_key=None)
    assert made.status.volume is None and made.status.port is None
    asked = await assignment(layer)
    assert asked.volume is None and asked.port is None
    assert a_network().name == "default"
