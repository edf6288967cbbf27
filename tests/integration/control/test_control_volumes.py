"""Volumes, snapshots and pools above their hosts: intent, claims, and what becomes of both when something goes away."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.storage_host import StorageHost

from lamella.control.layer import Layer
from lamella.control.storage.hearing import measured
from lamella.host.storage.pools import unusable
from lamella.model.errors import Conflict, Forbidden, Invalid, LamellaError, NotFound, Unavailable, Unsupported
from lamella.model.instance import Instance, InstanceSpec, Isolation, Power
from lamella.model.operation import Operation, OperationPhase
from lamella.model.requests import InstanceCreate, Principal, ResourcePatch
from lamella.model.resource import Condition, new_resource
from lamella.model.storage import (
    Feature,
    IoLimits,
    KeyWrap,
    PoolSpec,
    PoolStatus,
    Snapshot,
    StorageEvent,
    StoragePhase,
    Volume,
    VolumeForm,
    VolumeMount,
    VolumeSpec,
)
from lamella.model.storage_bodies import (
    PoolCreate,
    PoolScrub,
    SnapshotCreate,
    StorageCheck,
    VolumeAttach,
    VolumeCreate,
    VolumeDetach,
    VolumeRekey,
)

GIB = 1 << 30
WHO = Principal(name="unix:root", admin=True)
Open = Callable[[], Awaitable[Layer]]
WAIT = 90.0


async def volume(layer: Layer, name: str = "data", *, source: str = "", passphrase: str = "", **spec: object) -> Volume:
    if not source:
        spec = {"size": GIB, "filesystem": "ext4", **spec}
    body = VolumeCreate(name=name, spec=VolumeSpec(**spec), source=source, passphrase=passphrase)  # type: ignore[arg-type]
    return await layer.storage.volumes.create(WHO, "default", body, wait=WAIT)


async def instance(layer: Layer, name: str, *mounts: VolumeMount, run: bool = True, **spec: object) -> Instance:
    power = Power.RUNNING if run else Power.STOPPED
    made = InstanceSpec(image="box", volumes=list(mounts), power=power, **spec)  # type: ignore[arg-type]
    body = InstanceCreate(name=name, spec=made)
    return await layer.create_instance(WHO, "default", body, wait=WAIT, idempotency_key=None)


async def snapshot(layer: Layer, name: str, *, of: str = "data", whole: bool = False) -> Snapshot:
    body = SnapshotCreate(name=name, instance=of) if whole else SnapshotCreate(name=name, volume=of)
    return await layer.storage.snapshots.create(WHO, "default", body, wait=WAIT)


async def events(layer: Layer) -> list[str]:
    return [item.spec.type for item in (await layer.store.list("event")).items]


async def done(operation: Operation) -> Operation:
    assert operation.status.phase is OperationPhase.DONE, operation.status
    return operation


async def remove(layer: Layer, kind: str, name: str, *, force: bool = False) -> None:
    await layer.delete(WHO, "default", kind, name, force=force, expected=None, wait=WAIT)


# --- volumes


async def test_a_volume_is_made_where_there_is_room(layer: Layer, host: StorageHost) -> None:
    made = await volume(layer)
    assert (made.status.phase, made.status.size, made.status.observed_generation) == (StoragePhase.READY, GIB, 1)
    assert host.volumes[made.id]["size"] == GIB
    with pytest.raises(Conflict, match="exists already"):
        await volume(layer)
    await remove(layer, "volume", "data")
    assert host.volumes == {}
    with pytest.raises(NotFound) as absent:
        await layer.storage.volumes.rename(WHO, "default", "data", "x")
    assert "lamella volume create data" in absent.value.hint
    told = await events(layer)
    assert [told.count(f"volume.{what}") for what in ("created", "ready", "removed")] == [1, 1, 1]


async def test_what_cannot_be_made_leaves_nothing(layer: Layer, host: StorageHost) -> None:
    with pytest.raises(Invalid, match="beyond this driver"):
        await volume(layer, size=1 << 55)
    for _ in range(4500):
        if not (await layer.store.list("volume")).items:
            break
        await asyncio.sleep(0.02)
    assert (await layer.store.list("volume")).items == [] and host.volumes == {}
    with pytest.raises(NotFound, match="no pool is called 'absent'"):
        await volume(layer, pool="absent")
    for wrong in (
        {"size": 0},
        {"size": 10},
        {"form": VolumeForm.FILESYSTEM, "filesystem": "ext4"},
        {"form": VolumeForm.FILESYSTEM, "filesystem": "", "encryption": KeyWrap.KEY_FILE},
        {"limits": IoLimits(iops_burst=5)},
        {"limits": IoLimits(iops=10, iops_burst=5)},
        {"owner": "inst_1"},
        {"encryption": KeyWrap.PASSPHRASE},
    ):
        with pytest.raises(Invalid) as refused:
            await volume(layer, **wrong)
        assert refused.value.hint and refused.value.field


async def test_more_than_is_free_is_promised_with_a_warning(layer: Layer) -> None:
    made = await volume(layer, size=100 * GIB)
    assert made.status.phase is StoragePhase.READY
    [condition] = made.status.conditions
    assert condition.reason == "overcommitted" and "100GiB" in condition.message
    assert "volume.overcommitted" in await events(layer)


async def test_a_crash_at_any_request_is_made_good(opened: Open, host: StorageHost) -> None:
    layer = await opened()
    host.crash.add("CreateVolume")
    with pytest.raises(Unavailable):
        await layer.storage.volumes.create(
            WHO, "default", VolumeCreate(name="data", spec=VolumeSpec(size=GIB)), wait=WAIT
        )
    # Whoever waited was told, so that the name is free again.
    for _ in range(4500):
        if not (await layer.store.list("volume")).items:
            break
        await asyncio.sleep(0.02)
    assert host.volumes == {}
    host.crash.add("CreateVolume")
    await layer.storage.volumes.create(WHO, "default", VolumeCreate(name="data", spec=VolumeSpec(size=GIB)), wait=0)
    for _ in range(4500):
        if host.volumes:
            break
        await asyncio.sleep(0.02)
    await layer.close()
    again = await opened()
    for _ in range(4500):
        made: Volume = await again.store.get("volume", "default", "data")
        if made.status.phase is StoragePhase.READY:
            break
        await asyncio.sleep(0.02)
    assert made.status.phase is StoragePhase.READY and list(host.volumes) == [made.id]
    host.crash.add("DeleteVolume")
    with pytest.raises(Unavailable):
        await remove(again, "volume", "data")
    await again.close()
    last = await opened()
    for _ in range(4500):
        if not (await last.store.list("volume")).items:
            break
        await asyncio.sleep(0.02)
    assert (await last.store.list("volume")).items == [] and host.volumes == {}


async def test_an_operation_goes_on_after_a_restart(opened: Open, host: StorageHost) -> None:
    layer = await opened()
    made = await volume(layer)
    host.slow["ResizeVolume"] = asyncio.Event()
    operation = await layer.storage.volumes.resize(WHO, "default", "data", 4 * GIB, wait=0.2)
    assert operation.status.phase is OperationPhase.RUNNING
    await layer.close()
    host.slow.clear()
    again = await opened()
    ended = await done(await again.storage.operations.finish(operation, WAIT))
    assert ended.status.result == "data"
    made = await again.store.by_id(made.id)
    assert (made.spec.size, made.status.size, host.volumes[made.id]["size"]) == (4 * GIB, 4 * GIB, 4 * GIB)


async def test_a_size_that_cannot_be_is_taken_back(layer: Layer, host: StorageHost) -> None:
    made = await volume(layer)
    operation = await layer.storage.volumes.resize(WHO, "default", "data", GIB // 8, wait=WAIT)
    assert (operation.status.phase, operation.status.error_code) == (OperationPhase.FAILED, "unsupported")
    made = await layer.store.by_id(made.id)
    assert made.spec.size == made.status.size == GIB and made.status.observed_generation == made.generation
    assert made.status.conditions[0].reason == "unsupported"
    await done(await layer.storage.volumes.resize(WHO, "default", "data", 2 * GIB + 1, wait=WAIT))
    made = await layer.store.by_id(made.id)
    assert made.status.size == 2 * GIB + 4096 and made.status.conditions == []


async def test_limits_change_at_once_and_the_rest_has_verbs_of_its_own(layer: Layer, host: StorageHost) -> None:
    made = await volume(layer)
    patch = ResourcePatch(spec={"limits": {"iops": 100, "bandwidth": 1 << 20}}, labels={"a": "b"})
    changed = await layer.patch(WHO, "default", "volume", "data", patch, expected=made.revision, wait=WAIT)
    assert host.volumes[made.id]["limits"] == IoLimits(iops=100, bandwidth=1 << 20) == changed.spec.limits
    assert changed.labels == {"a": "b"} and changed.status.observed_generation == changed.generation == 2
    for spec in ({"size": 5 * GIB}, {"pool": "other"}, {"encryption": "tpm"}, {"form": "filesystem"}):
        with pytest.raises(Unsupported) as refused:
            await layer.patch(WHO, "default", "volume", "data", ResourcePatch(spec=spec), expected=None, wait=WAIT)
        assert refused.value.hint
    with pytest.raises(Invalid):
        await layer.patch(
            WHO, "default", "volume", "data", ResourcePatch(spec={"limits": {"iops": 0}}), expected=None, wait=WAIT
        )


async def test_limits_are_not_shared_while_a_machine_writes_to_the_volume(layer: Layer, host: StorageHost) -> None:
    """It may be served by a process of the machine's own, where they do not reach; at its next start it is not."""
    made = await volume(layer)
    patch = ResourcePatch(spec={"limits": {"iops": 100, "group": "web"}})
    await instance(layer, "vm", VolumeMount(volume="data"), isolation=Isolation.VM)
    with pytest.raises(Conflict, match="while vm is running"):
        await layer.patch(WHO, "default", "volume", "data", patch, expected=None, wait=WAIT)
    assert (await layer.store.by_id(made.id)).spec.limits == IoLimits()
    own = ResourcePatch(spec={"limits": {"iops": 100}})
    await layer.patch(WHO, "default", "volume", "data", own, expected=None, wait=WAIT)
    await layer.power(WHO, "default", "vm", "stop", timeout=None, wait=WAIT)
    await layer.patch(WHO, "default", "volume", "data", patch, expected=None, wait=WAIT)
    await layer.power(WHO, "default", "vm", "start", timeout=None, wait=WAIT)
    # What it has already may change.
    patch = ResourcePatch(spec={"limits": {"iops": 50}})
    await layer.patch(WHO, "default", "volume", "data", patch, expected=None, wait=WAIT)
    assert host.volumes[made.id]["limits"] == IoLimits(iops=50, group="web")


