"""Backups above their hosts: what is asked is written down first, and what became of it after a crash, a deletion, a step of the clock."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.storage_host import StorageHost

from lamella.control.backup.policies import due
from lamella.control.layer import Layer
from lamella.control.storage import operations
from lamella.model.backup import Backup, BackupPolicy, BackupSource, Retention
from lamella.model.backup_bodies import BackupCreate, BackupRestore, PolicyPut, RepositoryCreate, RepositoryVerify
from lamella.model.errors import Conflict, Corrupt, LamellaError, NotFound, Unavailable
from lamella.model.instance import InstanceSpec, Power
from lamella.model.operation import Operation, OperationPhase
from lamella.model.replication_bodies import VolumeMove
from lamella.model.requests import InstanceCreate, Principal
from lamella.model.resource import now
from lamella.model.storage import KeyWrap, PoolSpec, StoragePhase, Volume, VolumeMount, VolumeSpec
from lamella.model.storage_bodies import PoolCreate, SnapshotCreate, VolumeCreate, VolumeRekey
from lamella.store.store import Transaction

GIB = 1 << 30
WHO = Principal(name="unix:root", admin=True)
Open = Callable[[], Awaitable[Layer]]
WAIT = 90.0


@pytest.fixture(autouse=True)
def no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's dump is another test's."""

    async def dump() -> bytes:
        return b"the store"

    monkeypatch.setattr("lamella.control.layer.dump_of", lambda _: dump)


async def repository(layer: Layer) -> None:
    made = await layer.backup.repositories.create(WHO, "default", RepositoryCreate(name="vault", url="/mnt/usb"))
    assert made.recovery_key


async def volume(layer: Layer, host: StorageHost, name: str = "data", content: bytes = b"first") -> Volume:
    body = VolumeCreate(name=name, spec=VolumeSpec(size=GIB, filesystem="ext4"))
    made = await layer.storage.volumes.create(WHO, "default", body, wait=WAIT)
    host.volumes[made.id]["data"] = content
    return made


async def back_up(layer: Layer, of: str = "data", *, instance: bool = False, **more: Any) -> Operation:
    body = BackupCreate(repository="vault", **{"instance" if instance else "volume": of}, **more)
    return await layer.backup.backups.create(WHO, "default", body, wait=WAIT)


async def restore(layer: Layer, of: str, new: str, **more: Any) -> Operation:
    body = BackupRestore(name=new, **more)
    verbs = layer.backup.instances if body.instance else layer.backup.restoring
    return await verbs.restore(WHO, "default", of, body, wait=WAIT)


def done(operation: Operation) -> str:
    assert operation.status.phase is OperationPhase.DONE, operation.status
    return operation.status.result


def failed(operation: Operation) -> str:
    assert operation.status.phase is OperationPhase.FAILED, operation.status
    return operation.status.error


async def rows(layer: Layer, kind: str = "backup") -> list[Any]:
    return (await layer.store.list(kind)).items


async def volumes_called(layer: Layer) -> list[str]:
    return sorted(item.name for item in await rows(layer, "volume") if item.deleted_at is None)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(4500):
        if await condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come to rest")


async def ended(layer: Layer, verb: str) -> Operation:
    """The newest operation of *verb*, when it has."""
    newest: Operation = max(
        (row for row in await rows(layer, "operation") if row.spec.verb == verb), key=lambda r: r.id
    )
    return await layer.storage.operations.finish(newest, WAIT)


# --- crashes between steps


