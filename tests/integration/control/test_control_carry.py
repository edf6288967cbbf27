"""Moves, tiers and replications above their hosts: what is written first, and what becomes of it when a daemon ends in between."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from tests.storage_host import StorageHost

from lamella.control.layer import Layer
from lamella.control.storage import operations
from lamella.control.tiering import WORK
from lamella.model.errors import Conflict, LamellaError, NotFound, Unavailable
from lamella.model.instance import InstanceSpec, Power
from lamella.model.operation import OperationPhase
from lamella.model.replication import (
    Replication,
    ReplicationMode,
    ReplicationPhase,
    TieringPolicy,
    VolumeAccess,
)
from lamella.model.replication_bodies import ReplicationCreate, VolumeImport, VolumeMove
from lamella.model.requests import InstanceCreate, Principal
from lamella.model.resource import now
from lamella.model.storage import PoolSpec, Volume, VolumeMount, VolumeSpec
from lamella.model.storage_bodies import PoolCreate, SnapshotCreate, VolumeCreate

WHO = Principal(name="unix:root", admin=True)
WAIT = 90.0
Open = Callable[[], Awaitable[Layer]]


async def two_pools(layer: Layer) -> Volume:
    """The volume ``data`` in the default pool, beside which lies the pool ``far``."""
    body = PoolCreate(name="far", spec=PoolSpec(driver="directory", path="/srv/far"))
    await layer.storage.pools.create(WHO, "default", body, wait=WAIT)
    made = VolumeCreate(name="data", spec=VolumeSpec(size=1 << 30, filesystem="ext4"))
    return await layer.storage.volumes.create(WHO, "default", made, wait=WAIT)


async def replicated(layer: Layer, mode: ReplicationMode = ReplicationMode.ASYNC, every: float = 60) -> Replication:
    body = ReplicationCreate(volume="data", pool="far", mode=mode, every=every)
    return await layer.storage.replications.create(WHO, "default", body)


async def volume(layer: Layer, name: str) -> Volume:
    return await layer.store.get("volume", "default", name)


async def run(layer: Layer, name: str, *volumes: str) -> None:
    mounts = [VolumeMount(volume=item, target=f"/{item}") for item in volumes]
    spec = InstanceSpec(image="box", volumes=mounts, power=Power.RUNNING)
    await layer.create_instance(WHO, "default", InstanceCreate(name=name, spec=spec), wait=WAIT, idempotency_key=None)


async def until(layer: Layer, name: str, phase: ReplicationPhase) -> Replication:
    async with asyncio.timeout(WAIT):
        while True:
            row: Replication = await layer.store.get("replication", "default", name)
            if row.status.phase is phase:
                return row
            await asyncio.sleep(0.05)


async def events(layer: Layer) -> list[str]:
    return [item.spec.type for item in (await layer.store.list("event")).items]


# --- moves


async def test_a_move_changes_the_row_when_the_host_has_moved_it(layer: Layer, host: StorageHost) -> None:
    made = await two_pools(layer)
    transferring = layer.storage.transferring
    for pool, why in (("default", "already"), ("nowhere", "no pool")):
        with pytest.raises((Conflict, NotFound), match=why):
            await transferring.move(WHO, "default", "data", VolumeMove(pool=pool), wait=WAIT)
    host.slow["MoveVolume"] = asyncio.Event()
    begun = await transferring.move(WHO, "default", "data", VolumeMove(pool="far"), wait=0)
    assert (await volume(layer, "data")).spec.pool == "default"
    with pytest.raises(Conflict, match="busy: move"):
        await transferring.move(WHO, "default", "data", VolumeMove(pool="far"), wait=WAIT)
    with pytest.raises(Conflict, match="busy: move"):
        await replicated(layer)
    host.slow["MoveVolume"].set()
    ended = await layer.storage.operations.finish(begun, WAIT)
    assert ended.status.phase is OperationPhase.DONE, ended.status
    moved = await volume(layer, "data")
    assert (moved.spec.pool, moved.status.observed_generation) == ("far", moved.generation)
    assert host.places == {made.id: "far"} and "volume.moved" in await events(layer)


async def test_a_move_that_is_refused_leaves_the_volume_free(layer: Layer, host: StorageHost) -> None:
    await two_pools(layer)
    host.refuse["MoveVolume"] = Conflict("volume data has snapshots, which do not move")
    ended = await layer.storage.transferring.move(WHO, "default", "data", VolumeMove(pool="far"), wait=WAIT)
    assert (ended.status.phase, ended.status.error_code) == (OperationPhase.FAILED, "conflict")
    assert (await volume(layer, "data")).spec.pool == "default"
    host.refuse.clear()
    ended = await layer.storage.transferring.move(WHO, "default", "data", VolumeMove(pool="far"), wait=WAIT)
    assert ended.status.phase is OperationPhase.DONE


async def test_a_host_that_goes_away_after_a_move_is_asked_again(layer: Layer, host: StorageHost) -> None:
    made = await two_pools(layer)
    host.crash.add("MoveVolume")
    ended = await layer.storage.transferring.move(WHO, "default", "data", VolumeMove(pool="far"), wait=WAIT)
    assert ended.status.phase is OperationPhase.DONE, ended.status
    assert (await volume(layer, "data")).spec.pool == host.places[made.id] == "far"
    assert host.asked.count("MoveVolume") == 2


@pytest.mark.parametrize("how", ["lost", "stands still"])
async def test_what_a_host_does_not_answer_for_a_while_is_asked_again(
    layer: Layer, host: StorageHost, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its daemon may be starting anew, or a pool stand still: what was begun goes on there."""
    monkeypatch.setattr(operations, "SELDOM", 0.01)
    made = await two_pools(layer)
    verbs = {"MoveVolume", "ImportVolume", "RestoreSnapshot"} if how == "lost" else {"MoveVolume"}
    if how == "lost":
        host.lose = dict.fromkeys(verbs, 8)
    else:
        host.refuse["MoveVolume"] = Unavailable("pool far does not answer: what is written there waits")
    begun = [await layer.storage.transferring.move(WHO, "default", "data", VolumeMove(pool="far"), wait=0)]
    async with asyncio.timeout(WAIT):
        while host.asked.count("MoveVolume") < 8:
            await asyncio.sleep(0.01)
    host.refuse.clear()
    begun[0] = await layer.storage.operations.finish(begun[0], WAIT)
    if how == "lost":
        await layer.storage.snapshots.create(WHO, "default", SnapshotCreate(name="now", volume="data"), wait=WAIT)
        begun.append(await layer.storage.snapshots.restore(WHO, "default", "data@now", wait=WAIT))
        begun.append(
            await layer.storage.transferring.bring(WHO, "default", VolumeImport(name="disk", path="/d.raw"), wait=WAIT)
        )
    for ended in begun:
        assert ended.status.phase is OperationPhase.DONE, ended.status
    assert (await volume(layer, "data")).spec.pool == host.places[made.id] == "far"
    assert "DeleteVolume" not in host.asked
    assert all(host.asked.count(verb) >= 9 for verb in verbs)


