"""Synchronous replicas under a writer: in both places, or written down before it is in one alone."""

import asyncio
import os
import signal

import pytest
from carry_lab import CarryLab, Writer, instant, numbers

from lamella.host.storage.replication import paired as paired_module
from lamella.model.errors import Conflict
from lamella.model.replication import Replication, ReplicationMode
from lamella.model.storage import Volume


async def paired(lab: CarryLab) -> tuple[Replication, Volume, Volume, Writer]:
    source = await lab.volume()
    replication, target = lab.replication(source, ReplicationMode.SYNC)
    await lab.replicate(replication, source, target)
    await lab.until(replication, "current")
    writer = await lab.write(source)
    await writer.until(100)
    return replication, source, target, writer


def server(lab: CarryLab, replication: Replication) -> int:
    pid, _ = (lab.home.run / "storage" / "replicas" / replication.id[-12:] / "pid").read_text().split()
    return int(pid)


async def test_every_acknowledged_write_is_in_both(lab: CarryLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired_module, "_WAIT", 90.0)
    replication, source, target, writer = await paired(lab)
    # The storage process and the replica's server end at once: no page of theirs is written any more.
    there = server(lab, replication)
    disks = lab.wing.parts.daemon.disks.process.pid  # pyright: ignore[reportAttributeAccessIssue]
    os.kill(there, signal.SIGKILL)
    os.kill(disks, signal.SIGKILL)
    known = writer.last
    assert max(numbers(await lab.content("far", target.id))) >= known
    await writer.more(50)
    last = await writer.stop()
    await lab.closed()
    assert (await lab.status(replication)).degraded_since is None
    assert instant(numbers(await lab.content("far", target.id))) == last
    assert instant(numbers(await lab.content("default", source.id))) == last


async def test_a_replica_that_dies_again_and_again_only_makes_its_writer_wait(
    lab: CarryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It comes back in time, however busy the machine is.
    monkeypatch.setattr(paired_module, "_WAIT", 90.0)
    replication, _, target, writer = await paired(lab)
    for _ in range(4):
        os.kill(server(lab, replication), signal.SIGKILL)
        await writer.more(60)
    last = await writer.stop()
    await lab.closed()
    seen = await lab.status(replication)
    assert seen.degraded_since is None
    assert instant(numbers(await lab.content("far", target.id))) == last


async def test_a_lost_replica_is_written_down_before_a_write_is_acknowledged_alone(
    lab: CarryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paired_module, "_WAIT", 15.0)
    replication, source, target, writer = await paired(lab)
    place = lab.far_path / "volumes" / target.id
    place.rename(place.with_name("away"))
    os.kill(server(lab, replication), signal.SIGKILL)
    await asyncio.sleep(1)
    stalled = writer.last
    await asyncio.sleep(1)
    assert writer.last == stalled, "nobody says that it is safe"
    assert lab.journal(replication).degraded_since is None
    await writer.until(stalled + 50)
    noted = lab.journal(replication).degraded_since
    assert noted is not None
    first = next(at for number, at in writer.acknowledged() if number == stalled + 1)
    assert noted.timestamp() <= first, "first it was written down, then acknowledged"
    assert (await lab.status(replication)).phase in ("degraded", "resyncing")
    assert any(kind == "replication.degraded" for kind, _, _ in lab.events)
    # A daemon that is killed now knows it, and so does the next.
    await lab.restart()
    assert (await lab.status(replication)).degraded_since is not None
    await writer.more(50)
    # It comes back, and is made whole while it is written.
    place.with_name("away").rename(place)
    await lab.until(replication, "current")
    await writer.more(50)
    last = await writer.stop()
    await lab.closed()
    assert instant(numbers(await lab.content("far", target.id))) == last
    await lab.promote(replication, source, target)


async def test_what_the_replica_lacks_is_promoted_by_force_alone(lab: CarryLab) -> None:
    replication, source, target, writer = await paired(lab)
    place = lab.far_path / "volumes" / target.id
    place.rename(place.with_name("away"))
    os.kill(server(lab, replication), signal.SIGKILL)
    before = writer.last
    await writer.until(before + 50)
    await lab.replicate(_paused(replication), source, target)
    place.with_name("away").rename(place)
    with pytest.raises(Conflict, match="open"):
        await lab.promote(replication, source, target, force=True)
    last = await writer.stop()
    await lab.closed()
    with pytest.raises(Conflict, match="does not have"):
        await lab.promote(replication, source, target)
    await lab.promote(replication, source, target, force=True)
    assert instant(numbers(await lab.content("far", target.id))) <= before + 1 < last
    with pytest.raises(Conflict, match="replaced"):
        await lab.attach(source, "inst_writer")


def _paused(replication: Replication) -> Replication:
    replication.spec.paused = True
    return replication
