"""Backups against restic alone on the same data, in one run: the first one's rate, and the one after 16 MiB have changed.

python -m benchmarks.backup [GiB]    (10; prints ratios: first run's rate, second run's time)
"""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

from lamella.host.linux.processes import environment
from lamella.host.storage.backup import child, view
from lamella.host.storage.backup import table as tables
from lamella.host.storage.backup.location import locate
from lamella.host.storage.backup.restic import Places, Restic, encode_note
from lamella.host.storage.driver import Extent
from lamella.model.backup import BackupNote, Credentials

MARK = "lamella-benchbak"
CHANGED = 16 << 20


def fill(path: Path, size: int) -> None:
    """Half random, half text."""
    with path.open("wb") as file:
        for number in range(size >> 20):
            file.write(os.urandom(512 << 10) + (b"line %09d of a file\n" % number * 32768)[: 512 << 10])


async def bare(repository: Path, source: Path, cache: Path) -> float:
    more = {"RESTIC_PASSWORD_FILE": child.SECRET_FILE, "RESTIC_CACHE_DIR": str(cache), "HOME": "/root"}
    began = time.monotonic()
    words = ["/usr/bin/env", "restic", "--repo", str(repository), "backup", "--json", str(source)]
    ran = await child.run(words, environment=environment(MARK, **more), secret=b"x", patience=600)
    assert ran.code == 0, ran.error
    return time.monotonic() - began


async def ours(engine: Restic, place: Path, source: Path, table: tables.Table, parent: str) -> tuple[float, str]:
    began = time.monotonic()
    (place / "table").write_bytes(table.encoded())
    note = encode_note(BackupNote(backup="bak_bench", name="bench"))
    async with view.split(place / "table", source, place / "view", MARK) as point:
        summary = await engine.store(point, note, parent=parent)
    return time.monotonic() - began, summary.engine_id


async def main(size: int, place: Path) -> None:
    source = place / "disk"
    fill(source, size)
    more = {"RESTIC_PASSWORD_FILE": child.SECRET_FILE, "HOME": "/root"}
    words = ["/usr/bin/env", "restic", "--repo", str(place / "bare"), "init"]
    ran = await child.run(words, environment=environment(MARK, **more), secret=b"x", patience=600)
    assert ran.code == 0, ran.error
    places = Places(place / "cache", place / "work", place / "known")
    engine = Restic("bench", locate(str(place / "ours")), b"k" * 32, Credentials(), places, MARK)
    await engine.create()
    whole = [Extent(offset=0, length=size)]
    table = tables.everything(size, whole, 1)
    alone = await bare(place / "bare", source, place / "cache")
    first, id = await ours(engine, place, source, table, "")
    at = size // 2
    with source.open("r+b") as file:
        file.seek(at)
        file.write(os.urandom(CHANGED))
    later, _ = tables.since(table, size, whole, [Extent(offset=at, length=CHANGED)], 2)
    again = await bare(place / "bare", source, place / "cache")
    second, _ = await ours(engine, place, source, later, id)
    print(f"first run: restic alone {alone:.2f} s, ours {first:.2f} s: rate {alone / first:.2f} x (bar 0.8, aim 0.95)")
    print(f"16 MiB later: restic alone {again:.2f} s, ours {second:.2f} s: {second / again:.2f} x (bar 0.5, aim 0.2)")


if __name__ == "__main__":
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    with tempfile.TemporaryDirectory(prefix="lamella-bench-backup-", dir="/var/tmp") as directory:
        asyncio.run(main(int(gigabytes * (1 << 30)), Path(directory)))
