"""The one thread that writes. Transactions queue before it; what queued up during one commit is committed together."""

import asyncio
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from lamella.model.errors import LamellaError, Unavailable
from lamella.store.connection import opened
from lamella.store.dialect import Database, Verdict
from lamella.store.session import Session
from lamella.store.statements import Statements
from lamella.store.transaction import DatabaseTransaction

T = TypeVar("T")

Change = Callable[[DatabaseTransaction], T]

# How many may share one commit: bounds how long the first of them waits for the last.
TOGETHER = 64
ATTEMPTS = 5


class _Job(Generic[T]):
    __slots__ = ("change", "error", "future", "value")

    def __init__(self, change: Change[T], future: asyncio.Future[T]) -> None:
        self.change = change
        self.future = future
        self.value: T | None = None
        self.error: BaseException | None = None

    def tell(self) -> None:
        """Called in the loop, when it is decided."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.value)  # type: ignore[arg-type]
        elif isinstance(self.error, StopIteration):
            # A future cannot carry it.
            self.future.set_exception(RuntimeError("the change raised StopIteration"))
        else:
            self.future.set_exception(self.error)


class Writer:
    """Runs changes in the order in which they were asked for, each wholly or not at all.

    A change whose caller went away before its turn does not run; one whose caller goes away later ends as it would have.
    """

    def __init__(self, database: Database, statements: Statements, committed: Callable[[int], None]) -> None:
        """*committed* is called in the loop with the newest revision, before callers hear of their commits."""
        self._database = database
        self._sql = statements
        self._committed = committed
        self._queue: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="lamella-store-writer", daemon=True)
        self._thread.start()

    async def run(self, change: Change[T]) -> T:
        """What *change* returns, once it is durable. :raise Unavailable: when the writer is closed or the database gone."""
        if self._closed:
            raise Unavailable("the store is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Job(change, future))
        return await future

    async def close(self) -> None:
        """Finish what was asked for, then end."""
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _serve(self) -> None:
        going = True
        while going:
            jobs: list[_Job[Any]] = []
            job = self._queue.get()
            while True:
                if job is None:
                    going = False
                    break
                jobs.append(job)
                if len(jobs) == TOGETHER:
                    break
                try:
                    job = self._queue.get_nowait()
                except queue.Empty:
                    break
            self._settle([job for job in jobs if not job.future.cancelled()])

    def _settle(self, jobs: Sequence[_Job[Any]]) -> None:
        if not jobs:
            return
        try:
            head = self._commit(jobs)
        except _Refused as refusal:
            if len(jobs) > 1 and not refusal.in_doubt:
                for job in jobs:
                    self._settle_alone(job)
                return
            if len(jobs) == 1:
                self._settle_alone(jobs[0], refusal)
                return
            for job in jobs:
                job.error = self._in_doubt(refusal)
            head = 0
        self._tell(jobs, head)

    def _settle_alone(self, job: _Job[Any], refusal: "_Refused | None" = None) -> None:
        head = 0
        for attempt in range(ATTEMPTS):
            if refusal is not None:
                if refusal.in_doubt:
                    job.error = self._in_doubt(refusal)
                    break
                if refusal.verdict is Verdict.REFUSED or attempt == ATTEMPTS - 1:
                    job.error = self._explained(refusal)
                    break
                time.sleep(0.02 * 2**attempt * random.uniform(0.5, 1.5))
            try:
                head, refusal = self._commit([job]), None
                break
            except _Refused as again:
                refusal = again
        self._tell([job], head)

    def _commit(self, jobs: Sequence[_Job[Any]]) -> int:
        """All of *jobs* in one transaction of the database; the newest revision after it, or 0 when nothing was committed.

        :raise _Refused: when the database did not do it.
        """
        session: Session | None = None
        try:
            with opened(self._database, self._database.writer) as session:
                self._database.begin_write(session)
                row = session.one(self._sql.head)
                head: int = (row[0] if row is not None else None) or 0
                several = len(jobs) > 1
                for job in jobs:
                    head = self._run(job, session, head, several)
                if not several and jobs[0].error is not None:
                    return 0
                session.commit()
                return head
        except _Doomed:
            pass
        except Exception as error:
            if session is None or session.failed is None:
                raise _Refused(self._database.verdict(error), error, in_doubt=False) from error
        assert session is not None and session.failed is not None
        error = session.failed
        in_doubt = session.committing and self._database.verdict(error) is not Verdict.RETRY
        raise _Refused(self._database.verdict(error), error, in_doubt=in_doubt) from error

    def _run(self, job: _Job[Any], session: Session, head: int, several: bool) -> int:
        if several:
            session.run("SAVEPOINT change")
        job.error = None
        transaction = DatabaseTransaction(session, self._sql, head, writable=True)
        try:
            job.value = job.change(transaction)
        except BaseException as error:
            job.error = error
        if session.failed is not None:
            raise _Doomed
        if several and job.error is not None:
            session.run("ROLLBACK TO SAVEPOINT change")
        if several:
            session.run("RELEASE SAVEPOINT change")
        return head if job.error is not None else transaction.head

    def _tell(self, jobs: Sequence[_Job[Any]], head: int) -> None:
        def tell() -> None:
            if head:
                self._committed(head)
            for job in jobs:
                job.tell()

        # When the loop has ended, nobody is left who could be told.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(tell)

    def _explained(self, refusal: "_Refused") -> LamellaError:
        explained = self._database.explain(refusal.error)
        explained.__cause__ = refusal.error
        return explained

    def _in_doubt(self, refusal: "_Refused") -> LamellaError:
        error = Unavailable(
            f"a commit failed, and what it held may be stored or not: {refusal.error}".strip(),
            hint="look whether it did before doing it again",
        )
        error.__cause__ = refusal.error
        return error


class _Doomed(Exception):
    """The database refused a statement; whatever the change made of that, nothing of it may be committed."""


class _Refused(Exception):
    def __init__(self, verdict: Verdict, error: Exception, *, in_doubt: bool) -> None:
        super().__init__(str(error))
        self.verdict = verdict
        self.error = error
        self.in_doubt = in_doubt
