"""Copies of what runs, and what it leaves: all of them or none, and nothing that nobody needs any more."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.storage_host import StorageHost

from lamella.control.layer import Layer
from lamella.model.errors import Conflict, NoRoom, Unsupported
from lamella.model.instance import Beginning, Instance, InstanceSpec, Isolation, Phase, Power
from lamella.model.operation import Operation, OperationPhase
from lamella.model.requests import InstanceCreate, InstanceFork, Principal, ResourcePatch
from lamella.model.storage import Snapshot, StoragePhase, Volume, VolumeMount, VolumeSpec
from lamella.model.storage_bodies import SnapshotCreate, SnapshotRestore, VolumeCreate

WHO = Principal(name="unix:root", admin=True)
Open = Callable[[], Awaitable[Layer]]


async def create(layer: Layer, name: str = "web", **fields: object) -> Instance:
    spec = InstanceSpec(image="box", isolation=Isolation.MICROVM, **fields)  # type: ignore[arg-type]
    body = InstanceCreate(name=name, labels={"team": "a"}, spec=spec)
    return await layer.create_instance(WHO, "default", body, wait=20, idempotency_key=None)


async def fork(layer: Layer, of: str = "web", wait: float = 20, **wishes: object) -> Operation:
    body = InstanceFork(**wishes)  # type: ignore[arg-type]
    return await layer.fork(WHO, "default", of, body, wait=wait, idempotency_key=None)


async def remove(layer: Layer, name: str) -> None:
    await layer.delete(WHO, "default", "instance", name, force=True, expected=None, wait=20)


async def names(layer: Layer, kind: str = "instance") -> list[str]:
    return sorted(item.name for item in (await layer.store.list(kind)).items)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(90):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_all_copies_are_named_and_the_memory_goes_when_they_have_begun(layer: Layer, host: StorageHost) -> None:
    await create(layer)
    await create(layer, "web-2")
    done = await fork(layer, count=3, labels={"job": "x"})
    assert done.status.phase is OperationPhase.DONE, done.status.error
    assert done.status.made == ["web-1", "web-3", "web-4"] and done.status.pause == 0.004
    copy: Instance = await layer.store.get("instance", "default", "web-3")
    assert copy.labels == {"team": "a", "job": "x"} and copy.status.phase is Phase.RUNNING
    assert copy.status.beginning is not None and copy.status.beginning.fresh

    async def forgotten() -> bool:
        rows: list[Snapshot] = (await layer.store.list("snapshot")).items  # type: ignore[assignment]
        return not host.memories and [row.status.memory for row in rows] == [0]

    await until(forgotten)
    events = [item.spec.type for item in (await layer.store.list("event")).items]
    assert "instance.forked" in events
    for name in done.status.made:
        await remove(layer, name)

    async def gone() -> bool:
        return not await names(layer, "snapshot")

    await until(gone)
    assert await names(layer) == ["web", "web-2"] and not host.clones


async def test_the_parent_can_go_before_its_copies(layer: Layer, host: StorageHost) -> None:
    web = await create(layer)
    await fork(layer, count=2)
    await fork(layer, "web-1", name="grandchild")
    body = SnapshotCreate(name="s", instance="web", memory=True)
    await layer.storage.snapshots.create(WHO, "default", body, wait=20)
    await remove(layer, "web")
    await remove(layer, "web-1")
    assert await names(layer) == ["grandchild-1", "web-2"]
    disk: Volume = await layer.store.by_id(web.status.volume or "")
    assert (disk.spec.owner or "").startswith("snap_")

    async def own_went() -> bool:
        return "web@s" not in await names(layer, "snapshot")

    await until(own_went)
    await remove(layer, "grandchild-1")
    await remove(layer, "web-2")

    async def nothing() -> bool:
        return not await names(layer, "snapshot") and not await names(layer, "volume")

    await until(nothing)
    assert not host.volumes and not host.memories and not host.clones


async def test_one_that_does_not_begin_takes_all_others_with_it(layer: Layer, host: StorageHost) -> None:
    await create(layer)
    host.never = {"web-2"}
    failed = await fork(layer, count=3)
    assert failed.status.phase is OperationPhase.FAILED and failed.status.error_code == NoRoom.code
    assert "web-2 did not begin: its memory does not fit" in failed.status.error and not failed.status.made

    async def nothing() -> bool:
        return await names(layer) == ["web"] and not await names(layer, "snapshot")

    await until(nothing)
    assert not host.memories and len(await names(layer, "volume")) == 1


async def test_what_cannot_be_kept_leaves_nothing(layer: Layer, host: StorageHost) -> None:
    await create(layer)
    host.refuse["TakeSnapshot"] = Unsupported("its memory cannot be kept: it has a device of the host")
    failed = await fork(layer, count=3)
    assert failed.status.error_code == Unsupported.code and "a device of the host" in failed.status.error

    async def nothing() -> bool:
        return not await names(layer, "snapshot")

    await until(nothing)
    assert await names(layer) == ["web"]


async def test_a_fork_goes_on_after_a_crash(opened: Open, host: StorageHost) -> None:
    layer = await opened()
    await create(layer)
    host.slow["TakeSnapshot"] = asyncio.Event()
    asked = await fork(layer, count=2, wait=0)

    async def taking() -> bool:
        return "TakeSnapshot" in host.asked

    await until(taking)
    await layer.close()
    host.slow["TakeSnapshot"].set()
    again = await opened()
    done = await again.storage.operations.finish(asked, 60)
    assert done.status.phase is OperationPhase.DONE, done.status.error
    assert await names(again) == ["web", "web-1", "web-2"]


async def test_asked_twice_with_one_key_it_forks_once(layer: Layer) -> None:
    await create(layer)
    body = InstanceFork(count=1)
    made = [await layer.fork(WHO, "default", "web", body, wait=20, idempotency_key="k") for _ in range(2)]
    assert made[0].id == made[1].id and await names(layer) == ["web", "web-1"]


async def test_what_cannot_be_copied_is_refused(layer: Layer, host: StorageHost) -> None:
    await layer.create_instance(
        WHO, "default", InstanceCreate(name="box", spec=InstanceSpec(image="box")), wait=20, idempotency_key=None
    )
    with pytest.raises(Unsupported, match="a container cannot be copied while it runs") as refused:
        await fork(layer, "box")
    assert refused.value.hint == "--isolation microvm can"
    data = VolumeCreate(name="data", spec=VolumeSpec(size=1 << 20))
    await layer.storage.volumes.create(WHO, "default", data, wait=20)
    await create(layer, "with", volumes=[VolumeMount(volume="data")])
    with pytest.raises(Unsupported, match="with cannot be copied while it runs: it has volumes attached"):
        await fork(layer, "with")
    await create(layer)
    await layer.power(WHO, "default", "web", "stop", timeout=None, wait=20)
    with pytest.raises(Conflict, match="web is stopped"):
        await fork(layer)
    await layer.power(WHO, "default", "web", "start", timeout=None, wait=20)
    facts = await host.facts()
    facts.cpu, facts.memory = 4000, 2 << 30
    await layer.desk.register(host.name, facts, "")
    with pytest.raises(NoRoom, match="200 copies of web"):
        await fork(layer, count=200)
    assert "TakeSnapshot" not in host.asked and not await names(layer, "snapshot")


async def test_a_snapshot_with_a_memory_starts_its_instance_as_it_was(layer: Layer, host: StorageHost) -> None:
    web = await create(layer, memory=64 << 20)
    body = SnapshotCreate(name="s", instance="web", memory=True)
    taken = await layer.storage.snapshots.create(WHO, "default", body, wait=20)
    assert taken.status.memory == 4096 and taken.status.origin is not None and taken.status.origin.id == web.id
    assert taken.status.consistency == "application"
    snapshots = layer.storage.snapshots
    with pytest.raises(Conflict, match="in use"):
        await snapshots.restore(WHO, "default", "web@s", wait=20)
    await layer.power(WHO, "default", "web", "stop", timeout=None, wait=20)
    done = await snapshots.restore(WHO, "default", "web@s", wait=20, body=SnapshotRestore(start=False))
    assert done.status.phase is OperationPhase.DONE, done.status.error
    resting: Instance = await layer.store.by_id(web.id)
    assert resting.status.beginning == Beginning(snapshot=taken.id, epoch=2) and resting.spec.power is Power.STOPPED
    with pytest.raises(Conflict, match="web begins with the memory of snapshot web@s"):
        await snapshots.delete(WHO, "default", "web@s", expected=None, wait=20)
    await snapshots.restore(WHO, "default", "web@s", wait=20)
    running: Instance = await layer.instances.wait_for(await layer.store.by_id(web.id), "running", timeout=20)
    assert running.spec.epoch == 2 and running.status.beginning == Beginning(snapshot=taken.id, epoch=2)
    await layer.power(WHO, "default", "web", "stop", timeout=None, wait=20)
    await snapshots.restore(WHO, "default", "web@s", wait=20, body=SnapshotRestore(memory=False))
    cold: Instance = await layer.store.by_id(web.id)
    assert cold.status.beginning is None and cold.status.phase is Phase.STOPPED
    patch = ResourcePatch(spec={"memory": 128 << 20})
    await layer.instances.patch(WHO, "default", "web", patch, expected=None, wait=20)
    with pytest.raises(Conflict, match=r"another spec\.memory"):
        await snapshots.restore(WHO, "default", "web@s", wait=20)
    await snapshots.delete(WHO, "default", "web@s", expected=None, wait=20)
    assert not host.memories


async def test_the_memory_of_a_snapshot_goes_with_its_instance(layer: Layer, host: StorageHost) -> None:
    await create(layer)
    body = SnapshotCreate(name="s", instance="web", memory=True)
    taken = await layer.storage.snapshots.create(WHO, "default", body, wait=20)
    assert taken.status.phase is StoragePhase.READY and host.memories == {taken.id}
    await remove(layer, "web")

    async def nothing() -> bool:
        return not await names(layer, "snapshot")

    await until(nothing)
    assert not host.memories


async def test_what_is_suspended_holds_nothing_and_is_given_its_room_anew(layer: Layer, host: StorageHost) -> None:
    facts = await host.facts()
    facts.cpu, facts.memory = 2000, 1 << 30
    await layer.desk.register(host.name, facts, "")
    await create(layer, memory_guarantee=256 << 20, memory=256 << 20)
    asleep = await layer.power(WHO, "default", "web", "suspend", timeout=None, wait=20)
    assert asleep.status.phase is Phase.SUSPENDED and asleep.spec.epoch == 1
    with pytest.raises(Conflict, match="web is suspended") as refused:
        await layer._running("default", "web")  # pyright: ignore[reportPrivateUsage]
    assert refused.value.hint == "lamella resume web"
    with pytest.raises(Conflict, match=r"spec\.memory of web cannot be changed while it is suspended"):
        patch = ResourcePatch(spec={"memory": 128 << 20, "memory_guarantee": None})
        await layer.instances.patch(WHO, "default", "web", patch, expected=None, wait=20)
    await create(layer, "greedy", memory_guarantee=900 << 20, memory=900 << 20)
    with pytest.raises(NoRoom):
        await layer.power(WHO, "default", "web", "resume", timeout=None, wait=20)
    await remove(layer, "greedy")
    awake = await layer.power(WHO, "default", "web", "start", timeout=None, wait=20)
    assert awake.status.phase is Phase.RUNNING and awake.spec.epoch == 1


async def test_a_refused_resume_leaves_it_suspended(layer: Layer, host: StorageHost) -> None:
    await create(layer)
    await layer.power(WHO, "default", "web", "suspend", timeout=None, wait=20)
    host.never = {"web"}
    with pytest.raises(NoRoom, match="its memory does not fit"):
        await layer.power(WHO, "default", "web", "resume", timeout=None, wait=20)
    asleep: Instance = await layer.store.get("instance", "default", "web")
    assert asleep.spec.power is Power.SUSPENDED
    host.never = set()
    awake = await layer.power(WHO, "default", "web", "resume", timeout=None, wait=20)
    assert awake.status.phase is Phase.RUNNING and awake.spec.epoch == 1