async def test_moves_and_imports_go_on_in_the_next_daemon(opened: Open, host: StorageHost) -> None:
    layer = await opened()
    await two_pools(layer)
    host.slow = {name: asyncio.Event() for name in ("MoveVolume", "ImportVolume")}
    begun = [
        await layer.storage.transferring.move(WHO, "default", "data", VolumeMove(pool="far"), wait=0),
        await layer.storage.transferring.bring(WHO, "default", VolumeImport(name="disk", path="/d.raw"), wait=0),
    ]
    async with asyncio.timeout(WAIT):
        while not {"MoveVolume", "ImportVolume"} <= set(host.asked):
            await asyncio.sleep(0.01)
    await layer.close()
    host.slow.clear()
    after = await opened()
    for operation in begun:
        ended = await after.storage.operations.finish(operation, WAIT)
        assert ended.status.phase is OperationPhase.DONE, ended.status
    assert (await volume(after, "data")).spec.pool == "far"
    assert (await volume(after, "disk")).status.size == 1 << 20
    assert len(host.volumes) == 2


# --- tiers


async def test_a_policy_moves_what_is_cold_and_brings_back_what_is_hot(layer: Layer, host: StorageHost) -> None:
    made = await two_pools(layer)
    tiering, day = layer.storage.tiering, timedelta(days=1)
    with pytest.raises(Conflict, match="same pool"):
        await tiering.set(WHO, "default", "data", TieringPolicy(hot="far", cold="far"))
    await tiering.set(WHO, "default", "data", TieringPolicy(hot="default", cold="far", after=3600))
    async with asyncio.timeout(WAIT):
        while "MeasureAccess" not in host.asked:
            await asyncio.sleep(0.01)
    host.uses[made.id] = VolumeAccess(since=now() - day, last=now(), operations=10)
    assert await tiering.look() == []
    host.uses[made.id] = VolumeAccess(since=now() - day, last=now() - day, operations=10)
    host.refuse["MoveVolume"] = Conflict("volume data has snapshots, which do not move")
    assert await tiering.look() == ["data"]
    await _rest(layer)
    assert (await volume(layer, "data")).spec.pool == "default"
    assert await tiering.look() == [], "what could not be moved rests, too"
    host.refuse.clear()
    await _rested(layer, made.id)
    assert await tiering.look() == ["data"]
    await _rest(layer)
    assert (await volume(layer, "data")).spec.pool == "far"
    await _rested(layer, made.id)
    host.uses[made.id].operations += WORK - 1
    assert await tiering.look() == []
    host.uses[made.id].operations += 1
    assert await tiering.look() == ["data"]
    await _rest(layer)
    assert (await volume(layer, "data")).spec.pool == "default"
    await tiering.set(WHO, "default", "data", None)
    await _rested(layer, made.id)
    host.uses[made.id] = VolumeAccess(since=now() - day, last=now() - day)
    assert await tiering.look() == []