async def test_keys_come_from_the_host_and_passphrases_stay_nowhere(layer: Layer, host: StorageHost) -> None:
    made = await volume(layer, encryption=KeyWrap.PASSPHRASE, passphrase="correct horse")
    assert made.status.key and host.passphrases[made.id] == "correct horse"
    with pytest.raises(Conflict, match="does not open"):
        await layer.storage.keys.unlock(WHO, "default", "data", "wrong")
    await layer.storage.keys.unlock(WHO, "default", "data", "correct horse")
    body = VolumeRekey(encryption=KeyWrap.KEY_FILE, passphrase="correct horse")
    changed = await layer.storage.keys.rekey(WHO, "default", "data", body)
    assert changed.spec.encryption is KeyWrap.KEY_FILE and changed.status.key == "another key-file"
    assert changed.status.observed_generation == changed.generation
    with pytest.raises(Conflict, match="needs no passphrase"):
        await layer.storage.keys.unlock(WHO, "default", "data", "correct horse")
    plain = await volume(layer, "plain")
    with pytest.raises(Conflict, match="not encrypted"):
        await layer.storage.keys.rekey(WHO, "default", plain.name, VolumeRekey())
    changes = await layer.store.changes(0, limit=10_000)
    assert not any("correct horse" in repr(change) for change in changes)


