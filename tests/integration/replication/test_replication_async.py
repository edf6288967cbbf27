"""Asynchronous replicas under a writer: whole at every instant, measured, promoted without loss or not without force."""

import asyncio
import contextlib
import os
import random
import subprocess

import msgspec
import pytest
from carry_lab import CarryLab, Child, instant, numbers

from lamella.host.storage.directory import DirectoryDriver
from lamella.host.storage.records import BegunSnapshot
from lamella.host.storage.snapshots import Snapshots
from lamella.model.errors import Conflict
from lamella.model.ids import new_id
from lamella.model.replication_requests import Replicate
from lamella.model.resource import now
from lamella.model.storage import KeyWrap
from lamella.model.storage_report import Orphan
from lamella.model.storage_requests import CheckStorage, DeleteVolume, RemoveOrphan, Report, RestoreSnapshot

CUTS = 12


async def test_cycles_under_a_writer_and_a_promotion_that_loses_nothing(lab: CarryLab) -> None:
    source = await lab.volume()
    replication, target = lab.replication(source, every=0.5)
    writer = await lab.write(source)
    try:
        await lab.replicate(replication, source, target)
        seen = await lab.until(replication, "current", cycles=4)
        assert seen.rpo is not None
        assert seen.worst is not None
        assert seen.rpo <= seen.worst
        assert seen.worst < 10
        found = instant(numbers(await lab.content("far", target.id, lab.journal(replication).base)))
        assert 0 < found <= writer.last + 1
        with pytest.raises(Conflict, match="is the replica of"):
            await lab.attach(target, "inst_other")
        with pytest.raises(Conflict, match="open"):
            await lab.promote(replication, source, target)
        await writer.more(20)
        last = await writer.stop()
    finally:
        writer.kill()
        await lab.closed()
    await lab.promote(replication, source, target)
    assert instant(numbers(await lab.content("far", target.id))) == last, "a closed source is copied one last time"
    with pytest.raises(Conflict, match="was replaced by its replica"):
        await lab.attach(source, "inst_writer")
    await lab.restart()
    with pytest.raises(Conflict, match="was replaced by its replica"):
        await lab.attach(source, "inst_writer")
    again = await lab.write(target, first=last)
    await again.until(last + 100)
    last = await again.stop()
    await lab.closed()
    assert instant(numbers(await lab.content("far", target.id))) == last
    await lab.end_replication(replication, source, target)
    assert not await lab.wing.pool("far").snapshots(target.id), "nothing of the replication is left in the target"
    await lab.delete(source)


async def test_a_source_that_is_gone_is_promoted_by_force_alone(lab: CarryLab) -> None:
    source = await lab.volume()
    replication, target = lab.replication(source, every=0.5)
    writer = await lab.write(source)
    await lab.replicate(replication, source, target)
    await lab.until(replication, "current", cycles=2)
    await writer.more(20)
    await writer.stop()
    await lab.closed()
    await lab.replicate(_paused(replication), source, target)
    promised = instant(numbers(await lab.content("far", target.id, lab.journal(replication).base)))
    gone = lab.pool / "volumes" / source.id
    gone.rename(gone.with_name("away"))
    with pytest.raises(Conflict, match="does not answer"):
        await lab.promote(replication, source, target)
    await lab.promote(replication, source, target, force=True)
    assert instant(numbers(await lab.content("far", target.id))) == promised
    gone.with_name("away").rename(gone)
    with pytest.raises(Conflict, match="replaced"):
        await lab.attach(source, "inst_writer")


def _paused(replication):
    replication.spec.paused = True
    return replication


async def test_a_daemon_that_is_killed_at_any_moment_leaves_a_whole_replica(lab: CarryLab) -> None:
    source = await lab.volume()
    replication, target = lab.replication(source, every=0.5)
    writer = await lab.write(source)
    await lab.wing.close()
    chance, child = random.Random(os.getpid()), Child()
    bases: list[str] = []
    promised = 0
    try:
        request = Replicate(replication=replication, source=source, target=target)
        for _ in range(CUTS):
            await lab.killed(request, child, chance.uniform(0.05, 1.2))
            base = lab.journal(replication).base
            if base:
                found = instant(numbers(await lab.content("far", target.id, base)))
                assert found >= promised, "what was promised stays promised"
                promised = found
                bases.append(base)
        assert len(set(bases)) >= 3, "cycles came to their end between the cuts"
    finally:
        child.end()
        await writer.stop()
        await lab.reopen()
        await lab.closed()
    last = writer.last
    lab.wing.carrying.replications.start()
    await lab.promote(replication, source, target)
    assert instant(numbers(await lab.content("far", target.id))) == last


