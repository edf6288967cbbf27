"""Clones: of a volume of 100 GiB against one of 1 GiB, and against bare ``qemu-img create -b``, which nothing makes durable."""

import asyncio
import itertools
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Row, compared, pairs, timed

from lamella.host.storage.btrfs import BtrfsDriver
from lamella.host.storage.directory import DirectoryDriver
from lamella.host.storage.driver import Source, StorageDriver
from lamella.host.storage.qemu_img import OPTIONS
from lamella.model.errors import LamellaError
from lamella.model.ids import new_id
from lamella.model.storage import VolumeForm

GIB = 1 << 30
# Written to each: enough that a copy would be seen.
DATA = 256 << 20


def rows(runs: int) -> list[Row]:
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch, asyncio.Runner() as runner:
        pool = DirectoryDriver(Path(scratch) / "pool")
        try:
            runner.run(pool.open())
            found += _directory(pool, Path(scratch), runner, runs)
        finally:
            runner.run(pool.close())
        mounted = BtrfsDriver(Path(scratch) / "btrfs", {"image": "4GiB"})
        try:
            runner.run(mounted.open())
            found.append(_sizes(mounted, "btrfs", runner, runs))
        except LamellaError as error:
            found.append(
                Row(f"clones of a btrfs pool ({error.message})", "not measured", None, None, "1.2 ×", "1.05 ×")
            )
        finally:
            runner.run(mounted.close())
    return found


def _directory(pool: DirectoryDriver, scratch: Path, runner: asyncio.Runner, runs: int) -> list[Row]:
    bare = scratch / "bare"
    bare.mkdir()
    base = bare / "base.raw"
    with base.open("wb") as file:
        file.truncate(100 * GIB)
        file.write(b"x" * DATA)
    numbers = itertools.count()

    def theirs() -> float:
        target = bare / f"{next(numbers)}.qcow2"
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", OPTIONS, "-F", "raw", "-b", str(base), str(target)]
        return timed(lambda: subprocess.run(command, check=True))

    ours = _cloner(pool, runner, 100 * GIB)
    mine, peer = pairs(ours, theirs, runs=runs)
    what = "clone of a 100 GiB volume (`directory`), durable, against bare `qemu-img create -b` with the same options"
    return [_sizes(pool, "directory", runner, runs), compared(what, mine, peer, bar="3 ×", aim="1.5 ×")]


def _sizes(pool: StorageDriver, name: str, runner: asyncio.Runner, runs: int) -> Row:
    large, small = pairs(_cloner(pool, runner, 100 * GIB), _cloner(pool, runner, GIB), runs=runs)
    return compared(
        f"clone of a 100 GiB volume (`{name}`) against one of 1 GiB", large, small, bar="1.2 ×", aim="1.05 ×"
    )


def _cloner(pool: StorageDriver, runner: asyncio.Runner, size: int) -> Callable[[], float]:
    """A call that makes one more clone of a volume of *size* bytes, and says how long that took."""
    id, snapshot = new_id("volume"), new_id("snapshot")
    handle = runner.run(pool.create(id, VolumeForm.BLOCK, size))
    with handle.path.open("r+b") as file:
        file.write(b"x" * DATA)
    runner.run(pool.snapshot(id, snapshot))
    source = Source(volume=id, snapshot=snapshot)

    def once() -> float:
        return timed(lambda: runner.run(pool.create(new_id("volume"), VolumeForm.BLOCK, 0, source=source)))

    return once