# --- in instances


async def test_a_block_volume_has_one_writer(layer: Layer) -> None:
    made = await volume(layer)
    first = await instance(layer, "first", VolumeMount(volume="data", target="/data"))
    assert first.status.volumes == {"data": made.id}
    with pytest.raises(Conflict, match="attached to first, which may write"):
        await instance(layer, "second", VolumeMount(volume="data", target="/data"))
    with pytest.raises(Conflict, match="attached to first"):
        await instance(layer, "second", VolumeMount(volume="data", target="/data", read_only=True))
    assert [item.name for item in (await layer.store.list("instance")).items] == ["first"]
    with pytest.raises(Conflict, match="attached to first"):
        await remove(layer, "volume", "data")
    await remove(layer, "instance", "first", force=True)
    left = await layer.store.by_id(made.id)
    assert left.status.attached == [] and left.status.phase is StoragePhase.READY
    mount = VolumeMount(volume="data", target="/data", read_only=True)
    for name in ("one", "two"):
        await instance(layer, name, mount)
    with pytest.raises(Conflict, match="attached to one"):
        await instance(layer, "three", VolumeMount(volume="data", target="/data"))


async def test_a_directory_tree_is_shared(layer: Layer) -> None:
    made = await volume(layer, form=VolumeForm.FILESYSTEM, filesystem="", size=0)
    for name in ("one", "two"):
        await instance(layer, name, VolumeMount(volume="data", target="/data"))
    assert len((await layer.store.by_id(made.id)).status.attached) == 2
    with pytest.raises(Unsupported, match="directory tree"):
        await instance(layer, "vm", VolumeMount(volume="data", target="/data"), isolation=Isolation.MICROVM)


