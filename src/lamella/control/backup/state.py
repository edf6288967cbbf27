"""The layer's own state as one file: the database of the store, as it was at one instant."""

import asyncio
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import zstandard

from lamella.model.errors import Unsupported

DumpStore = Callable[[], Awaitable[bytes]]
_PREFIX = "sqlite:///"


def dump_of(database: str) -> DumpStore:
    """What dumps the store at the URL *database*, compressed with zstd.

    SQLite's backup interface copies a database that is written meanwhile (https://sqlite.org/backup.html). Of PostgreSQL its own tools
    make backups.
    """

    async def dump() -> bytes:
        if not database.startswith(_PREFIX):
            raise Unsupported(
                "the layer's state is in PostgreSQL, which is backed up by its own tools",
                hint="pg_dump, or its WAL archive",
            )
        return await asyncio.to_thread(_dumped, Path(database.removeprefix(_PREFIX)))

    return dump


def _dumped(path: Path) -> bytes:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".dump-") as place:
        copy = Path(place) / "store.db"
        source, target = sqlite3.connect(path), sqlite3.connect(copy)
        try:
            source.backup(target)
        finally:
            target.close()
            source.close()
        return zstandard.compress(copy.read_bytes(), 3)
