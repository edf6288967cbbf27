"""Synchronous replicas of volumes that are in use: begun, grown, snapshotted and ended under a writer, by daemons that are killed."""

import asyncio
import os
import random
import shutil
import signal

import pytest
from carry_lab import SIZE, CarryLab, Child, Writer, instant, numbers
from volumes_lab import new_snapshot

from lamella.model.errors import Conflict
from lamella.model.replication import Replication, ReplicationMode
from lamella.model.replication_requests import Replicate
from lamella.model.storage import Volume
from lamella.model.storage_requests import DropSnapshot, ResizeVolume, TakeSnapshot

CUTS = 2


async def begun(lab: CarryLab) -> tuple[Replication, Volume, Volume, Writer]:
    source = await lab.volume()
    writer = await lab.write(source)
    await writer.until(100)
    replication, target = lab.replication(source, ReplicationMode.SYNC)
    return replication, source, target, writer


def end_both(lab: CarryLab, replication: Replication) -> None:
    """The storage process and the replica's server end at once: no page of theirs is written any more."""
    pid, _ = (lab.home.run / "storage" / "replicas" / replication.id[-12:] / "pid").read_text().split()
    os.kill(int(pid), signal.SIGKILL)
    os.kill(lab.wing.parts.daemon.disks.process.pid, signal.SIGKILL)  # pyright: ignore[reportAttributeAccessIssue]


async def test_a_pair_begins_grows_and_ends_under_its_writer(lab: CarryLab) -> None:
    replication, source, target, writer = await begun(lab)
    first = await lab.replicate(replication, source, target)
    assert (first.phase, first.rpo) == ("seeding", None)
    seen = await lab.until(replication, "current")
    assert (seen.rpo, seen.degraded_since) == (0, None)
    await writer.more(50)
    end_both(lab, replication)
    known = writer.last
    assert max(numbers(await lab.content("far", target.id))) >= known
    await writer.more(50)
    # It grows, and so does its replica.
    await lab.resize(source, 2 * SIZE)
    assert source.status.size == 2 * SIZE
    await writer.more(50)
    # Its snapshot is of one instant, and goes away again.
    snapshot = await lab.take(source)
    at = instant(numbers(await lab.content("default", source.id, snapshot.id)))
    assert 0 < at <= writer.last + 1
    await writer.more(50)
    await lab.drop(snapshot, source)
    await writer.more(50)
    assert (await lab.status(replication)).degraded_since is None
    end_both(lab, replication)
    known = writer.last
    content = await lab.content("far", target.id)
    assert len(content) == 2 * SIZE
    assert max(numbers(content)) >= known
    await writer.more(50)
    await lab.end_replication(replication, source, target)
    assert target.id not in await lab.wing.pool("far").inventory()
    await writer.more(50)
    last = await writer.stop()
    await lab.closed()
    assert instant(numbers(await lab.content("default", source.id))) == last


async def test_what_never_was_whole_is_promoted_by_nobody(lab: CarryLab) -> None:
    replication, source, target, writer = await begun(lab)
    lab.far_path.joinpath("volumes").rename(lab.far_path / "away")
    await lab.replicate(replication, source, target)
    await writer.more(100)
    assert (await lab.status(replication)).phase == "seeding"
    await writer.stop()
    await lab.closed()
    with pytest.raises(Conflict, match="no whole copy"):
        await lab.promote(replication, source, target, force=True)
    lab.far_path.joinpath("away").rename(lab.far_path / "volumes")
    await lab.until(replication, "current")
    await lab.promote(replication, source, target)
    assert instant(numbers(await lab.content("far", target.id))) == writer.last


async def test_a_replica_that_is_behind_stays_until_its_source_can_be_read(lab: CarryLab) -> None:
    replication, source, target, writer = await begun(lab)
    await lab.replicate(replication, source, target)
    await lab.until(replication, "current")
    await writer.more(50)
    replication.spec.paused = True
    await lab.replicate(replication, source, target)
    while (await lab.status(replication)).degraded_since is None:
        await asyncio.sleep(0.05)
    had = max(numbers(await lab.content("far", target.id)))
    await writer.more(50)
    last = await writer.stop()
    await lab.closed()
    # The source's pool is gone, and the replica is to be made whole.
    volumes = lab.pool / "volumes"
    volumes.rename(lab.pool / "away")
    replication.spec.paused = False
    await lab.replicate(replication, source, target)
    # It was tried, and failed of that.
    seen = await lab.status(replication)
    while all("paused" in item.message for item in seen.conditions):
        await asyncio.sleep(0.05)
        seen = await lab.status(replication)
    assert seen.phase == "degraded"
    assert max(numbers(await lab.content("far", target.id))) == had
    # Whoever needs it can have what it was.
    assert lab.journal(replication).seeded
    shutil.rmtree(volumes, ignore_errors=True)
    (lab.pool / "away").rename(volumes)
    await lab.until(replication, "current")
    assert instant(numbers(await lab.content("far", target.id))) == last


@pytest.mark.timeout(600, method="thread")
async def test_daemons_that_are_killed_while_a_pair_begins_grows_and_is_snapshotted(lab: CarryLab) -> None:
    replication, source, target, writer = await begun(lab)
    snapshot = new_snapshot(source)
    requests = [
        Replicate(replication=replication, source=source, target=target),
        ResizeVolume(volume=source, size=2 * SIZE),
        TakeSnapshot(snapshot=snapshot, volumes=[source]),
        DropSnapshot(snapshot=snapshot, volumes=[source]),
    ]
    chance, child = random.Random(os.getpid()), Child()
    try:
        for request in requests:
            await lab.wing.close()
            try:
                for _ in range(CUTS):
                    await lab.killed(request, child, chance.uniform(0.0, 0.6))
            finally:
                await lab.reopen()
            # Asked once more it is done, whatever came before.
            await lab.ask(request, object)
    finally:
        child.end()
    await lab.until(replication, "current")
    await writer.more(50)
    last = await writer.stop()
    await lab.closed()
    assert instant(numbers(await lab.content("default", source.id))) == last
    assert instant(numbers(await lab.content("far", target.id))) == last
    assert await lab.wing.pool("default").snapshots(source.id) == []
    await lab.promote(replication, source, target)
    assert len(await lab.content("far", target.id)) == 2 * SIZE