async def test_volumes_come_and_go(layer: Layer) -> None:
    made = await volume(layer)
    volumes = layer.storage.volumes
    await instance(layer, "box", run=False)
    attached = await volumes.attach(WHO, "default", "data", VolumeAttach(instance="box", target="/data"), wait=WAIT)
    box = await layer.store.get("instance", "default", "box")
    assert attached.status.attached == [box.id] and box.status.volumes == {"data": made.id}
    await layer.power(WHO, "default", "box", "start", timeout=None, wait=WAIT)
    with pytest.raises(Conflict, match="cannot be changed while it is running"):
        await volumes.detach(WHO, "default", "data", VolumeDetach(instance="box"), wait=WAIT)
    await layer.power(WHO, "default", "box", "stop", timeout=None, wait=WAIT)
    detached = await volumes.detach(WHO, "default", "data", VolumeDetach(instance="box"), wait=WAIT)
    assert detached.status.attached == []
    with pytest.raises(NotFound, match="not attached"):
        await volumes.detach(WHO, "default", "data", VolumeDetach(instance="box"), wait=WAIT)
    assert await layer.store.read(lambda tx: tx.claims("writer")) == {}
    assert (await layer.store.by_id(made.id)).status.phase is StoragePhase.READY
    # What is plugged in while it runs is a machine's.
    await instance(layer, "vm", isolation=Isolation.VM)
    await volumes.attach(WHO, "default", "data", VolumeAttach(instance="vm"), wait=WAIT)
    assert await layer.store.read(lambda tx: set(tx.claims("writer"))) == {made.id}
    await volumes.detach(WHO, "default", "data", VolumeDetach(instance="vm"), wait=WAIT)
    assert await layer.store.read(lambda tx: tx.claims("writer")) == {}


async def test_nobody_but_its_owner_has_an_instance_s_own_disk(layer: Layer) -> None:
    box = await instance(layer, "box", run=False)
    root = await layer.store.by_id(box.status.volume)
    for refused in (
        layer.storage.volumes.attach(WHO, "default", root.name, VolumeAttach(instance="box", target="/x"), wait=0),
        layer.storage.volumes.rename(WHO, "default", root.name, "mine"),
        remove(layer, "volume", root.name),
        layer.storage.volumes.resize(WHO, "default", root.name, GIB, wait=0),
    ):
        with pytest.raises(LamellaError, match="instance's own"):
            await refused