async def test_a_backup_that_was_cut_off_is_none_and_its_snapshot_goes(
    opened: Open, host: StorageHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamella.control.storage.keeper.AGAIN", 0.2)
    layer = await opened()
    await repository(layer)
    made = await volume(layer, host)
    for step in ("TakeSnapshot", "BackUp"):
        host.slow[step] = asyncio.Event()
        body = BackupCreate(repository="vault", volume="data")
        await layer.backup.backups.create(WHO, "default", body, wait=0)
        asked = host.asked.count(step)

        async def reached(step: str = step, asked: int = asked) -> bool:
            return host.asked.count(step) > 0

        await until(reached)
        with pytest.raises(Conflict, match="is being made already"):
            await back_up(layer)
        await layer.close()
        host.slow.pop(step)
        host.asked.clear()
        layer = await opened()

        async def free() -> bool:
            return not await rows(layer, "snapshot") and not host.volumes[made.id]["snapshots"]  # noqa: B023

        await until(free)
        assert [row.status.phase for row in await rows(layer)][-1] is StoragePhase.FAILED
    whole = done(await back_up(layer))
    assert (await layer.store.get("backup", "default", whole)).status.phase is StoragePhase.READY


async def test_a_host_that_went_away_after_its_work_leaves_nothing_that_counts(layer: Layer, host: StorageHost) -> None:
    await repository(layer)
    await volume(layer, host)
    host.crash.add("BackUp")
    assert "went away" in failed(await back_up(layer))
    [row] = [row for row in await rows(layer) if row.spec.of is BackupSource.VOLUME]
    assert row.status.phase is StoragePhase.FAILED and row.status.conditions[0].reason == "unavailable"
    # The next one is whole, and stands on none that failed.
    made: Backup = await layer.store.get("backup", "default", done(await back_up(layer)))
    assert not made.status.incremental
    again: Backup = await layer.store.get("backup", "default", done(await back_up(layer)))
    assert again.status.incremental


async def test_a_restore_goes_on_after_a_crash(opened: Open, host: StorageHost) -> None:
    layer = await opened()
    await repository(layer)
    made = await volume(layer, host)
    done(await back_up(layer))
    host.volumes[made.id]["data"] = b"second"
    host.slow["RestoreBackup"] = asyncio.Event()
    body = BackupRestore(name="data", force=True)
    await layer.backup.restoring.restore(WHO, "default", "data", body, wait=0.2)
    with pytest.raises(Conflict, match="busy"):
        await layer.storage.volumes.delete(WHO, "default", "data", force=True, expected=None, wait=0)
    await layer.close()
    host.slow.clear()
    layer = await opened()
    done(await ended(layer, "restore-backup"))
    assert host.volumes[made.id]["data"] == b"first"


async def test_what_failed_to_come_leaves_nothing_new_and_nothing_less(layer: Layer, host: StorageHost) -> None:
    await repository(layer)
    made = await volume(layer, host)
    done(await back_up(layer))
    host.refuse["RestoreBackup"] = Corrupt("what is stored in the repository is damaged", hint="verify it")
    assert "damaged" in failed(await restore(layer, "data", "copy"))

    async def gone() -> bool:
        return await volumes_called(layer) == ["data"] and list(host.volumes) == [made.id]

    await until(gone)
    assert "damaged" in failed(await restore(layer, "data", "data", force=True))
    kept: Volume = await layer.store.by_id(made.id)
    assert kept.status.phase is StoragePhase.READY
    told = [item.spec.message for item in await rows(layer, "event") if item.spec.type == "volume.kept"]
    assert len(told) == 1 and "is what it was" in told[0]
    host.refuse.clear()
    assert done(await restore(layer, "data", "copy")) == "copy"
    with pytest.raises(Conflict, match="volume copy is there"):
        await restore(layer, "data", "copy")


# --- what is taken away meanwhile


async def test_a_volume_of_another_host_wants_a_repository_of_that_host(layer: Layer, host: StorageHost) -> None:
    await repository(layer)
    made = await volume(layer, host)

    def elsewhere(tx: Transaction) -> None:
        row = tx.by_id(made.id)
        row.status.host = "hst_elsewhere"
        tx.update(row)

    await layer.store.write(elsewhere)
    with pytest.raises(Conflict, match="lies on another host") as refused:
        await back_up(layer)
    assert "--host-name" in refused.value.hint
    assert not await rows(layer) and not await rows(layer, "snapshot")


async def test_a_policy_goes_with_its_volume_and_the_layer_keeps_its_own(layer: Layer, host: StorageHost) -> None:
    await repository(layer)
    await layer.backup.policies.close()
    put = layer.backup.policies.put
    made = await volume(layer, host)
    first = await put(WHO, "default", PolicyPut(volume="data", repository="vault", keep=Retention(daily=7)))
    whole = await put(WHO, "default", PolicyPut(repository="vault", keep=Retention(last=2)))
    await layer.storage.volumes.rename(WHO, "default", "data", "papers")
    again = await put(WHO, "default", PolicyPut(volume="papers", repository="vault", keep=Retention(daily=3)))
    assert (again.id, again.name, again.spec.volume_name) == (first.id, "papers", "papers")
    # Its old name is free for another volume, whose policy is another one.
    other = await volume(layer, host, "data")
    second = await put(WHO, "default", PolicyPut(volume="data", repository="vault"))
    assert second.name == "data" and second.spec.volume == other.id
    # Whatever is called layer, the layer's own state is backed up as it was.
    await layer.storage.volumes.rename(WHO, "default", "papers", "layer")
    fresh = await put(WHO, "default", PolicyPut(volume="layer", repository="vault", keep=Retention(daily=5)))
    assert fresh.id == first.id and fresh.spec.volume == made.id
    own = await layer.store.get("policy", "default", "layer")
    assert own.id == whole.id and not own.spec.volume and own.spec.keep.last == 2
    assert len(await rows(layer, "policy")) == 3
    await layer.storage.volumes.rename(WHO, "default", "layer", "papers")
    await layer.backup.policies.delete(WHO, "default", "papers")
    assert {item.id for item in await rows(layer, "policy")} == {whole.id, second.id}
    # One of a volume that is gone is in nobody's way.
    await layer.storage.volumes.delete(WHO, "default", "data", force=True, expected=None, wait=WAIT)
    await layer.storage.volumes.rename(WHO, "default", "papers", "data")
    third = await put(WHO, "default", PolicyPut(volume="data", repository="vault"))
    assert third.name == "data" and third.spec.volume == made.id and third.id != second.id


async def test_a_plain_backup_does_not_go_over_an_encrypted_volume(layer: Layer, host: StorageHost) -> None:
    await repository(layer)
    await volume(layer, host)
    plain = done(await back_up(layer))
    spec = VolumeSpec(size=GIB, filesystem="ext4", encryption=KeyWrap.KEY_FILE)
    sealed = await layer.storage.volumes.create(WHO, "default", VolumeCreate(name="sealed", spec=spec), wait=WAIT)
    with pytest.raises(Conflict, match="is not encrypted, and volume sealed is encrypted") as refused:
        await restore(layer, plain, "sealed", force=True)
    assert "--as" in refused.value.hint
    secret = done(await back_up(layer, "sealed"))
    with pytest.raises(Conflict, match="is encrypted, and volume data is not encrypted"):
        await restore(layer, secret, "data", force=True)
    # Its key came with it, wrapped as it was then.
    await layer.storage.keys.rekey(
        WHO, "default", "sealed", VolumeRekey(encryption=KeyWrap.PASSPHRASE, new_passphrase="a long enough phrase")
    )
    done(await restore(layer, secret, "sealed", force=True))
    assert (await layer.store.by_id(sealed.id)).spec.encryption is KeyWrap.KEY_FILE


async def test_a_volume_is_renamed_while_it_is_backed_up(layer: Layer, host: StorageHost) -> None:
    await repository(layer)
    await volume(layer, host)
    host.slow["BackUp"] = asyncio.Event()
    work = asyncio.create_task(back_up(layer))

    async def reading() -> bool:
        return "BackUp" in host.asked

    await until(reading)
    await layer.storage.volumes.rename(WHO, "default", "data", "other")
    host.slow["BackUp"].set()
    name = done(await work)
    assert (await layer.store.get("backup", "default", name)).spec.volume_name == "data"
    # It is found by both names: what it was called then, and by what it is of.
    assert done(await restore(layer, name, "back")) == "back"


async def test_a_volume_that_is_backed_up_moves_and_gets_another_key(layer: Layer, host: StorageHost) -> None:
    await repository(layer)
    host.pools["fast"] = host.room()
    spec = PoolSpec(driver="directory", path="/mnt/fast")
    await layer.storage.pools.create(WHO, "default", PoolCreate(name="fast", spec=spec), wait=WAIT)
    sealed = VolumeSpec(size=GIB, filesystem="ext4", encryption=KeyWrap.KEY_FILE)
    made = await layer.storage.volumes.create(WHO, "default", VolumeCreate(name="data", spec=sealed), wait=WAIT)
    verbs = layer.storage
    first = done(await back_up(layer))
    assert len(host.volumes[made.id]["snapshots"]) == 1
    done(await verbs.transferring.move(WHO, "default", "data", VolumeMove(pool="fast"), wait=WAIT))
    assert host.places[made.id] == "fast" and not host.volumes[made.id]["snapshots"]
    assert not await rows(layer, "snapshot")
    # The backup is whole still, and the next one does not look for what changed since.
    before: Backup = await layer.store.get("backup", "default", first)
    assert before.status.phase is StoragePhase.READY and not before.status.snapshot
    done(await back_up(layer))
    await verbs.keys.rekey(WHO, "default", "data", VolumeRekey())
    assert not await rows(layer, "snapshot")
    # Somebody's own snapshot is refused as ever, and then a backup's stays, too.
    done(await back_up(layer))
    await verbs.snapshots.create(WHO, "default", SnapshotCreate(name="mine", volume="data"), wait=WAIT)
    error = failed(await verbs.transferring.move(WHO, "default", "data", VolumeMove(pool="default"), wait=WAIT))
    assert "has snapshots" in error and len(await rows(layer, "snapshot")) == 2
    # While it is read it stays where it is.
    await verbs.snapshots.delete(WHO, "default", "data@mine", expected=None, wait=WAIT)
    held = host.slow["BackUp"] = asyncio.Event()
    going = asyncio.create_task(back_up(layer))

    async def reading() -> bool:
        return host.asked[-1] == "BackUp"

    await until(reading)
    with pytest.raises(Conflict, match="is being backed up"):
        await verbs.transferring.move(WHO, "default", "data", VolumeMove(pool="default"), wait=WAIT)
    with pytest.raises(Conflict, match="is being backed up"):
        await verbs.keys.rekey(WHO, "default", "data", VolumeRekey())
    held.set()
    done(await going)


async def test_a_volume_and_its_snapshot_are_removed_while_they_are_backed_up(layer: Layer, host: StorageHost) -> None:
    await repository(layer)
    await volume(layer, host)
    host.slow["BackUp"] = asyncio.Event()
    work = asyncio.create_task(back_up(layer))

    async def reading() -> bool:
        return "BackUp" in host.asked

    await until(reading)
    [snapshot] = await rows(layer, "snapshot")
    with pytest.raises(Conflict, match="was read from snapshot"):
        await layer.storage.snapshots.delete(WHO, "default", snapshot.name, expected=None, wait=0)
    await layer.storage.volumes.delete(WHO, "default", "data", force=False, expected=None, wait=WAIT)
    host.slow["BackUp"].set()
    assert failed(await work)
    assert [row.status.phase for row in await rows(layer)] == [StoragePhase.FAILED]
    assert await rows(layer, "snapshot") == []


async def test_a_repository_that_is_forgotten_says_how_to_open_it(layer: Layer, host: StorageHost) -> None:
    await repository(layer)
    await volume(layer, host)
    done(await back_up(layer))
    with pytest.raises(Conflict, match="2 backups"):
        await layer.backup.repositories.delete(WHO, "default", "vault", force=False)
    host.refuse["BackUp"] = Unavailable("connection refused", hint="is the server there?")
    assert "connection refused" in failed(await back_up(layer))
    host.refuse.clear()
    await layer.backup.repositories.delete(WHO, "default", "vault", force=True)
    assert await rows(layer) == [] and host.vault
    with pytest.raises(NotFound, match="no repository is called 'vault'"):
        await back_up(layer)


# --- instances


async def instance(layer: Layer, host: StorageHost, name: str = "web", *, run: bool = False) -> Any:
    await volume(layer, host, "data", b"of the volume")
    spec = InstanceSpec(
        image="box",
        volumes=[VolumeMount(volume="data", target="/data")],
        power=Power.RUNNING if run else Power.STOPPED,
        environment={"PASSWORD": "correct horse"},
    )
    body = InstanceCreate(name=name, spec=spec, labels={"tier": "front"})
    made = await layer.create_instance(WHO, "default", body, wait=WAIT, idempotency_key=None)
    root = {"size": GIB, "used": 0, "key": "", "data": b"of the root", "snapshots": {}, "limits": None}
    if made.status.volume:
        host.volumes[made.status.volume] = root
    return made


async def test_an_instance_comes_back_as_one(layer: Layer, host: StorageHost) -> None:
    await repository(layer)
    made = await instance(layer, host)
    names = done(await back_up(layer, "web", instance=True)).split()
    kinds = [(await layer.store.get("backup", "default", name)).spec.of for name in names]
    assert kinds == [BackupSource.VOLUME, BackupSource.VOLUME, BackupSource.INSTANCE]
    with pytest.raises(Conflict, match="instance web is there"):
        await restore(layer, "web", "web", instance=True)
    with pytest.raises(Conflict, match="but the instance"):
        await restore(layer, names[-1], "web2")
    # Beside the first its volume has another name; in its place the same.
    assert done(await restore(layer, "web", "web2", instance=True)) == "web2"
    second = await layer.store.get("instance", "default", "web2")
    assert (second.labels, second.spec.environment) == ({"tier": "front"}, made.spec.environment)
    assert [mount.volume for mount in second.spec.volumes] == ["web2-data"] and second.spec.power is Power.STOPPED
    assert host.volumes[second.status.volumes["web2-data"]]["data"] == b"of the volume"
    assert host.volumes[second.status.volume]["data"] == b"of the root"
    for name in ("web", "web2"):
        await layer.delete(WHO, "default", "instance", name, force=True, expected=None, wait=WAIT)
    for name in ("data", "web2-data"):
        await layer.delete(WHO, "default", "volume", name, force=True, expected=None, wait=WAIT)
    assert done(await restore(layer, names[-1], "web", instance=True)) == "web"
    third = await layer.store.get("instance", "default", "web")
    assert [mount.volume for mount in third.spec.volumes] == ["data"]


async def test_an_instance_that_cannot_come_back_leaves_nothing(layer: Layer, host: StorageHost) -> None:
    await repository(layer)
    await instance(layer, host)
    done(await back_up(layer, "web", instance=True))
    before = await volumes_called(layer)
    host.refuse["RestoreBackup"] = Corrupt("what is stored in the repository is damaged", hint="verify it")
    assert "damaged" in failed(await restore(layer, "web", "web2", instance=True))

    async def as_before() -> bool:
        names = [item.name for item in await rows(layer, "instance")]
        return await volumes_called(layer) == before and names == ["web"]

    await until(as_before)
    host.refuse.clear()
    await layer.images.delete(WHO, "default", "box", force=True, expected=None)
    assert "box" in failed(await restore(layer, "web", "web2", instance=True))
    await until(as_before)


async def test_an_instance_that_was_cut_off_comes_back_after_a_crash(opened: Open, host: StorageHost) -> None:
    layer = await opened()
    await repository(layer)
    await instance(layer, host)
    done(await back_up(layer, "web", instance=True))
    host.slow["RestoreBackup"] = asyncio.Event()
    body = BackupRestore(name="web2", instance=True)
    await layer.backup.instances.restore(WHO, "default", "web", body, wait=0.3)
    await layer.close()
    host.slow.clear()
    layer = await opened()
    assert done(await ended(layer, "restore-instance")) == "web2"
    assert (await volumes_called(layer)).count("web2-data") == 1
    second = await layer.store.get("instance", "default", "web2")
    assert host.volumes[second.status.volume]["data"] == b"of the root"


# --- by the clock


async def test_what_a_policy_keeps_by_a_clock_that_is_stepped(
    layer: Layer, host: StorageHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight weeks of days: seven days and four weeks stay, and what was missed is made up for once."""
    clock = now()
    ours = [f"lamella.control.backup.{name}" for name in ("policies", "repositories", "backups")]
    for module in (*ours, "tests.storage_host", "tests.backup_host"):
        monkeypatch.setattr(f"{module}.now", lambda: clock)
    await layer.backup.policies.close()
    await repository(layer)
    await volume(layer, host)
    body = PolicyPut(volume="data", repository="vault", keep=Retention(daily=7, weekly=4), verify_every=14 * 86400)
    await layer.backup.policies.put(WHO, "default", body)
    begin, days = clock, 56
    for day in range(days):
        # Three days nobody was there.
        if day in (20, 21, 22):
            continue
        clock = begin + timedelta(days=day, minutes=5)
        for policy in await layer.store.read(due):
            await layer.backup.policies._one(policy)
        assert await layer.store.read(due) == []
    made = [row for row in await rows(layer) if row.spec.of is BackupSource.VOLUME]
    ages = sorted((clock - row.status.taken_at).days for row in made)
    assert ages[:7] == [0, 1, 2, 3, 4, 5, 6] and 9 <= len(ages) <= 11 and max(ages) <= 28
    # The repository holds no more than the layer knows, and the layer's own state ten times.
    assert len(host.vault) == len(await rows(layer)) == len(made) + 10
    assert host.pruned >= 6
    policy: BackupPolicy = await layer.store.get("policy", "default", "data")
    assert policy.status.verified is not None and host.asked.count("VerifyBackups") == 3
    assert host.asked.count("BackUp") == days - 3
    # A failure is written down, and tried again before the next day.
    clock += timedelta(days=1)
    host.refuse["BackUp"] = Unavailable("connection refused", hint="is the server there?")
    for policy in await layer.store.read(due):
        await layer.backup.policies._one(policy)
    policy = await layer.store.get("policy", "default", "data")
    assert "connection refused" in policy.status.failed and policy.status.due == clock + timedelta(minutes=10)
    host.refuse.clear()
    clock += timedelta(minutes=10)
    for policy in await layer.store.read(due):
        await layer.backup.policies._one(policy)
    assert (await layer.store.get("policy", "default", "data")).status.failed == ""


async def test_verify_tells_which_backups_are_hit(layer: Layer, host: StorageHost) -> None:
    await repository(layer)
    await volume(layer, host)
    names = [done(await back_up(layer)) for _ in range(2)]
    hit: Backup = await layer.store.get("backup", "default", names[0])
    host.flipped.add(hit.status.engine_id)
    body = RepositoryVerify(backups=names)
    operation = await layer.backup.repositories.verify(WHO, "default", "vault", body, wait=WAIT)
    done(operation)
    assert operation.status.report is not None and len(operation.status.report.findings) == 1
    verified = [(await layer.store.get("backup", "default", name)).status.verified for name in names]
    assert verified == [False, True]
    sound = (await layer.store.get("repository", "default", "vault")).status.conditions
    assert sound[0].reason == "corrupt"
    with pytest.raises(LamellaError):
        await layer.backup.repositories.verify(WHO, "default", "vault", RepositoryVerify(backups=["absent"]), wait=WAIT)


async def test_a_fault_of_one_policy_ends_no_other(
    layer: Layer, host: StorageHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    await repository(layer)
    for name in ("data", "logs"):
        await volume(layer, host, name)
    whole = layer.backup.policies._afterwards

    async def broken(policy: BackupPolicy) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(layer.backup.policies, "_afterwards", broken)

    async def put(name: str) -> None:
        body = PolicyPut(volume=name, repository="vault", every=3600, keep=Retention(daily=7))
        await layer.backup.policies.put(WHO, "default", body)

    async def policy(name: str) -> Any:
        return next(item.status for item in await rows(layer, "policy") if item.name == name)

    await put("data")

    async def told() -> bool:
        return "a fault of ours" in (await policy("data")).failed

    await until(told)
    monkeypatch.setattr(layer.backup.policies, "_afterwards", whole)
    await put("logs")

    async def made() -> bool:
        return (await policy("logs")).last is not None

    await until(made)


async def test_what_came_back_in_part_is_never_ready(
    layer: Layer, host: StorageHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours, and a host that does not come back."""
    await repository(layer)
    await volume(layer, host)
    done(await back_up(layer))
    with monkeypatch.context() as fault:
        fault.setattr(StorageHost, "_restore_backup", lambda *_: 1 // 0)
        assert "ZeroDivisionError" in failed(await restore(layer, "data", "one"))
    assert await volumes_called(layer) == ["data"]
    monkeypatch.setattr(operations, "PATIENCE", -1)
    host.lose["RestoreBackup"] = 1
    assert "went away" in failed(await restore(layer, "data", "two"))
    made: Volume = await layer.store.get("volume", "default", "two")
    assert (made.status.phase, made.status.conditions[0].reason) == (StoragePhase.FAILED, "unavailable")
