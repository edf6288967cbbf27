"""PostgreSQL: many processes, one of which writes at a time (https://www.postgresql.org/docs/current/explicit-locking.html)."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
from psycopg import errors
from psycopg.types.json import set_json_loads
from sqlalchemy import URL, Engine, Insert, Table, Text, bindparam, create_engine, event, func, literal_column
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.expression import ColumnElement, Executable

from lamella.model.errors import Internal, Invalid, LamellaError, Unavailable
from lamella.store.dialect import READERS, Verdict, unfit
from lamella.store.session import Session

CHANNEL = "lamella_changes"
# "lamella" in ASCII: the advisory lock of whoever writes. Released by the commit, after what was written can be seen.
LOCK = 0x6C616D656C6C61
CATCH_UP_SECONDS = 10.0
RECONNECT_SECONDS = 1.0
# A peer that hangs in the midst of a write is cut off before those who wait for it give up.
LIMITS = "-c idle_in_transaction_session_timeout=20s -c lock_timeout=30s"

_RETRY = (errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable)
_REFUSED = (errors.InsufficientResources, errors.QueryCanceled, errors.ObjectNotInPrerequisiteState)


class Postgresql:
    """:class:`Database` on a server. Commits of other processes are heard by LISTEN/NOTIFY, a hint that may be lost."""

    has_schema = "SELECT 1 WHERE to_regclass('alembic_version') IS NOT NULL"

    def __init__(self, url: URL) -> None:
        self._url = url.set(drivername="postgresql+psycopg")
        self.writer = _engine(self._url, 1)
        self.reader = _engine(self._url, READERS)
        self._own = 0
        event.listen(self.writer, "connect", self._set_up_writer)
        event.listen(self.reader, "connect", _set_up_reader)

    def _set_up_writer(self, connection: psycopg.Connection[Any], _record: object) -> None:
        set_json_loads(_as_text, connection)
        self._own = connection.info.backend_pid
        # An answered write is on disk even where the administrator prefers speed; stronger settings stay.
        connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
        connection.commit()

    def prepare(self) -> None:
        pass

    def begin_write(self, session: Session) -> None:
        # READ COMMITTED: each statement sees all that was committed before the lock was had.
        session.run(f"SELECT pg_advisory_xact_lock({LOCK})")

    def begin_read(self, session: Session) -> None:
        # REPEATABLE READ, READ ONLY as the connection is set up: the driver sends BEGIN with the first statement.
        pass

    def verdict(self, error: BaseException) -> Verdict:
        if isinstance(error, _RETRY):
            return Verdict.RETRY
        lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        return Verdict.LOST if lost and not isinstance(error, _REFUSED) else Verdict.REFUSED

    def explain(self, error: BaseException) -> LamellaError:
        if isinstance(error, _RETRY):
            return Unavailable("another process held the store for too long", hint="try again")
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            where = self._url.render_as_string(hide_password=True)
            return Unavailable(f"{where} does not answer: {error}".strip(), hint="look at the database server")
        if isinstance(error, psycopg.DataError):
            return Invalid(f"the database cannot hold this: {error}".strip())
        return unfit(error) or Internal(f"the store failed: {error}".strip())

    async def hear(self, look: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await self._listen(look)
            except psycopg.Error:
                await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen(self, look: Callable[[], Awaitable[None]]) -> None:
        target = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        async with await psycopg.AsyncConnection.connect(
            target, autocommit=True, application_name="lamella"
        ) as connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            while True:
                # First for what was said before anybody listened; later for what a dead connection did not say.
                await look()
                async for notice in connection.notifies(timeout=CATCH_UP_SECONDS):
                    if notice.pid != self._own:
                        await look()

    def insert(self, table: Table) -> Any:
        return insert(table)

    def has_label(self, labels: ColumnElement[Any], key: str, value: str) -> ColumnElement[bool]:
        return labels.op("->>")(bindparam(key, type_=Text())) == bindparam(value, type_=Text())

    def announced(self, change: Insert) -> Executable:
        # In RETURNING it costs no round trip of its own; many in one transaction are heard once.
        return change.returning(func.pg_notify(literal_column(f"'{CHANNEL}'"), literal_column("''")))

    def clock(self) -> ColumnElement[float]:
        return literal_column("extract(epoch from clock_timestamp())::float8")


def _engine(url: URL, connections: int) -> Engine:
    options = url.query.get("options", "")
    return create_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        connect_args={"options": f"{LIMITS} {options}", "application_name": "lamella", "connect_timeout": 10},
    )


def _set_up_reader(connection: psycopg.Connection[Any], _record: object) -> None:
    set_json_loads(_as_text, connection)
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True


def _as_text(data: str | bytes) -> str:
    return data if isinstance(data, str) else str(data, "utf-8")