async def test_a_new_name_is_known_everywhere(layer: Layer) -> None:
    made = await volume(layer)
    box = await instance(layer, "box", VolumeMount(volume="data", target="/data"))
    taken = await snapshot(layer, "nightly")
    await volume(layer, "other")
    with pytest.raises(Conflict, match="exists already"):
        await layer.storage.volumes.rename(WHO, "default", "data", "other")
    renamed = await layer.storage.volumes.rename(WHO, "default", "data", "moved")
    assert (renamed.id, renamed.name) == (made.id, "moved")
    assert (await layer.store.by_id(taken.id)).name == "moved@nightly"
    box = await layer.store.by_id(box.id)
    assert box.spec.volumes[0].volume == "moved" and box.status.volumes == {"moved": made.id}
    await remove(layer, "instance", "box", force=True)
    assert (await layer.store.by_id(made.id)).status.attached == []


@given(st.text("./ab", max_size=8), st.text("./ab", max_size=8))
def test_two_mounts_are_never_at_one_place(first: str, second: str) -> None:
    from pathlib import PurePosixPath

    from lamella.control.storage.fitting import check_mounts

    mounts = [VolumeMount(volume="a", target=f"/{first}"), VolumeMount(volume="b", target=f"/{second}")]
    try:
        check_mounts(InstanceSpec(image="x", volumes=mounts))
    except Invalid:
        return
    one, two = PurePosixPath(f"/{first}".replace("//", "/")), PurePosixPath(f"/{second}".replace("//", "/"))
    assert one != two and ".." not in one.parts and ".." not in two.parts


# --- snapshots


async def test_a_snapshot_is_cloned_and_restored(layer: Layer, host: StorageHost) -> None:
    made = await volume(layer, limits=IoLimits(iops=5))
    host.volumes[made.id]["data"] = b"monday"
    await snapshot(layer, "monday")
    host.volumes[made.id]["data"] = b"tuesday"
    clone = await volume(layer, "test", source="data@monday")
    assert host.volumes[clone.id]["data"] == b"monday" and clone.spec.filesystem == "ext4"
    assert (clone.status.size, clone.spec.limits.iops) == (GIB, None)
    now = await volume(layer, "now", source="data")
    assert host.volumes[now.id]["data"] == b"tuesday"
    assert len((await layer.store.list("snapshot")).items) == 2
    await done(await layer.storage.volumes.resize(WHO, "default", "data", 2 * GIB, wait=WAIT))
    await done(await layer.storage.snapshots.restore(WHO, "default", "data@monday", wait=WAIT))
    made = await layer.store.by_id(made.id)
    assert host.volumes[made.id]["data"] == b"monday" and made.status.size == made.spec.size == GIB
    with pytest.raises(Invalid, match="cannot have less"):
        await volume(layer, "small", source="data@monday", size=1 << 20)
    secret = await volume(layer, "secret", source="data@monday", encryption=KeyWrap.TPM)
    assert secret.spec.encryption is KeyWrap.TPM
    with pytest.raises(Invalid, match="no passphrase"):
        await volume(layer, "locked", source="data", encryption=KeyWrap.PASSPHRASE)
    await remove(layer, "volume", "secret")
    await remove(layer, "volume", "now")
    for _ in range(4500):
        if len((await layer.store.list("snapshot")).items) == 1:
            break
        await asyncio.sleep(0.02)
    assert [item.name for item in (await layer.store.list("snapshot")).items] == ["data@monday"]
    with pytest.raises(Conflict, match="has 1 snapshot: data@monday"):
        await remove(layer, "volume", "data")
    await remove(layer, "volume", "data", force=True)
    assert (await layer.store.list("snapshot")).items == []


