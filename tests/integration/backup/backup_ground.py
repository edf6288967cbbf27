"""What tests of backups stand on: an engine over a directory of the test, a file of known content, and its pieces."""

import os
from pathlib import Path

from lamella.host.compute.driver import Home
from lamella.host.storage.backup import view
from lamella.host.storage.backup.engine import Summary
from lamella.host.storage.backup.location import locate
from lamella.host.storage.backup.restic import Places, Restic, encode_note
from lamella.host.storage.backup.table import Table
from lamella.model.backup import BackupNote, Credentials

MARK = "lamella-backup0"


def home_in(path: Path) -> Home:
    home = Home(path=path, mark=MARK)
    for place in (home.state, home.run):
        place.mkdir(parents=True, exist_ok=True)
    return home


def engine_at(home: Home, url: str, *, key: bytes = b"k" * 32, credentials: Credentials | None = None) -> Restic:
    places = Places(home.state / "cache", home.run / "work", home.state / "servers")
    return Restic("repo_test", locate(url), key, credentials or Credentials(), places, MARK)


def a_note(name: str = "data", **more: object) -> str:
    return encode_note(BackupNote(backup=f"bak_{name}", name=name, **more))  # type: ignore[arg-type]


def content(path: Path, size: int, holes: list[tuple[int, int]] | None = None) -> Path:
    """A file of random bytes but for *holes* (offset, length)."""
    with path.open("wb") as file:
        file.truncate(size)
        here = 0
        for start, length in [*(holes or []), (size, 0)]:
            file.seek(here)
            while here < start:
                here += file.write(os.urandom(min(1 << 20, start - here)))
            here = start + length
    return path


async def keep(
    engine: Restic, home: Home, source: Path, table: Table, note: str, *, parent: str = "", name: str = "view"
) -> Summary:
    """Back up *source* by its pieces."""
    place = home.run / f"{name}.table"
    place.write_bytes(table.encoded())
    async with view.split(place, source, home.run / name, MARK) as point:
        return await engine.store(point, note, parent=parent)


async def bring(engine: Restic, home: Home, engine_id: str, target: Path, table: Table) -> None:
    """Restore into the new file *target*."""
    with target.open("wb") as file:
        file.truncate(table.size)
    async with view.fill(table.piece, table.size, target, home.run / "fill", MARK) as point:
        await engine.restore(engine_id, point)
