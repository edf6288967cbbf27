"""Volumes from pool to pool: under a writer nothing is lost, and after any cut one side is whole and the other is gone."""

import asyncio
import os
import random

import pytest
from carry_lab import BLOCK, SIZE, CarryLab, Child, Writer, instant, numbers

from lamella.model.errors import Conflict
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


@pytest.mark.timeout(180, method="thread")
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