async def _rest(layer: Layer) -> None:
    """Every operation has ended."""
    for operation in (await layer.store.list("operation")).items:
        await layer.storage.operations.finish(operation, WAIT)


async def _rested(layer: Layer, id: str) -> None:
    """The volume was moved a day ago."""

    def write(tx: object) -> None:
        row = tx.by_id(id)  # type: ignore[attr-defined]
        if row.status.tier is not None:
            row.status.tier.at -= timedelta(days=1)
            tx.update(row)  # type: ignore[attr-defined]

    await layer.store.write(write)


# --- replications


async def test_a_replica_is_nobody_s_until_it_is_promoted(layer: Layer, host: StorageHost) -> None:
    source = await two_pools(layer)
    made = await replicated(layer)
    assert (made.status.phase, made.status.cycles) == (ReplicationPhase.CURRENT, 1)
    assert host.pairs[made.id][0] == source.id
    with pytest.raises(Conflict, match="replicated already"):
        await replicated(layer)
    with pytest.raises(Conflict, match="it is the replica of data") as held:
        await run(layer, "box", "data-replica")
    assert held.value.hint.endswith("lamella replication promote data")
    assert (await layer.store.list("instance")).items == []
    host.behind = True
    with pytest.raises(Conflict, match="lacks writes"):
        await layer.storage.replications.promote(WHO, "default", "data", force=False)
    assert (await volume(layer, "data-replica")).status.conditions != []
    for _ in range(2):
        row = await layer.storage.replications.promote(WHO, "default", "data", force=True)
        assert row.status.phase is ReplicationPhase.PROMOTED
    assert (await events(layer)).count("replication.promoted") == 1
    replica = await volume(layer, "data-replica")
    assert (replica.status.key, replica.status.conditions) == ("wrapped for the replica", [])
    await run(layer, "box", "data-replica")
    with pytest.raises(Conflict, match="its replica data-replica took its place"):
        await run(layer, "other", "data")
    with pytest.raises(Conflict, match="has ended"):
        await layer.storage.replications.pause(WHO, "default", "data", paused=True)
    await layer.storage.replications.delete(WHO, "default", "data")
    assert replica.id in host.volumes and (await volume(layer, "data-replica")).id == replica.id


async def test_a_promotion_that_nobody_heard_of_is_written_down_later(opened: Open, host: StorageHost) -> None:
    layer = await opened()
    await two_pools(layer)
    await replicated(layer)
    host.crash.add("Promote")
    with pytest.raises(Unavailable):
        await layer.storage.replications.promote(WHO, "default", "data", force=False)
    assert (await volume(layer, "data-replica")).status.conditions != []
    await layer.close()
    after = await opened()
    await until(after, "data", ReplicationPhase.PROMOTED)
    assert (await volume(after, "data-replica")).status.conditions == []
    assert [item.reason for item in (await volume(after, "data")).status.conditions] == ["replaced"]


