"""A layer's home on a power disk, with its pools, its storage process and a writer that knows what was acknowledged when."""

import asyncio
import os
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from power_disk import PowerDisk
from power_writer import BLOCK, NOTE
from volumes_lab import DRIVERS, VolumesLab

from lamella.daemon.purge import kill_marked
from lamella.host.compute.driver import Home
from lamella.host.linux import mounts
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.storage.opened import BOOT
from lamella.model.resource import new_resource
from lamella.model.storage import Pool, PoolSpec, PoolStatus

OTHER_BOOT = "11111111-2222-4333-8444-555555555555"


class PowerHome(VolumesLab):
    """The pools ``default`` and ``far`` of one disk: what of it is in the disk's cache is lost or not, piece by piece, as of two disks."""

    def __init__(self, place: Path, mark: str) -> None:
        path = place / "h"
        path.mkdir(exist_ok=True)
        super().__init__(Home(path=path, mark=mark), DRIVERS)
        far = PoolSpec(driver="directory", path=str(path / "far"))
        self.pools: dict[str, Pool] = {
            "default": new_resource("pool", "default", PoolSpec(), PoolStatus()),
            "far": new_resource("pool", "far", far, PoolStatus()),
        }

    async def begin(self) -> None:
        await self.wing.open()
        await self.wing.use_pools([self.pools["far"]])

    async def leave(self) -> None:
        """Everything ends, but the files."""
        try:
            await self.wing.teardown()
            await self.wing.close()
        finally:
            await asyncio.to_thread(self._release)

    def _release(self) -> None:
        kill_marked(self.home.mark)
        mounts.release(self.home.path)
        Cgroups(ROOT, self.home.mark).remove()


def forget_boot(home: Path) -> None:
    """What is written down there of this boot is of another one."""
    now = BOOT.read_text().strip()
    for top in (home / "run", home / "state"):
        for path in top.rglob("*.json"):
            if now.encode() in (content := path.read_bytes()):
                path.write_bytes(content.replace(now.encode(), OTHER_BOOT.encode()))


@asynccontextmanager
async def woken(place: Path, mark: str) -> AsyncIterator[PowerHome]:
    """The home after the machine was switched on again: what was written down of the former boot is of another one."""
    forget_boot(place / "h")
    home = PowerHome(place, mark)
    try:
        await home.begin()
        yield home
    finally:
        await home.leave()


class Writer:
    """The process; ``blocks`` of 4 KiB."""

    def __init__(self, file: Path, disk: PowerDisk, notes: Path, blocks: int) -> None:
        self._notes = notes
        program = str(Path(__file__).parent / "power_writer.py")
        self._process = subprocess.Popen([sys.executable, program, *map(str, (file, notes, disk.log, blocks))])
        self.noted: list[tuple[int, int]] = []

    def _read(self) -> list[tuple[int, int]]:
        """(number, how long the log was) of what was acknowledged."""
        data = self._notes.read_bytes() if self._notes.exists() else b""
        return list(NOTE.iter_unpack(data[: len(data) // NOTE.size * NOTE.size]))

    async def more(self, count: int = 20) -> None:
        wanted, end = len(self._read()) + count, time.monotonic() + 90
        while len(self._read()) < wanted:
            assert self._process.poll() is None, "a write failed"
            assert time.monotonic() < end, "the writer stands still"
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._notes.with_suffix(".stop").touch()
        assert await asyncio.to_thread(self._process.wait, 60) == 0, "a write failed"
        self.noted = self._read()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(90)

    def acknowledged(self, moment: int) -> int:
        """The newest number that was acknowledged when the log was no longer than *moment*."""
        count = bisect_right(self.noted, moment, key=lambda note: note[1])
        return self.noted[count - 1][0] if count else 0


def newest(file: Path, blocks: int) -> int:
    """The newest number in the disk, when it is as the writer left it at one instant: else it fails."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        content = os.pread(descriptor, blocks * BLOCK, 0)
    finally:
        os.close(descriptor)
    found: list[int] = []
    for place in range(blocks):
        block = content[place * BLOCK : (place + 1) * BLOCK]
        number = int.from_bytes(block[:8], "big")
        assert block == number.to_bytes(8, "big") * (BLOCK // 8), f"block {place} is torn"
        found.append(number)
    last = max(found)
    for place, number in enumerate(found):
        wanted = max(0, last - (last - place) % blocks)
        assert number == wanted, f"block {place} has {number}; when {last} was the newest it had {wanted}"
    return last