async def test_half_a_cycle_is_never_promoted(lab: CarryLab) -> None:
    source = await lab.volume()
    replication, target = lab.replication(source, every=3600)
    writer = await lab.write(source)
    await lab.replicate(replication, source, target)
    await lab.until(replication, "current", cycles=1)
    await writer.more(200)
    await writer.stop()
    await lab.closed()
    one = lab.wing.carrying.replications._of[replication.id]
    before = instant(numbers(await lab.content("far", target.id, one.journal.base)))
    copy = lab.wing.parts.daemon.copy

    async def half(origin, goal, told=None, **more):
        await copy(origin, goal, told, **{**more, "extents": more["extents"][:1]})
        raise Conflict("the power is gone")

    lab.wing.parts.daemon.copy = half  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(Conflict, match="power"):
        await one.cycle()
    assert one.journal.dirty
    await lab.restart()
    gone = lab.pool / "volumes" / source.id
    gone.rename(gone.with_name("away"))
    await lab.promote(replication, source, target, force=True)
    assert instant(numbers(await lab.content("far", target.id))) == before
    gone.with_name("away").rename(gone)


async def test_what_would_take_them_apart_is_refused(lab: CarryLab) -> None:
    source = await lab.volume()
    replication, target = lab.replication(source, every=3600)
    snapshot = await lab.take(source)
    await lab.replicate(replication, source, target)
    await lab.until(replication, "current", cycles=1)
    with pytest.raises(Conflict, match="removed"):
        await lab.ask(DeleteVolume(volume=source), type(None))
    with pytest.raises(Conflict, match="restored"):
        await lab.ask(RestoreSnapshot(snapshot=snapshot, volumes=[source]), type(None))
    with pytest.raises(Conflict, match="replica"):
        await lab.ask(DeleteVolume(volume=target), type(None))
    second, other = lab.replication(source)
    with pytest.raises(Conflict, match="replicated already"):
        await lab.replicate(second, source, other)
    await lab.end_replication(replication, source, target)
    assert target.id not in await lab.wing.pool("far").inventory()
    assert await lab.wing.pool("default").snapshots(source.id) == [snapshot.id]
    await lab.restore(snapshot, source)


async def test_a_replica_of_noise_opens_with_the_same_key(lab: CarryLab) -> None:
    source = await lab.volume(encryption=KeyWrap.KEY_FILE)
    replication, target = lab.replication(source, every=0.5)
    target.spec.encryption = KeyWrap.KEY_FILE
    writer = await lab.write(source, blocks=200)
    await lab.replicate(replication, source, target)
    await lab.until(replication, "current", cycles=3)
    last = await writer.stop()
    await lab.closed()
    target.status = await lab.promote(replication, source, target)
    assert target.status.key
    assert target.status.key != source.status.key
    async with lab.wing.parts.disk(target) as file:
        content = await asyncio.to_thread(file.read_bytes)
    assert instant(numbers(content, 200)) == last


async def test_a_snapshot_that_was_cut_off_is_not_copied(lab: CarryLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layer is in the pool, and its writer is still below it: what is copied of it is of no instant, and lacks what comes."""
    source = await lab.volume()
    replication, target = lab.replication(source, every=0.5)
    writer = await lab.write(source)
    try:
        await lab.replicate(replication, source, target)
        await lab.until(replication, "current", cycles=2)
        # A daemon that is killed between the two: the layer is made, nobody has gone over to it, and nothing undoes it yet.
        await lab.wing.close()
        journal, id = lab.journal(replication), new_id("snapshot")
        journal.next, journal.next_at = id, now()
        path = lab.home.state / "storage" / "replications" / f"{replication.id}.json"
        path.write_bytes(msgspec.json.encode(journal))
        lab.wing.parts.records.snapshots.write(id, BegunSnapshot(volumes=[source]))
        await DirectoryDriver(lab.pool, {}).begin_layer(source.id, id)

        async def nothing(_: Snapshots) -> None:
            return

        monkeypatch.setattr(Snapshots, "recover", nothing)
        await lab.reopen()
        for more in range(1, 5):
            await lab.until(replication, "current", cycles=journal.cycles + more)
            base = lab.journal(replication).base
            with contextlib.suppress(subprocess.CalledProcessError, FileNotFoundError):
                instant(numbers(await lab.content("far", target.id, base)))
        last = await writer.stop()
    finally:
        writer.kill()
        await lab.closed()
    await lab.promote(replication, source, target)
    assert instant(numbers(await lab.content("far", target.id))) == last


async def test_fsck_leaves_a_replication_alone(lab: CarryLab) -> None:
    source = await lab.volume(filesystem="ext4")
    replication, target = lab.replication(source, every=0.5)
    await lab.replicate(replication, source, target)
    await lab.until(replication, "current", cycles=2)
    await lab.replicate(_paused(replication), source, target)
    journal = lab.journal(replication)
    before = await lab.content("far", target.id)
    report = await lab.ask(CheckStorage(volumes=[source, target], snapshots=[], repair=True), Report)
    assert report.findings == [], "what a replication keeps for itself is known"
    assert await lab.content("far", target.id) == before, "nobody writes to a replica but its replication"
    for volume, pool in ((source, "default"), (target, "far")):
        orphan = Orphan(pool=pool, volume=volume.id, snapshot=journal.base)
        with pytest.raises(Conflict, match="replica"):
            await lab.ask(RemoveOrphan(orphan=orphan), type(None))
    replication.spec.paused = False
    await lab.replicate(replication, source, target)
    await lab.until(replication, "current", cycles=journal.cycles + 1)
    await lab.end_replication(replication, source, target)
    report = await lab.ask(CheckStorage(volumes=[source], snapshots=[]), Report)
    assert report.findings == []
