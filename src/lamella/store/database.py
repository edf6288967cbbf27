"""The store over a database: SQLite by default, PostgreSQL by URL, one implementation for both."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TypeVar

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from lamella.model.errors import Conflict, Invalid, LamellaError, NotFound, Unavailable, Unsupported
from lamella.model.ids import is_id
from lamella.model.kinds import AnyResource
from lamella.store import migration
from lamella.store.connection import opened
from lamella.store.dialect import READERS, Database, Verdict
from lamella.store.head import Head
from lamella.store.rows import change_of, hour, resource_of
from lamella.store.session import Session
from lamella.store.statements import Statements
from lamella.store.store import Change, Page, Store, Transaction
from lamella.store.transaction import DatabaseTransaction
from lamella.store.writer import Writer

T = TypeVar("T")

ATTEMPTS = 3
# What a watcher holds in memory at most, and what one step of pruning removes while others wait to write.
WATCH_BATCH = 128
PRUNE_BATCH = 1000
LARGEST_PAGE = 10_000
MOST_LABELS = 64
NEWEST_REVISION = (1 << 63) - 1

_log = logging.getLogger(__name__)


def open_store(url: str) -> Store:
    """The store at *url*, still to be opened: ``sqlite:////var/lib/lamella/lamella.db``, ``postgresql://user@host/name``.

    :raise Invalid: when *url* is not one.
    :raise Unsupported: when it names another kind of database.
    """
    try:
        return DatabaseStore(_database(make_url(url)))
    except (ArgumentError, ValueError, TypeError) as error:
        hint = "write it like sqlite:////var/lib/lamella/lamella.db"
        raise Invalid(f"the store's URL cannot be read: {error}", hint=hint, field="store") from error


def _database(url: URL) -> Database:
    # Each is imported when it is asked for: a daemon on SQLite does not carry PostgreSQL's driver.
    match url.get_backend_name():
        case "sqlite":
            from lamella.store.sqlite import Sqlite

            return Sqlite(url)
        case "postgresql":
            from lamella.store.postgresql import Postgresql

            return Postgresql(url)
        case other:
            raise Unsupported(f"no store is kept in {other}", hint="use sqlite or postgresql", field="store")


class DatabaseStore:
    """:class:`Store` over a :class:`Database`. Belongs to the loop in which it was opened."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = Statements(database.writer.dialect, database)
        self._head = Head()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="lamella-store-reader")
        self._writer: Writer | None = None
        self._watchers = 0
        self._hearing: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    # Its life

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._head.advance(await loop.run_in_executor(self._readers, self._prepare))
        self._writer = Writer(self._database, self._sql, self._head.advance)

    def _prepare(self) -> int:
        try:
            self._database.prepare()
            with opened(self._database, self._database.writer) as session:
                found = migration.version(session, self._database.has_schema)
            if not migration.check(found):
                self._migrate()
            with opened(self._database, self._database.writer) as session:
                return self._revision(session)
        except LamellaError:
            raise
        except Exception as error:
            raise self._database.explain(error) from error

    def _migrate(self) -> None:
        with self._database.writer.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            session = Session(raw)
            # Whoever else opens the store now waits here, and finds it done.
            self._database.begin_write(session)
            if not migration.check(migration.version(session, self._database.has_schema)):
                migration.migrate(connection)
            session.commit()

    async def close(self) -> None:
        self._head.close()
        self._stop_hearing()
        await asyncio.gather(*self._ending, return_exceptions=True)
        if self._writer is not None:
            await self._writer.close()
            self._writer = None
        await asyncio.to_thread(self._disconnect)

    def _disconnect(self) -> None:
        self._readers.shutdown()
        self._database.reader.dispose()
        self._database.writer.dispose()

    # Transactions

    async def write(self, change: Callable[[Transaction], T]) -> T:
        if self._writer is None:
            raise Unavailable("the store is not open")
        return await self._writer.run(change)

    async def read(self, look: Callable[[Transaction], T]) -> T:
        return await self._look(lambda session: look(self._view(session)))

    def _view(self, session: Session) -> DatabaseTransaction:
        return DatabaseTransaction(session, self._sql, 0, writable=False)

    async def _look(self, look: Callable[[Session], T]) -> T:
        if self._writer is None:
            raise Unavailable("the store is not open")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._look_now, look)

    def _look_now(self, look: Callable[[Session], T]) -> T:
        for attempt in range(ATTEMPTS):
            session: Session | None = None
            try:
                with opened(self._database, self._database.reader) as session:
                    self._database.begin_read(session)
                    return look(session)
            except Exception as error:
                broken = error if session is None else session.failed
                if broken is None:
                    # The look's own.
                    raise
                if self._database.verdict(broken) is Verdict.REFUSED or attempt == ATTEMPTS - 1:
                    raise self._database.explain(broken) from broken
                time.sleep(0.05 * attempt)
        raise AssertionError("the last attempt returns or raises")

    # Looks

    async def get(self, kind: str, project: str, name: str) -> AnyResource:
        if is_id(name):
            found = await self._look(lambda session: self._view(session).by_id(name))
            if found is not None and (found.kind != kind or found.project != project):
                found = None
        else:
            found = await self._look(lambda session: self._view(session).get(kind, project, name))
        if found is None:
            raise NotFound(
                f"no {kind} {name!r} in project {project!r}",
                hint=f"lamella {'ps -a' if kind == 'instance' else f'{kind} ls'} lists them",
                field="name",
            )
        return found

    async def by_id(self, id: str) -> AnyResource:
        found = await self._look(lambda session: self._view(session).by_id(id))
        if found is None:
            raise NotFound(f"nothing has the id {id!r}", field="id")
        return found

    async def list(
        self,
        kind: str,
        *,
        project: str | None = None,
        labels: dict[str, str] | None = None,
        cursor: str = "",
        limit: int = 1000,
    ) -> Page:
        if cursor and not is_id(cursor):
            raise Invalid(
                f"the cursor {cursor!r} is not one that was given out",
                hint="take it from the page before, or leave it out to begin",
                field="cursor",
            )
        _check_limit(limit)
        pairs = labels or {}
        if len(pairs) > MOST_LABELS:
            raise Invalid(
                f"{len(pairs)} labels are too many to select by", hint=f"name {MOST_LABELS} at most", field="labels"
            )
        # One more than was asked for tells whether there is a next page.
        parameters: dict[str, object] = {"kind": kind, "cursor": cursor, "limit": limit + 1, "skip": 0}
        if project is not None:
            parameters["project"] = project
        for index, (key, value) in enumerate(pairs.items()):
            parameters[f"key{index}"], parameters[f"value{index}"] = key, value
        sql = self._sql.page(project is not None, len(pairs), True)

        def look(session: Session) -> Page:
            items = [resource_of(row) for row in session.all(sql, parameters)]
            following = items[limit - 1].id if len(items) > limit else ""
            return Page(items=items[:limit], cursor=following, revision=self._revision(session))

        return await self._look(look)

    # The log

    async def revision(self) -> int:
        return await self._look(self._revision)

    def _revision(self, session: Session) -> int:
        row = session.one(self._sql.head)
        return 0 if row is None or row[0] is None else row[0]

    async def changes(self, since: int, *, limit: int = 1000) -> Sequence[Change]:
        _check_limit(limit)
        if not 0 <= since <= NEWEST_REVISION:
            raise Invalid(f"{since} is no revision", hint="take it from a page or a change", field="since")

        def look(session: Session) -> Sequence[Change]:
            rows = session.all(self._sql.changes, {"since": since, "limit": limit, "skip": 0})
            if rows and rows[0][0] != since + 1:
                raise Conflict(
                    f"the log begins after revision {rows[0][0] - 1}, and {since} was asked for",
                    hint="list everything anew and go on from that page's revision",
                )
            if not rows and since > self._revision(session):
                raise Conflict(
                    f"the store has not come to revision {since} yet",
                    hint="was it restored from a copy? list everything anew and go on from that page's revision",
                )
            return [change_of(row) for row in rows]

        return await self._look(look)

    async def watch(self, since: int) -> AsyncIterator[Change]:
        self._begin_hearing()
        try:
            while True:
                batch = await self.changes(since, limit=WATCH_BATCH)
                for change in batch:
                    since = change.revision
                    yield change
                if len(batch) < WATCH_BATCH:
                    # Asked after the backlog was read, of a number that only grows: nothing slips between.
                    await self._head.beyond(since)
        finally:
            self._end_hearing()

    def _begin_hearing(self) -> None:
        self._watchers += 1
        if self._hearing is None:
            self._hearing = asyncio.create_task(self._hear(), name="store-hearing")

    def _end_hearing(self) -> None:
        self._watchers -= 1
        if self._watchers == 0:
            self._stop_hearing()

    def _stop_hearing(self) -> None:
        if self._hearing is not None:
            self._hearing.cancel()
            # Whoever stopped watching does not wait for its end; who closes the store does.
            self._ending.add(self._hearing)
            self._hearing.add_done_callback(self._ending.discard)
            self._hearing = None

    async def _hear(self) -> None:
        async def look() -> None:
            try:
                self._head.advance(await self.revision())
            except LamellaError as error:
                _log.warning("the store does not say how far it is: %s", error)

        await self._database.hear(look)

    # Leases, usage, pruning

    async def acquire(self, lease: str, holder: str, seconds: float) -> bool:
        parameters = {"name": lease, "holder": holder, "seconds": seconds}
        return await self._write_plain(lambda session: session.one(self._sql.acquire, parameters) is not None)

    async def release(self, lease: str, holder: str) -> None:
        await self._write_plain(lambda session: session.run(self._sql.release_lease, {"name": lease, "holder": holder}))

    async def add_usage(self, subject: str, meter: str, amount: float, at: datetime) -> None:
        parameters = {"subject": subject, "meter": meter, "hour": hour(at), "amount": amount}
        await self._write_plain(lambda session: session.run(self._sql.add_usage, parameters))

    async def _write_plain(self, change: Callable[[Session], T]) -> T:
        if self._writer is None:
            raise Unavailable("the store is not open")
        return await self._writer.run(lambda transaction: change(transaction.session))

    async def prune(self, *, keep_changes: int, keep_events: int) -> None:
        if keep_changes < 0 or keep_events < 0:
            raise Invalid("less than nothing cannot be kept", hint="give numbers from 0 up")
        while await self._write_plain(lambda session: self._prune_events(session, keep_events)):
            pass
        while await self._write_plain(lambda session: self._prune_changes(session, keep_changes)):
            pass

    def _prune_changes(self, session: Session, keep: int) -> bool:
        oldest = session.one(self._sql.tail)
        if oldest is None or oldest[0] is None:
            return False
        # The newest stays whatever is asked: it is the counter.
        last = self._revision(session) - max(keep, 1)
        step = min(last, oldest[0] + PRUNE_BATCH - 1)
        return step >= oldest[0] and session.run(self._sql.prune_changes, {"last": step}) > 0 and step < last

    def _prune_events(self, session: Session, keep: int) -> bool:
        surplus = session.one(self._sql.newest_surplus, {"kind": "event", "limit": 1, "skip": keep})
        if surplus is None:
            return False
        parameters = {"kind": "event", "last": surplus[0], "limit": PRUNE_BATCH, "skip": 0}
        return session.run(self._sql.prune_resources, parameters) == PRUNE_BATCH


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= LARGEST_PAGE:
        raise Invalid(f"a page of {limit} cannot be had", hint=f"ask for 1 to {LARGEST_PAGE}", field="limit")