async def test_what_was_begun_or_ended_goes_on_in_the_next_daemon(opened: Open, host: StorageHost) -> None:
    layer = await opened()
    await two_pools(layer)
    host.crash.add("Replicate")
    begun = await replicated(layer)
    assert begun.status.phase is ReplicationPhase.PENDING
    await layer.close()
    layer = await opened()
    await until(layer, "data", ReplicationPhase.CURRENT)
    await layer.storage.replications.pause(WHO, "default", "data", paused=True)
    await until(layer, "data", ReplicationPhase.PAUSED)
    host.crash.add("EndReplication")
    with pytest.raises(Unavailable):
        await layer.storage.replications.delete(WHO, "default", "data")
    await layer.close()
    layer = await opened()
    async with asyncio.timeout(WAIT):
        while (await layer.store.list("replication")).items:
            await asyncio.sleep(0.05)
    assert [item.name for item in (await layer.store.list("volume")).items] == ["data"]
    assert len(host.volumes) == 1


async def test_a_host_that_refuses_is_believed(layer: Layer, host: StorageHost) -> None:
    await two_pools(layer)
    host.refuse["Replicate"] = Conflict("volume data is in no state for it", hint="wait")
    with pytest.raises(Conflict, match="no state"):
        await replicated(layer)
    assert [item.name for item in (await layer.store.list("volume")).items] == ["data"]
    assert (await layer.store.list("replication")).items == []
    # Away when it is asked, and refusing when it is back.
    host.refuse["Replicate"] = Unavailable("the host's daemon went away")
    await replicated(layer)
    host.refuse["Replicate"] = Conflict("volume data is in no state for it", hint="wait")
    failed = await until(layer, "data", ReplicationPhase.FAILED)
    assert (failed.status.conditions[0].message, failed.status.conditions[0].hint) == (
        "volume data is in no state for it",
        "wait",
    )
    host.refuse.clear()
    assert (await until(layer, "data", ReplicationPhase.CURRENT)).status.conditions == []
    host.refuse["EndReplication"] = Conflict("data is open with its replica")
    with pytest.raises(LamellaError, match="open with"):
        await layer.storage.replications.delete(WHO, "default", "data")
    assert (await layer.store.get("replication", "default", "data")).deleted_at is None


async def test_the_contract_says_how_old_a_replica_may_be_and_is(layer: Layer, host: StorageHost) -> None:
    await two_pools(layer)
    row = await replicated(layer, every=10)
    await run(layer, "box", "data")
    [kept] = (await layer.contract(WHO, "default", "box")).replicas
    assert (kept.volume, kept.replica, kept.pool, kept.mode, kept.every) == ("data", "data-replica", "far", "async", 10)
    assert kept.kept and kept.achieved is not None and kept.achieved < kept.promised == pytest.approx(20.1)
    host.replicas[row.id].last = now() - timedelta(seconds=50)
    [late] = (await layer.contract(WHO, "default", "box")).replicas
    assert not late.kept and "two intervals" in late.why
    assert late.achieved is not None and late.worst is not None and late.worst >= late.achieved > 49
    await layer.storage.replications.delete(WHO, "default", "data")
    assert (await layer.contract(WHO, "default", "box")).replicas == []


async def test_the_contract_says_that_a_pair_is_one_alone(layer: Layer, host: StorageHost) -> None:
    await two_pools(layer)
    row = await replicated(layer, ReplicationMode.SYNC)
    await run(layer, "box", "data")
    [kept] = (await layer.contract(WHO, "default", "box")).replicas
    assert (kept.kept, kept.promised, kept.achieved, kept.every) == (True, 0, 0, None)
    seen = host.replicas[row.id]
    seen.phase, seen.degraded_since, seen.last = ReplicationPhase.DEGRADED, now(), now() - timedelta(seconds=5)
    [broken] = (await layer.contract(WHO, "default", "box")).replicas
    assert not broken.kept and "one copy alone" in broken.why and (broken.achieved or 0) >= 5
