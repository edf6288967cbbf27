"""SQLite: a file, one writer at a time, readers beside it (https://www.sqlite.org/wal.html)."""

import asyncio
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, Insert, Table, bindparam, create_engine, event, func, literal_column, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.pool import QueuePool
from sqlalchemy.sql.expression import ColumnElement, Executable

from lamella.model.errors import Corrupt, Internal, Invalid, LamellaError, Unavailable
from lamella.store.dialect import READERS, Verdict, unfit
from lamella.store.session import Session

BUSY_SECONDS = 20.0
POLL_SECONDS = 0.2

_CODE = 0xFF  # the rest of an extended result code says which variety
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DISK = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
}


class Sqlite:
    """:class:`Database` in one file. The file is 0600, and so are the log and the index that SQLite puts beside it."""

    has_schema = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"

    def __init__(self, url: URL) -> None:
        """:raise Invalid: when *url* is not an absolute path and nothing else."""
        if not url.database or not url.database.startswith("/") or url.query:
            raise Invalid(
                f"{url} names no file by its absolute path alone",
                hint="write it like sqlite:////var/lib/lamella/lamella.db",
                field="store",
            )
        self._path = Path(url.database)
        self.writer = _engine(url, 1)
        self.reader = _engine(url, READERS)
        event.listen(self.writer, "connect", _set_up_writer)
        event.listen(self.reader, "connect", _set_up_reader)

    def prepare(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Made before SQLite does, so that it is never readable to others; -wal and -shm take its mode.
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(handle, 0o600)
        finally:
            os.close(handle)

    def begin_write(self, session: Session) -> None:
        session.run("BEGIN IMMEDIATE")

    def begin_read(self, session: Session) -> None:
        session.run("BEGIN")

    def verdict(self, error: BaseException) -> Verdict:
        return Verdict.RETRY if _code(error) in _BUSY else Verdict.REFUSED

    def explain(self, error: BaseException) -> LamellaError:
        code = _code(error)
        if code in _BUSY:
            return Unavailable(f"{self._path} is locked by another process", hint="find who holds it with fuser")
        if code in _DISK or isinstance(error, OSError):
            return Unavailable(f"{self._path} cannot be read or written: {error}", hint="look at the disk below it")
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return Corrupt(f"{self._path} is damaged: {error}", hint="restore it from a copy")
        return unfit(error) or Internal(f"the store failed: {error}")

    async def hear(self, look: Callable[[], Awaitable[None]]) -> None:
        # SQLite tells nobody; a look costs tens of microseconds.
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await look()

    def insert(self, table: Table) -> Any:
        return insert(table)

    def has_label(self, labels: ColumnElement[Any], key: str, value: str) -> ColumnElement[bool]:
        pairs = func.json_each(labels).table_valued("key", "value")
        return select(pairs.c.key).where(pairs.c.key == bindparam(key), pairs.c.value == bindparam(value)).exists()

    def announced(self, change: Insert) -> Executable:
        return change

    def clock(self) -> ColumnElement[float]:
        # unixepoch('subsec') would say it, since 3.42; Debian 12 has 3.40.
        return literal_column("((julianday('now') - 2440587.5) * 86400.0)")


def _engine(url: URL, connections: int) -> Engine:
    return create_engine(
        url,
        paramstyle="named",
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS},
    )


def _set_up_writer(connection: sqlite3.Connection, _record: object) -> None:
    # Transactions begin where we say so, not where the driver guesses.
    connection.isolation_level = None
    _enter_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA journal_size_limit = 67108864")


def _set_up_reader(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA query_only = ON")


def _enter_wal(connection: sqlite3.Connection) -> None:
    # Two processes that open a fresh file at once: the busy handler is not asked for this one pragma.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if _code(error) not in _BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _code(error: BaseException) -> int:
    return getattr(error, "sqlite_errorcode", 0) & _CODE
