"""Volumes from pool to pool: under a writer nothing is lost, and after any cut one side is whole and the other is gone."""

import asyncio
import os
import random
import signal

import pytest
from carry_lab import BLOCK, SIZE, CarryLab, Child, Writer, instant, numbers

from lamella.host.storage.blocks import Stack, Told
from lamella.host.storage.process import jobs, nodes
from lamella.host.storage.process.chains import Settle
from lamella.host.storage.process.daemon import QemuStorageDaemon
from lamella.model.errors import Conflict, Unavailable
from lamella.model.storage import Volume, VolumeStatus
from lamella.model.storage_requests import MoveVolume

CUTS = 12


async def move(lab: CarryLab, volume: Volume, *, speed: int = 0, pool: str = "far") -> Volume:
    there = lab.far
    if pool != "far":
        there.name = pool
    volume.status = await lab.ask(MoveVolume(volume=volume, pool=there, speed=speed), VolumeStatus)
    volume.spec.pool = pool
    return volume


async def only_in(lab: CarryLab, volume: Volume, pool: str) -> None:
    for name in ("default", "far"):
        assert (volume.id in await lab.wing.pool(name).inventory()) == (name == pool), name


async def test_a_closed_volume_moves(lab: CarryLab) -> None:
    volume = await lab.volume()
    writer = await lab.write(volume)
    await writer.until(200)
    last = await writer.stop()
    await lab.closed()
    await move(lab, volume)
    await only_in(lab, volume, "far")
    assert instant(numbers(await lab.content("far", volume.id))) == last
    again = MoveVolume(volume=volume, pool=lab.far)
    status = await lab.ask(again, VolumeStatus)
    assert status.size == volume.spec.size, "asked again it is there"
    assert 200 * BLOCK <= status.used < SIZE // 4, "holes stayed holes"


async def test_a_volume_moves_under_its_writer(lab: CarryLab) -> None:
    volume = await lab.volume()
    writer = await lab.write(volume)
    await writer.until(500)
    await move(lab, volume)
    await only_in(lab, volume, "far")
    await writer.more(200)
    # Nothing of the daemon's memory is needed to find it.
    await lab.restart()
    await writer.more(100)
    last = await writer.stop()
    await lab.closed()
    assert instant(numbers(await lab.content("far", volume.id))) == last


async def test_snapshots_do_not_move(lab: CarryLab) -> None:
    volume = await lab.volume()
    snapshot = await lab.take(volume)
    with pytest.raises(Conflict, match="has snapshots"):
        await move(lab, volume)
    await lab.drop(snapshot, volume)
    await move(lab, volume)
    await only_in(lab, volume, "far")


async def _cut(lab: CarryLab, volume: Volume, writer: Writer | None, longest: float) -> tuple[int, int]:
    """Kill the daemon in the middle of moves; how many were cut before and after the decision."""
    chance, child = random.Random(os.getpid()), Child()
    before = after = 0
    await lab.wing.close()
    try:
        for _ in range(CUTS):
            target = lab.far if volume.spec.pool == "default" else _default(lab)
            request = MoveVolume(volume=volume, pool=target, speed=48 << 20)
            await lab.killed(request, child, chance.uniform(0, longest))
            await lab.reopen()
            there = "far" if volume.id in await lab.wing.pool("far").inventory() else "default"
            await only_in(lab, volume, there)
            if there == volume.spec.pool:
                before += 1
            else:
                after += 1
            volume.spec.pool = there
            if writer is not None:
                await writer.more(5)
                found = numbers(await lab.content(there, volume.id))
                assert max(found) >= 1
            await lab.wing.close()
    finally:
        child.end()
        await lab.reopen()
    return before, after


def _default(lab: CarryLab):
    from lamella.model.resource import new_resource
    from lamella.model.storage import PoolSpec, PoolStatus

    return new_resource("pool", "default", PoolSpec(), PoolStatus())


@pytest.mark.timeout(600, method="thread")
async def test_moves_that_are_cut_off_under_a_writer(lab: CarryLab) -> None:
    volume = await lab.volume()
    writer = await lab.write(volume)
    await writer.until(200)
    try:
        before, after = await _cut(lab, volume, writer, 1.0)
        last = await writer.stop()
    finally:
        writer.kill()
    await lab.closed()
    assert before + after == CUTS
    assert instant(numbers(await lab.content(volume.spec.pool, volume.id))) == last


async def test_moves_that_are_cut_off_while_nobody_has_it_open(lab: CarryLab) -> None:
    volume = await lab.volume()
    writer = await lab.write(volume)
    await writer.until(3000)
    last = await writer.stop()
    await lab.closed()
    before, after = await _cut(lab, volume, None, 0.6)
    assert before + after == CUTS
    assert instant(numbers(await lab.content(volume.spec.pool, volume.id))) == last
    await asyncio.sleep(0)


async def test_pools_that_come_while_a_closed_volume_moves_neither_wait_nor_take_it_away(lab: CarryLab) -> None:
    volume = await lab.volume()
    writer = await lab.write(volume)
    await writer.until(3000)
    last = await writer.stop()
    await lab.closed()
    notes = lab.home.state / "storage" / "moves"
    moving = asyncio.create_task(move(lab, volume, speed=4 << 20))
    while not list(notes.glob("*.json")):
        await asyncio.sleep(0.005)
    # As on every answer of control.
    await lab.wing.use_pools([lab.far])
    assert not moving.done(), "it waited for the move"
    await moving
    await lab.wing.use_pools([lab.far])
    await only_in(lab, volume, "far")
    assert instant(numbers(await lab.content("far", volume.id))) == last


@pytest.mark.parametrize("how", ["refused", "cancelled", "killed", "job gone"])
async def test_a_move_that_fails_when_both_sides_are_the_same_is_where_its_writer_is(
    lab: CarryLab, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The decision is on the disk, and the storage process has not gone over."""
    volume = await lab.volume()
    writer = await lab.write(volume)
    await writer.until(300)
    daemon = lab.wing.parts.daemon
    assert isinstance(daemon, QemuStorageDaemon)
    mirror, decided = daemon.mirror, asyncio.Event()

    async def failing(id: str, target: Stack, told: Told | None = None, *, speed: int = 0, same: Settle | None = None):
        async def settle() -> None:
            assert same is not None
            await same()
            decided.set()
            if how == "refused":
                raise Unavailable("the disk of the records is full")
            if how == "cancelled":
                await asyncio.sleep(30)
            if how == "job gone":
                # Its change of the graph is refused then.
                await jobs.cancel(daemon.disks.monitor, f"mir-{nodes.tag(id)}")
                return
            assert daemon.disks.process.pid is not None
            os.kill(daemon.disks.process.pid, signal.SIGKILL)

        await mirror(id, target, told, speed=speed, same=settle)

    monkeypatch.setattr(daemon, "mirror", failing)
    moving = asyncio.create_task(move(lab, volume))
    await decided.wait()
    if how == "cancelled":
        await lab.wing.parts.requests.close()
    outcome = await asyncio.gather(moving, return_exceptions=True)
    monkeypatch.undo()
    there = "far" if volume.id in await lab.wing.pool("far").inventory() else "default"
    assert isinstance(outcome[0], Unavailable) == (there == "default")
    await only_in(lab, volume, there)
    await writer.more(100)
    await move(lab, volume)
    await only_in(lab, volume, "far")
    await writer.more(100)
    last = await writer.stop()
    await lab.closed()
    assert instant(numbers(await lab.content("far", volume.id))) == last
