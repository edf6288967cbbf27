"""The daemon is killed at random moments of every request, sometimes with the storage process and every tool that runs: what was
acknowledged is there, what was asked is finished when it is asked again, and nothing is left over.

A killed process is no power cut: what the kernel has in its cache survives. What a disk loses is the pools' own tests' affair.
"""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from volumes_child import Order
from volumes_lab import MIB, VolumesLab, ext4_volume, new_snapshot, problems

from lamella.daemon.purge import kill_marked
from lamella.model.instance import Isolation
from lamella.model.storage import KeyWrap, Snapshot, SnapshotStatus, Volume, VolumeStatus
from lamella.model.storage_requests import (
    AnyStorageRequest,
    CheckStorage,
    CreateVolume,
    DeleteVolume,
    DropSnapshot,
    Report,
    ResizeVolume,
    RestoreSnapshot,
    TakeSnapshot,
)

CUTS = int(os.environ.get("LAMELLA_CUTS", "4"))
SEED = int(os.environ.get("LAMELLA_SEED", "4"))


class Killer:
    """Gives a request to a daemon that it kills. ``cuts`` are those that came before the answer."""

    def __init__(self, lab: VolumesLab, child: asyncio.subprocess.Process) -> None:
        self._lab = lab
        self._child = child
        self.cuts = 0
        self.took: dict[str, float] = {}

    async def _line(self) -> str:
        assert self._child.stdout is not None
        return (await asyncio.wait_for(self._child.stdout.readline(), 90)).decode().strip()

    async def cut(self, request: AnyStorageRequest, share: float, *, everything: bool, of: str = "") -> None:
        """Kill it after *share* of the time that such a request *of* this kind took; the first is let through to be timed."""
        assert self._child.stdin is not None
        await self._lab.wing.close()
        kind = f"{type(request).__name__} {of}"
        order = Order(path=str(self._lab.home.path), mark=self._lab.home.mark, request=request)
        self._child.stdin.write(msgspec.json.encode(order) + b"\n")
        pid = 0
        while (line := await self._line()) != "begun":
            assert not line.startswith("failed"), line
            if line.startswith("pid "):
                pid = int(line[4:])
        began = time.monotonic()
        with suppress(TimeoutError):
            line = await asyncio.wait_for(self._line(), share * self.took[kind] if kind in self.took else 30)
        if line == "begun":
            os.kill(pid, signal.SIGKILL)
            if everything:
                await asyncio.to_thread(kill_marked, self._lab.home.mark)
            self.cuts += 1
        else:
            assert line == "done", line
            self.took[kind] = time.monotonic() - began
        while not line.startswith("ended"):
            line = await self._line()
            if line == "done":
                # It was faster than the signal.
                self.cuts -= 1
        await self._lab.reopen()


@pytest_asyncio.fixture
async def killer(lab: VolumesLab) -> AsyncIterator[Killer]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).parent / "volumes_child.py"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    killer = Killer(lab, child)
    yield killer
    assert child.stdin is not None
    child.stdin.close()
    await asyncio.wait_for(child.wait(), 90)
    print(f"{killer.cuts} cuts, {', '.join(f'{kind} {took:.2f} s' for kind, took in killer.took.items())}")
    assert killer.cuts


async def sound(lab: VolumesLab, volumes: list[Volume], snapshots: list[Snapshot]) -> None:
    report = await lab.ask(CheckStorage(volumes=volumes, snapshots=snapshots), Report)
    assert not report.findings, problems(report)


async def kept(lab: VolumesLab, volume: Volume) -> bytes:
    mounted = await lab.attach(volume, "inst_reader")
    try:
        return (mounted.path / "file").read_bytes()
    finally:
        await lab.wing.detach("inst_reader")


def write(path: Path, content: bytes) -> None:
    with (path / "file").open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def cuts(count: int = CUTS) -> list[tuple[float, bool]]:
    """(share of the time, whether everything is killed), once more than *count*: the first is timed."""
    chance = random.Random(SEED)
    return [(chance.uniform(0.02, 0.98), not turn % 2) for turn in range(count + 1)]


@pytest.mark.parametrize(("encryption", "count"), [(None, CUTS), (KeyWrap.KEY_FILE, CUTS)])
async def test_cut_while_a_volume_is_made_and_removed(
    lab: VolumesLab, killer: Killer, encryption: KeyWrap | None, count: int
) -> None:
    for share, everything in cuts(count):
        volume = ext4_volume("made", 32 * MIB, encryption=encryption)
        create = CreateVolume(volume=volume)
        await killer.cut(create, share, everything=everything)
        volume.status = await lab.ask(create, VolumeStatus)
        mounted = await lab.attach(volume, "inst_one")
        write(mounted.path, b"whole")
        await lab.wing.detach("inst_one")
        await sound(lab, [volume], [])
        await killer.cut(DeleteVolume(volume=volume), share, everything=everything)
        await lab.delete(volume)
        await sound(lab, [], [])
        assert await lab.wing.pool("default").inventory() == set()


async def test_cut_while_a_snapshot_is_taken_and_merged_of_an_open_volume(lab: VolumesLab, killer: Killer) -> None:
    data = await lab.create(ext4_volume())
    for share, everything in cuts():
        mounted = await lab.attach(data, "inst_one")
        content = os.urandom(MIB)
        write(mounted.path, content)
        snapshot = new_snapshot(data)
        take = TakeSnapshot(snapshot=snapshot, volumes=[data])
        await killer.cut(take, share, everything=everything)
        snapshot.status = await lab.ask(take, SnapshotStatus)
        mounted = await lab.attach(data, "inst_one")
        assert (mounted.path / "file").read_bytes() == content
        write(mounted.path, content[::-1])
        await killer.cut(DropSnapshot(snapshot=snapshot, volumes=[data]), share, everything=everything)
        await lab.drop(snapshot, data)
        mounted = await lab.attach(data, "inst_one")
        assert (mounted.path / "file").read_bytes() == content[::-1]
        await lab.wing.detach("inst_one")
        assert await kept(lab, data) == content[::-1]
        await sound(lab, [data], [])


async def test_cut_while_a_volume_is_resized_and_restored(lab: VolumesLab, killer: Killer) -> None:
    data = await lab.create(ext4_volume("data", 48 * MIB, encryption=KeyWrap.KEY_FILE))
    mounted = await lab.attach(data, "inst_one")
    content = os.urandom(MIB)
    write(mounted.path, content)
    await lab.wing.detach("inst_one")
    for turn, (share, everything) in enumerate(cuts()):
        size = (64 + 16 * (turn % 2)) * MIB
        open_ = turn % 3 == 2
        if open_:
            await lab.attach(data, "inst_vm", Isolation.VM)
            size = data.status.size + 16 * MIB
        await killer.cut(
            ResizeVolume(volume=data, size=size), share, everything=everything, of="an open one" if open_ else ""
        )
        data = await lab.resize(data, size)
        assert data.status.size == size
        await lab.wing.detach("inst_vm")
        assert await kept(lab, data) == content
        snapshot = await lab.take(data)
        mounted = await lab.attach(data, "inst_one")
        write(mounted.path, b"another")
        await lab.wing.detach("inst_one")
        await killer.cut(RestoreSnapshot(snapshot=snapshot, volumes=[data]), share, everything=everything)
        await lab.restore(snapshot, data)
        assert await kept(lab, data) == content
        await lab.drop(snapshot, data)
        await sound(lab, [data], [])
