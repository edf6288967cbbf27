"""Long verbs: the operation's row is the intent. One whose verb can be begun again goes on after a restart of the daemon or of its host.

A new verb is a function of a :class:`Job` and a call of :meth:`Operations.add`; what it has to know stands in the operation's
``arguments``.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec

from lamella.control.bulletin import Bulletin
from lamella.control.storage.asking import Lost
from lamella.model.errors import Internal, LamellaError
from lamella.model.operation import Operation, OperationPhase, OperationSpec, OperationStatus
from lamella.model.requests import Principal
from lamella.model.resource import new_resource, now
from lamella.model.storage_report import Report
from lamella.model.storage_requests import StorageProgress
from lamella.store.store import Change, Store, Transaction

log = logging.getLogger("lamella.control")

# Progress goes to the store this often at most, in seconds: it is for eyes.
PROGRESS_EVERY = 0.25
# A host that went away is asked again, first after so many seconds, then ever less often; and so long altogether.
AGAIN, SELDOM, PATIENCE = 0.5, 10.0, 1800.0


class Job:
    """One operation that goes on. ``report``, ``made`` and ``pause`` are what it leaves beside its result (:class:`OperationStatus`)."""

    def __init__(self, store: Store, operation: Operation) -> None:
        self._store = store
        self._told = 0.0
        self._step = ""
        self.operation = operation
        self.report: Report | None = None
        self.made: list[str] = []
        self.pause = 0.0

    @property
    def arguments(self) -> dict[str, str]:
        return self.operation.spec.arguments

    @property
    def project(self) -> str:
        return self.operation.project

    async def tell(self, line: StorageProgress) -> None:
        """Write how far it is, unless that was written a moment ago."""
        if line.step == self._step and time.monotonic() - self._told < PROGRESS_EVERY:
            return
        self._told, self._step = time.monotonic(), line.step

        def write(tx: Transaction) -> None:
            current: Operation | None = tx.by_id(self.operation.id)
            if current is not None:
                status = current.status
                status.step, status.done, status.total, status.unit = line.step, line.done, line.total, line.unit
                tx.update(current)

        await self._store.write(write)


# Gives the name of what it made or changed.
Verb = Callable[[Job], Awaitable[str]]


class _Known(msgspec.Struct, frozen=True):
    run: Verb
    again: bool
    ended: Callable[[Transaction, Operation], None]


def _nothing(tx: Transaction, operation: Operation) -> None:
    pass


class Operations:
    """Runs what rows of the kind ``operation`` ask for."""

    def __init__(self, store: Store, bulletin: Bulletin) -> None:
        self._store = store
        self._bulletin = bulletin
        self._verbs: dict[str, _Known] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    def add(
        self,
        verb: str,
        run: Verb,
        *,
        again: bool = False,
        ended: Callable[[Transaction, Operation], None] = _nothing,
    ) -> None:
        """Know *verb*. With *again* it is run anew after a restart, and when it raises :class:`Lost`; *ended* is written with its end,
        whatever that was."""
        self._verbs[verb] = _Known(run, again, ended)

    async def open(self) -> None:
        """Go on with what a former daemon left; what cannot go on is over, and says so. Call it when every verb is known."""
        resumed: list[Operation] = []

        def write(tx: Transaction) -> None:
            resumed.clear()
            for operation in tx.list("operation"):
                known = self._verbs.get(operation.spec.verb)
                # Images look after their own.
                theirs = operation.spec.subject.startswith("image/")
                if operation.status.phase is not OperationPhase.RUNNING or theirs:
                    continue
                if known is not None and known.again:
                    resumed.append(operation)
                else:
                    error = Internal("the daemon ended while this was going on", hint="ask again")
                    self._close(tx, operation.id, error=error)

        await self._store.write(write)
        for operation in resumed:
            log.info("going on with %s of %s", operation.spec.verb, operation.spec.subject)
            self.start(operation)

    async def close(self) -> None:
        """Leave what goes on where it is, and begin nothing more; its rows stay as they are, and the next daemon reads them."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    def intend(
        self, tx: Transaction, who: Principal, project: str, verb: str, subject: str, arguments: dict[str, str]
    ) -> Operation:
        """Write in *tx* that *verb* is asked of *subject* (kind/name); after the commit, :meth:`start` it."""
        spec = OperationSpec(verb=verb, subject=subject, principal=who.name, arguments=arguments)
        operation: Operation = new_resource(
            "operation", "pending", spec, OperationStatus(step="waiting"), project=project
        )
        operation.name = operation.id.replace("_", "-")
        return tx.insert(operation)

    def start(self, operation: Operation) -> None:
        """Carry it out, in a task that lives as long as this object."""
        if self._closed:
            return
        task = asyncio.create_task(self._carry_out(operation), name=operation.name)
        self._tasks[operation.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(operation.id, None))

    async def finish(self, operation: Operation, wait: float) -> Operation:
        """The operation, when it has ended or *wait* seconds are over."""
        if wait > 0:

            async def first() -> bool:
                return (await self._store.by_id(operation.id)).status.phase is not OperationPhase.RUNNING

            def check(change: Change) -> bool:
                return change.resource.status.phase is not OperationPhase.RUNNING

            with suppress(LamellaError):
                await self._bulletin.until({operation.id}, first, check, timeout=wait)
        return await self._store.by_id(operation.id)

    async def _carry_out(self, operation: Operation) -> None:
        job = Job(self._store, operation)
        error: LamellaError | None = None
        result = ""
        try:
            result = await self._run(job)
        except LamellaError as failed:
            error = failed
        except Exception as failed:
            log.exception("operation %s", operation.id)
            error = Internal(f"{type(failed).__name__}: {failed}")
        await self._store.write(lambda tx: self._close(tx, operation.id, result=result, job=job, error=error))

    async def _run(self, job: Job) -> str:
        known = self._verbs[job.operation.spec.verb]
        waited, pause = 0.0, AGAIN
        while True:
            try:
                return await known.run(job)
            except Lost as error:
                if not known.again or waited > PATIENCE:
                    raise
                await job.tell(StorageProgress(step=f"waiting: {error.message}"))
            await asyncio.sleep(pause)
            waited, pause = waited + pause, min(2 * pause, SELDOM)

    def _close(
        self,
        tx: Transaction,
        id: str,
        *,
        result: str = "",
        job: Job | None = None,
        error: LamellaError | None = None,
    ) -> None:
        current: Operation | None = tx.by_id(id)
        if current is None:
            return
        status = current.status
        status.finished_at = now()
        if job is not None:
            status.report = job.report
        if error is None:
            status.phase, status.result, status.step = OperationPhase.DONE, result, "done"
            status.made, status.pause = (job.made, job.pause) if job is not None else ([], 0.0)
        else:
            status.phase = OperationPhase.FAILED
            status.error_code, status.error, status.hint = error.code, error.message, error.hint
        current = tx.update(current)
        known = self._verbs.get(current.spec.verb)
        if known is not None:
            known.ended(tx, current)
