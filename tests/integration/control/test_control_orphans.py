"""What lies in pools and no row names: removed when it is nobody's, and never because somebody looked too early or too little."""

import asyncio
from pathlib import Path
from typing import Any

from tests.storage_host import StorageHost

from lamella.control.layer import Layer
from lamella.model.ids import new_id
from lamella.model.instance import Instance, InstanceSpec, InstanceStatus
from lamella.model.operation import Operation, OperationPhase
from lamella.model.replication_bodies import VolumeImport
from lamella.model.requests import Principal
from lamella.model.resource import new_resource
from lamella.model.storage import Feature, Volume, VolumeMount, VolumeSpec
from lamella.model.storage_bodies import StorageCheck, VolumeCreate
from lamella.model.storage_report import StorageFinding
from lamella.store.store import Transaction

WHO = Principal(name="unix:root", admin=True)
WAIT = 90.0


async def volume(layer: Layer, name: str) -> Volume:
    body = VolumeCreate(name=name, spec=VolumeSpec(size=1 << 30))
    return await layer.storage.volumes.create(WHO, "default", body, wait=WAIT)


async def fsck(layer: Layer) -> list[StorageFinding]:
    return findings(await layer.storage.inspection.check(WHO, StorageCheck(remove_orphans=True), wait=WAIT))


def findings(operation: Operation) -> list[StorageFinding]:
    assert operation.status.phase is OperationPhase.DONE, operation.status
    assert operation.status.report is not None
    return operation.status.report.findings


def strange(host: StorageHost) -> str:
    id = new_id("volume")
    host.volumes[id] = {"size": 0, "used": 0, "key": "", "data": b"", "snapshots": {}, "limits": None}
    return id


def sharing(host: StorageHost) -> None:
    """Its pool ``default`` is one that other hosts reach."""
    host.pools["default"].features.append(str(Feature.SHARED))


async def second(layer: Layer, volumes: dict[str, Any]) -> tuple[str, StorageHost]:
    """Another host, over the same pool."""
    host = StorageHost("beta")
    sharing(host)
    host.volumes = volumes
    id = await layer.desk.register("beta", await host.facts(), "")
    layer.connect_host(id, host)
    return id, host


async def test_an_orphan_is_removed(layer: Layer, host: StorageHost) -> None:
    kept = await volume(layer, "data")
    orphan = strange(host)
    named = findings(await layer.storage.inspection.check(WHO, StorageCheck(), wait=WAIT))
    assert [(item.subject, item.mended) for item in named] == [(orphan, False)]
    assert [(item.subject, item.mended) for item in await fsck(layer)] == [(orphan, True)]
    assert host.volumes.keys() == {kept.id}
    assert await fsck(layer) == []


async def test_what_is_made_while_a_check_goes_on_is_no_orphan(layer: Layer, host: StorageHost) -> None:
    host.slow["CheckStorage"] = asyncio.Event()
    checking = asyncio.create_task(fsck(layer))
    while "CheckStorage" not in host.asked:
        await asyncio.sleep(0)
    made = await volume(layer, "data")
    host.slow["CheckStorage"].set()
    assert await checking == []
    assert host.volumes.keys() == {made.id}
    assert "RemoveOrphan" not in host.asked


async def test_an_import_under_way_is_no_orphan(layer: Layer, host: StorageHost, tmp_path: Path) -> None:
    host.slow["ImportVolume"] = asyncio.Event()
    body = VolumeImport(name="data", path=str(tmp_path / "disk.raw"), spec=VolumeSpec())
    operation = await layer.storage.transferring.bring(WHO, "default", body, wait=0)
    id = operation.spec.arguments["id"]
    host.volumes[id] = host.volumes[strange(host)]
    orphan = next(other for other in host.volumes if other != id)
    assert [item.subject for item in await fsck(layer)] == [orphan]
    assert id in host.volumes
    host.slow["ImportVolume"].set()
    assert (await layer.storage.operations.finish(operation, WAIT)).status.phase is OperationPhase.DONE


async def test_hosts_that_share_a_pool_leave_each_other_s_volumes_alone(layer: Layer, host: StorageHost) -> None:
    sharing(host)
    await layer.desk.register(host.name, await host.facts(), "")
    made = await volume(layer, "data")
    away, other = await second(layer, host.volumes)
    assert await fsck(layer) == []
    # What one of them keeps for itself is known to that one alone.
    hidden = strange(host)
    other.hidden.add(hidden)
    assert await fsck(layer) == []
    orphan = strange(host)
    assert [(item.subject, item.mended) for item in await fsck(layer)] == [(orphan, True)]
    assert host.volumes.keys() == {made.id, hidden}
    assert [*host.asked, *other.asked].count("RemoveOrphan") == 1
    # While it is away nobody can tell.
    layer.storage.hosts._agents.pop(away)
    found = [item for item in await fsck(layer) if item.subject == hidden]
    assert [(item.mended, item.hint) for item in found] == [(False, "it stays until beta is back, which may know it")]
    assert host.volumes.keys() == {made.id, hidden}


async def test_a_volume_that_is_busy_is_left_alone(layer: Layer, host: StorageHost) -> None:
    made = await volume(layer, "data")
    await layer.store.write(lambda tx: tx.claim("busy", made.id, "op_somebody"))
    host.volumes.pop(made.id)
    assert [item.problem for item in await fsck(layer)] == ["volume data is busy: it was not looked at"]


async def test_whoever_has_a_volume_open_is_asked_about_it(layer: Layer, host: StorageHost) -> None:
    sharing(host)
    await layer.desk.register(host.name, await host.facts(), "")
    made = await volume(layer, "data")
    away, _ = await second(layer, {})
    assert await fsck(layer) == []
    status = InstanceStatus(host=away, volumes={"data": made.id})
    spec = InstanceSpec(image="box", volumes=[VolumeMount(volume="data")])
    user: Instance = new_resource("instance", "web", spec, status)

    def attach(tx: Transaction) -> None:
        tx.insert(user)
        current: Volume | None = tx.by_id(made.id)
        assert current is not None
        current.status.attached = [user.id]
        tx.update(current)

    await layer.store.write(attach)
    # That one has nothing in its pool, and says so.
    assert [item.subject for item in await fsck(layer)] == ["volume data"]