async def test_what_the_host_refuses_stays(layer: Layer, host: StorageHost) -> None:
    await volume(layer)
    await snapshot(layer, "nightly")
    host.refuse["DropSnapshot"] = Conflict("volume test stands on it", hint="remove test first")
    with pytest.raises(Conflict, match="volume test stands on it"):
        await remove(layer, "snapshot", "data@nightly")
    kept: Snapshot = await layer.store.get("snapshot", "default", "data@nightly")
    assert kept.status.phase is StoragePhase.READY and kept.deleted_at is None
    host.refuse = {"DeleteVolume": Conflict("volume test stands on it")}
    with pytest.raises(Conflict, match="stands on it"):
        await remove(layer, "volume", "data", force=True)
    left: Volume = await layer.store.get("volume", "default", "data")
    assert left.status.phase is StoragePhase.READY and left.deleted_at is None
    host.refuse = {}
    await remove(layer, "volume", "data", force=True)


async def test_all_disks_of_an_instance_at_once(layer: Layer) -> None:
    made = await volume(layer)
    box = await instance(layer, "box", VolumeMount(volume="data"), isolation=Isolation.VM)
    taken = await layer.storage.snapshots.create(
        WHO, "default", SnapshotCreate(name="before", instance="box", consistent=True), wait=WAIT
    )
    assert taken.name == "box@before" and taken.status.consistency == "application"
    assert set(taken.spec.volumes) == {box.status.volume, made.id} == set(taken.status.sizes)
    with pytest.raises(Conflict, match="box is running"):
        await layer.storage.snapshots.restore(WHO, "default", "box@before", wait=WAIT)
    await layer.power(WHO, "default", "box", "stop", timeout=None, wait=WAIT)
    await done(await layer.storage.snapshots.restore(WHO, "default", "box@before", wait=WAIT))
    assert await layer.store.read(lambda tx: tx.claims("busy")) == {}
    with pytest.raises(Invalid):
        await layer.storage.snapshots.create(WHO, "default", SnapshotCreate(name="x"), wait=WAIT)


async def test_nothing_starts_on_what_is_being_restored(layer: Layer, host: StorageHost) -> None:
    await volume(layer)
    await instance(layer, "box", VolumeMount(volume="data", target="/data"), run=False)
    await snapshot(layer, "nightly")
    host.slow["RestoreSnapshot"] = asyncio.Event()
    operation = await layer.storage.snapshots.restore(WHO, "default", "data@nightly", wait=0.1)
    for refused in (
        layer.power(WHO, "default", "box", "start", timeout=None, wait=0),
        layer.storage.volumes.resize(WHO, "default", "data", 2 * GIB, wait=0),
        layer.storage.snapshots.restore(WHO, "default", "data@nightly", wait=0),
        remove(layer, "snapshot", "data@nightly"),
    ):
        with pytest.raises(Conflict, match="busy: restore goes on"):
            await refused
    host.slow["RestoreSnapshot"].set()
    await done(await layer.storage.operations.finish(operation, WAIT))
    await layer.power(WHO, "default", "box", "start", timeout=None, wait=WAIT)


# --- pools


async def test_a_pool_is_made_whole_or_not_at_all(layer: Layer, host: StorageHost) -> None:
    pools = layer.storage.pools
    body = PoolCreate(name="fast", spec=PoolSpec(path="/srv/fast"))
    made = await pools.create(WHO, "default", body, wait=WAIT)
    assert made.status.phase is StoragePhase.READY and Feature.THIN in made.status.features
    with pytest.raises(Unsupported, match="no storage driver floppy"):
        await pools.create(WHO, "default", PoolCreate(name="odd", spec=PoolSpec(driver="floppy")), wait=WAIT)
    host.refuse["OpenPool"] = Unavailable("/srv/none cannot be written")
    with pytest.raises(Unavailable, match="/srv/none"):
        await pools.create(WHO, "default", PoolCreate(name="none", spec=PoolSpec(path="/srv/none")), wait=WAIT)
    host.refuse.clear()
    assert sorted(item.name for item in (await layer.store.list("pool")).items) == ["default", "fast"]
    with pytest.raises(Conflict, match="pool fast is there already"):
        await pools.create(WHO, "default", PoolCreate(name="twin", spec=PoolSpec(path="/srv/fast/")), wait=WAIT)
    inside = await volume(layer, pool="fast")
    assert inside.spec.pool == "fast"
    with pytest.raises(Conflict, match="has 1 volume: data"):
        await remove(layer, "pool", "fast")
    with pytest.raises(Conflict, match="default stays"):
        await remove(layer, "pool", "default")
    ended = await done(await pools.scrub(WHO, "default", "fast", PoolScrub(), wait=WAIT))
    assert ended.status.report is not None and ended.status.report.checked == 1
    await remove(layer, "volume", "data")
    await remove(layer, "pool", "fast")
    assert "fast" not in host.pools
    with pytest.raises(Forbidden):
        await pools.create(Principal(name="unix:ann"), "default", body, wait=WAIT)
    with pytest.raises(Invalid):
        await pools.create(WHO, "team", body, wait=WAIT)


