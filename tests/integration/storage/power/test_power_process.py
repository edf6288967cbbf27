"""Volumes that are open in the storage process: the power is cut while a writer that waits for the disk writes, and its volume is kept,
merged, moved from pool to pool and grown. The whole home is on the disk whose power is cut.

After each cut the machine is switched on: the volume is in one pool, its snapshots are those of before or of after what was under way,
the volume and each snapshot hold everything that was acknowledged before, and nothing out of order. ``LAMELLA_CUTS`` and
``LAMELLA_SEED`` as in test_power_pools.py.
"""

import asyncio
import os
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from power_disk import EXT4, PowerDisk, Start
from power_home import PowerHome, Writer, newest, woken
from volumes_lab import MIB, new_snapshot, new_volume, problems

from lamella.model.instance import Isolation
from lamella.model.storage import KeyWrap, Snapshot, SnapshotStatus, Volume, VolumeStatus
from lamella.model.storage_requests import (
    AnyStorageRequest,
    CheckStorage,
    DropSnapshot,
    MoveVolume,
    Report,
    ResizeVolume,
    TakeSnapshot,
)

# A cut during a move once lost a block, in some 15 runs: until that is traced these run when they are asked for.
pytestmark = pytest.mark.extended

T = TypeVar("T")
CUTS = int(os.environ.get("LAMELLA_CUTS", "12"))
SEED = int(os.environ.get("LAMELLA_SEED", "4"))
SIZE = 8 * MIB
BLOCKS = 200


@dataclass(frozen=True)
class Taken:
    """A snapshot, which has everything that was acknowledged before it was ``asked`` for: when the log was so long."""

    snapshot: Snapshot
    asked: int


@dataclass(frozen=True)
class Truth:
    """What control has been told: where the volume is, how large, and its snapshots."""

    pool: str
    size: int
    snapshots: dict[str, Taken] = field(default_factory=dict[str, Taken])


@dataclass(frozen=True)
class Done:
    """A request for ``volume``, and how long the log was when it was asked and acknowledged."""

    request: AnyStorageRequest
    volume: Volume
    before: Truth
    after: Truth
    asked: int
    acknowledged: int


class Story:
    """Requests for one volume under its writer, with what was true before and after each."""

    def __init__(self, home: PowerHome, disk: PowerDisk, volume: Volume, writer: Writer) -> None:
        self._home, self._disk, self._writer = home, disk, writer
        self.volume = volume
        self.truth = Truth(pool="default", size=volume.status.size)
        self.done: list[Done] = []

    async def _ask(self, request: AnyStorageRequest, kind: type[T], after: Truth) -> T:
        asked = self._disk.moment()
        answer = await self._home.ask(request, kind)
        self.done.append(Done(request, self.volume, self.truth, after, asked, self._disk.moment()))
        self.truth = after
        await self._writer.more()
        return answer

    async def take(self) -> Snapshot:
        snapshot = new_snapshot(self.volume)
        taken = {**self.truth.snapshots, snapshot.id: Taken(snapshot, self._disk.moment())}
        request = TakeSnapshot(snapshot=snapshot, volumes=[self.volume])
        snapshot.status = await self._ask(request, SnapshotStatus, replace(self.truth, snapshots=taken))
        return snapshot

    async def drop(self, snapshot: Snapshot) -> None:
        left = {id: taken for id, taken in self.truth.snapshots.items() if id != snapshot.id}
        request = DropSnapshot(snapshot=snapshot, volumes=[self.volume])
        await self._ask(request, type(None), replace(self.truth, snapshots=left))

    async def move(self) -> None:
        pool = "far" if self.truth.pool == "default" else "default"
        request = MoveVolume(volume=self.volume, pool=self._home.pools[pool])
        await self._ask(request, VolumeStatus, replace(self.truth, pool=pool))
        self.volume = in_pool(self.volume, pool)

    async def grow(self) -> None:
        size = self.truth.size + MIB
        request = ResizeVolume(volume=self.volume, size=size)
        status = await self._ask(request, VolumeStatus, replace(self.truth, size=size))
        self.volume = msgspec.structs.replace(self.volume, status=status)


def in_pool(volume: Volume, pool: str) -> Volume:
    return msgspec.structs.replace(volume, spec=msgspec.structs.replace(volume.spec, pool=pool))


