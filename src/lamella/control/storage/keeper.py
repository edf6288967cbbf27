"""The storekeeper: drives every row of storage to what was asked of it, one step at a time, and again after every interruption.

Level-triggered: a step is chosen from the row as it is now, never from what somebody remembers. Hosts' requests may be made again,
so a step that was cut off is simply taken anew: when its host joins, or a little later.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from lamella.control.storage.asking import Tell, unheard
from lamella.control.storage.steps import Step, next_step
from lamella.model.errors import DeadlineExceeded, Internal, LamellaError, NotFound, Unavailable
from lamella.model.kinds import AnyResource
from lamella.model.storage import StoragePhase
from lamella.store.store import Store, Transaction

log = logging.getLogger("lamella.control")

# Seconds between two tries of what could not be done because somebody was away.
AGAIN = 10.0
KINDS = ("pool", "volume", "snapshot")

# Takes one step with one row; what it raises is written down by whoever has asked, and told to them.
Take = Callable[[AnyResource, Step, Tell], Awaitable[None]]
# Writes down that a step failed, and what the row is from now on; after Unavailable the step is tried again later.
Failed = Callable[[Transaction, AnyResource, Step, LamellaError], None]


class Keeper:
    """``take`` and ``failed`` are by kind."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._take: dict[str, Take] = {}
        self._failed: dict[str, Failed] = {}
        self._tasks: dict[str, asyncio.Task[bool]] = {}
        self._anew: set[str] = set()
        self._left: set[str] = set()
        self._tell: dict[str, Tell] = {}
        self._ticking: asyncio.Task[None] | None = None

    def know(self, kind: str, take: Take, failed: Failed) -> None:
        self._take[kind], self._failed[kind] = take, failed

    async def open(self) -> None:
        self._ticking = asyncio.create_task(self._tick(), name="storekeeper")

    async def close(self) -> None:
        tasks = [*self._tasks.values(), *([self._ticking] if self._ticking else [])]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, LamellaError):
                await task

    async def joined(self, host: str) -> None:
        """*host* can be asked (again): everything of it that is not as it should be is taken up."""

        def look(tx: Transaction) -> list[str]:
            rows: list[AnyResource] = [row for kind in KINDS for row in tx.list(kind)]
            return [row.id for row in rows if next_step(row) and getattr(row.status, "host", None) in (None, host)]

        for id in await self._store.read(look):
            self.drive(id)

    def drive(self, id: str) -> "asyncio.Task[bool]":
        """Bring the row *id* to rest; the task raises what stands in the way, and gives whether anything was to be done."""
        running = self._tasks.get(id)
        if running is not None and not running.done():
            # It may have read the row before the change that it is driven for.
            self._anew.add(id)
            return running
        task = self._tasks[id] = asyncio.create_task(self._drive(id), name=f"storekeeper {id}")
        task.add_done_callback(lambda done: self._ended(id, done))
        return task

    def _ended(self, id: str, task: "asyncio.Task[bool]") -> None:
        if self._tasks.get(id) is task:
            del self._tasks[id]
        if task.cancelled():
            return
        if isinstance(task.exception(), Unavailable):
            self._left.add(id)
        if id in self._anew:
            # It failed of what was asked before; what was asked since is another matter.
            self.drive(id)

    async def settle(self, id: str, wait: float, tell: Tell = unheard) -> None:
        """Drive *id*, and wait up to *wait* seconds for it to have come to rest (0: do not).

        :raise DeadlineExceeded: when it has not. :raise LamellaError: what stood in the way.
        """
        if wait <= 0:
            self.drive(id)
            return
        self._tell[id] = tell
        try:
            async with asyncio.timeout(wait):
                before = self._tasks.get(id)
                task = self.drive(id)
                await asyncio.wait({task})
                if task is before and task.exception() is not None:
                    # A step that was taken before this was asked has failed. What became of this shows in the next.
                    task = after if await self._took(after := self.drive(id)) else task
                task.result()
        except TimeoutError:
            raise DeadlineExceeded(
                f"it was not done within {wait:g} s", hint="it goes on: look again, or wait longer"
            ) from None
        finally:
            self._tell.pop(id, None)

    @staticmethod
    async def _took(task: "asyncio.Task[bool]") -> bool:
        """Whether *task* had anything to do, well or not."""
        await asyncio.wait({task})
        return task.exception() is not None or task.result()

    async def _drive(self, id: str) -> bool:
        took = False
        while True:
            self._anew.discard(id)
            row = await self._row(id)
            step = next_step(row) if row is not None else None
            if row is None or step is None:
                if id in self._anew:
                    continue
                return took
            await self._one(row, step)
            took = True

    async def _row(self, id: str) -> AnyResource | None:
        with suppress(NotFound):
            return await self._store.by_id(id)
        return None

    async def _one(self, row: AnyResource, step: Step) -> None:
        async def tell(line: Any) -> None:
            await self._tell.get(row.id, unheard)(line)

        try:
            await self._take[row.kind](row, step, tell)
        except LamellaError as error:
            await self._give_up(row, step, error)
            raise
        except Exception as error:
            log.exception("%s %s of %s", step, row.kind, row.name)
            failure = Internal(f"{type(error).__name__}: {error}")
            await self._give_up(row, step, failure)
            raise failure from error

    async def _give_up(self, row: AnyResource, step: Step, error: LamellaError) -> None:
        log.warning("%s of %s %s: %s", step, row.kind, row.name, error)

        def write(tx: Transaction) -> None:
            current = tx.by_id(row.id)
            if current is not None and not _superseded(row, current):
                self._failed[row.kind](tx, current, step, error)

        await self._store.write(write)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(AGAIN)
            left, self._left = self._left, set()
            for id in left:
                self.drive(id)


def _superseded(row: AnyResource, current: AnyResource) -> bool:
    """Whether something else was asked since the step with *row* was chosen: then its failure says nothing about that."""
    phase = current.status.phase
    return current.generation != row.generation or (phase is StoragePhase.DELETING and row.status.phase is not phase)