async def test_what_hosts_tell_is_written_down(layer: Layer, host: StorageHost) -> None:
    made = await volume(layer)
    id = made.status.host or ""
    await layer.desk.tell(
        id,
        [
            StorageEvent(type="pool.low", message="a tenth is free", pool="default"),
            StorageEvent(type="volume.error", message="it cannot be read", volume=made.id),
            StorageEvent(type="storage.restarted", message="the storage process was started again"),
            StorageEvent(type="pool.full", message="of nothing", pool="absent"),
        ],
    )
    pool = await layer.store.get("pool", "default", "default")
    assert [(item.type, item.reason) for item in pool.status.conditions] == [("Space", "low")]
    assert (await layer.store.by_id(made.id)).status.conditions[0].reason == "error"
    told = await events(layer)
    assert {"pool.low", "volume.error", "storage.restarted"} <= set(told)
    await layer.desk.tell(id, [StorageEvent(type="pool.room", message="there is room", pool="default")])
    assert (await layer.store.get("pool", "default", "default")).status.conditions == []


@pytest.mark.parametrize("free", [5, 50])
async def test_a_pool_that_was_short_is_so_until_it_is_measured_otherwise(free: int) -> None:
    low = Condition(type="Space", status=False, reason="low", message="a tenth is free")
    pool = new_resource("pool", "fast", PoolSpec(), PoolStatus(capacity=100, free=9, conditions=[low]))
    after = measured(pool, PoolStatus(capacity=100, free=free))
    assert [item.reason for item in after.conditions] == (["low"] if free == 5 else [])


async def test_a_pool_that_does_not_answer_is_failed_until_it_does() -> None:
    pool = new_resource("pool", "fast", PoolSpec(), PoolStatus(capacity=100, free=50, features=["block"]))
    pool.status = measured(pool, unusable("it is not mounted"))
    assert pool.status.phase is StoragePhase.FAILED
    assert [(item.type, item.message) for item in pool.status.conditions] == [("Ready", "it is not mounted")]
    pool.status = measured(pool, PoolStatus(capacity=100, free=50, features=["block"]))
    assert (pool.status.phase, pool.status.conditions) == (StoragePhase.READY, [])
    pool.status.phase = StoragePhase.DELETING
    assert measured(pool, unusable("it is gone")).phase is StoragePhase.DELETING


async def test_a_check_finds_what_is_gone(layer: Layer, host: StorageHost) -> None:
    made = await volume(layer)
    clean = await done(await layer.storage.inspection.check(WHO, StorageCheck(), wait=WAIT))
    assert clean.status.report is not None and clean.status.report.findings == []
    host.volumes.pop(made.id)
    found = await done(await layer.storage.inspection.check(WHO, StorageCheck(repair=True), wait=WAIT))
    assert found.status.report is not None and "data" in found.status.report.findings[0].subject


async def test_a_contract_says_what_holds_of_volumes(layer: Layer) -> None:
    await volume(layer, limits=IoLimits(iops=100, bandwidth=1 << 20), encryption=KeyWrap.KEY_FILE)
    await instance(layer, "box", VolumeMount(volume="data", target="/data"))
    contract = await layer.contract(WHO, "default", "box")
    said = " ".join(line.value for line in contract.guarantees if line.subject == "volume data")
    assert "pool default" in said and "encrypted" in said and "nobody else has it" in said and "snapshot" in said
    [line] = [line for line in contract.limits if line.subject == "volume data"]
    assert "100 operations a second" in line.value and line.enforced_by == "throttle of the storage process"