@pytest.mark.parametrize(
    ("encryption", "count"), [(None, CUTS), (KeyWrap.KEY_FILE, CUTS // 2)], ids=["plain", "encrypted"]
)
async def test_nothing_acknowledged_is_lost(
    powered: Start, tmp_path: Path, encryption: KeyWrap | None, count: int
) -> None:
    disk = powered(EXT4)
    mark = f"lamella-pw{os.urandom(3).hex()}"
    chance = random.Random(SEED)
    story, writer = await tell(disk, mark, tmp_path / "notes", encryption)
    disk.stop()
    for moment, index in sorted(cuts(disk, story.done, chance, count)):
        one = story.done[index]
        between = moment < one.acknowledged
        keep = chance.choice((0.0, 0.3, 0.7, 0.95, 1.0))
        with disk.after(moment, keep, chance, between=between) as place:
            try:
                async with woken(place, mark) as home:
                    await verify(home, one, between, writer, moment)
            except AssertionError as error:
                error.add_note(f"cut at {moment} during {type(one.request).__name__}, keep={keep}, seed {SEED}")
                raise


async def tell(disk: PowerDisk, mark: str, notes: Path, encryption: KeyWrap | None) -> tuple[Story, Writer]:
    home = PowerHome(disk.place, mark)
    await home.begin()
    try:
        volume = await home.create(new_volume("data", SIZE, encryption=encryption))
        mounted = await home.attach(volume, "inst_writer", Isolation.UNIKERNEL)
        writer = Writer(mounted.path, disk, notes, BLOCKS)
        try:
            story = Story(home, disk, volume, writer)
            # Once around: what was never written in an encrypted volume reads as noise.
            await writer.more(BLOCKS)
            for _ in range(2):
                first, second = await story.take(), await story.take()
                await story.drop(first)
                await story.drop(second)
                await story.move()
                await story.grow()
            await writer.stop()
        finally:
            writer.kill()
        await home.wing.detach("inst_writer")
        return story, writer
    finally:
        await home.leave()


def cuts(disk: PowerDisk, done: list[Done], chance: random.Random, count: int) -> list[tuple[int, int]]:
    """(how long the log was, which request was the last one that was asked)."""
    found: list[tuple[int, int]] = []
    for number in range(count):
        # Each request once, and then again.
        index = number % len(done)
        one = done[index]
        moments = disk.moments(one.asked, one.acknowledged)
        # At the very moment of the acknowledgement, or at any before.
        at_once = not moments or chance.random() < 0.25
        found.append((one.acknowledged if at_once else chance.choice([one.asked, *moments]), index))
    return found


async def verify(home: PowerHome, one: Done, between: bool, writer: Writer, moment: int) -> None:
    pools = [name for name in ("default", "far") if one.volume.id in await home.wing.pool(name).inventory()]
    assert len(pools) == 1, f"the volume is in the pools {pools}"
    possible = [one.before, one.after] if between else [one.after]
    assert pools[0] in {truth.pool for truth in possible}
    # A snapshot that was not acknowledged yet may be there, and is undone meanwhile, until it is asked for again.
    taken = set(await home.wing.pool(pools[0]).snapshots(one.volume.id))
    assert taken in [set(truth.snapshots) for truth in possible]
    least = writer.acknowledged(moment)
    await whole(home, in_pool(one.volume, pools[0]), {truth.size for truth in possible}, least)
    volume = in_pool(one.volume, one.after.pool)
    if between:
        await home.ask(one.request, type(None) if isinstance(one.request, DropSnapshot) else dict)
        await whole(home, volume, {one.after.size}, least)
    for id, kept in one.after.snapshots.items():
        await holds(home, volume, id, writer.acknowledged(kept.asked))
    snapshots = [kept.snapshot for kept in one.after.snapshots.values()]
    report = await home.ask(CheckStorage(volumes=[volume], snapshots=snapshots, repair=True), Report)
    # Clusters that were taken and never used: room, not content.
    assert all("leaked" in finding.problem and finding.mended for finding in report.findings), problems(report)


async def whole(home: PowerHome, volume: Volume, sizes: set[int], least: int) -> None:
    """It can be attached, has one of *sizes*, and is one instant of the writer, no earlier than when it had written *least*."""
    mounted = await home.attach(volume, "inst_reader", Isolation.UNIKERNEL)
    assert mounted.size in sizes
    assert await asyncio.to_thread(newest, mounted.path, BLOCKS) >= least
    await home.wing.detach("inst_reader")


async def holds(home: PowerHome, volume: Volume, snapshot: str, least: int) -> None:
    """The snapshot is one instant of the writer, no earlier than when it had written *least*."""
    stack = await home.wing.parts.stacks.of(volume, snapshot)
    stack = msgspec.structs.replace(stack, id=f"{volume.id}+kept", read_only=True)
    daemon = home.wing.parts.daemon
    await daemon.add(stack)
    try:
        ways = await daemon.export(stack.id, writable=False)
        assert ways.file is not None
        assert await asyncio.to_thread(newest, ways.file, BLOCKS) >= least
    finally:
        await daemon.remove(stack.id)
