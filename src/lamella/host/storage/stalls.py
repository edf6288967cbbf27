"""Pools that stand still: whoever waits for one is told so in time, others go on, and what was begun is finished when it is back.

A thread that writes to a filesystem which is frozen, or whose server is away, cannot be stopped. So a verb that takes long has its pool
tried: something small is written there. As long as that does not come back the pool stands still. The verb goes on in the background,
with its locks; who asked for it hears ``unavailable`` and asks again later, as after a crash; and nothing new is begun there.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar, cast

from lamella.host.storage.driver import StorageDriver, Tried
from lamella.host.storage.pools import Pools
from lamella.host.storage.wing import Heard
from lamella.model.errors import LamellaError, Unavailable
from lamella.model.storage_requests import AnyStorageRequest, CheckStorage, MeasureVolumes

log = logging.getLogger("lamella.host.storage")

T = TypeVar("T")

# Seconds: a verb that takes longer has its pool tried; a trial that takes longer says that the pool stands still.
LONG, PATIENCE = 5.0, 20.0


class Stalls:
    """*tell* is told when a pool begins to stand still (``pool.stalled``), and when it goes on (``pool.goes-on``)."""

    def __init__(self, pools: Pools, tell: Heard) -> None:
        self._pools = pools
        self._tell = tell
        self._trials: dict[str, asyncio.Future[None]] = {}
        self._still: set[str] = set()
        self._behind: set[asyncio.Task[Any]] = set()

    def require(self, pools: Iterable[str]) -> None:
        """:raise Unavailable: when one of *pools* stands still."""
        for name in pools:
            if name in self._still:
                raise Unavailable(
                    f"pool {name} does not answer: what is written there waits",
                    hint="see to its storage; what was begun goes on when it answers again",
                )

    async def answer(self, request: AnyStorageRequest, work: Coroutine[Any, Any, T]) -> T:
        """:meth:`bounded` by the pools that *request* is about; what looks at all pools bounds each for itself."""
        every = isinstance(request, CheckStorage | MeasureVolumes)
        return await self.bounded([] if every else pools_of(request), work)

    async def bounded(self, pools: Iterable[str], work: Coroutine[Any, Any, T]) -> T:
        """What *work* on these pools gives, for as long as they answer; it goes on when they do not.

        :raise Unavailable: when one stands still.
        """
        names = set(pools)
        try:
            self.require(names)
        except Unavailable:
            work.close()
            raise
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=LONG))[0]:
                for name in names:
                    await self._try(name, task)
                if not task.done():
                    self.require(names)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise
        except Unavailable:
            self._behind.add(task)
            task.add_done_callback(self._ended)
            raise
        return task.result()

    async def close(self) -> None:
        """What still goes on is let go of, as by a crash."""
        for task in self._behind:
            task.cancel()

    async def _try(self, name: str, task: "asyncio.Task[Any]") -> None:
        """Wait until *name* has answered, *task* is done, or patience is over: then it stands still."""
        trial = self._trials.get(name)
        if trial is None:
            try:
                driver = self._pools.get(name)
            except Unavailable:
                return  # its own sentence says more
            trial = self._trials[name] = asyncio.ensure_future(_trial(driver))
            trial.add_done_callback(lambda done: self._answered(name, done))
        done, _ = await asyncio.wait({trial, task}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        if not done and name not in self._still:
            self._still.add(name)
            self._tell("pool.stalled", name, f"pool {name} does not answer: what is written there waits")

    def _answered(self, name: str, trial: "asyncio.Future[None]") -> None:
        self._trials.pop(name, None)
        if not trial.cancelled():
            trial.exception()  # a refusal is an answer
        if name in self._still:
            self._still.discard(name)
            self._tell("pool.goes-on", name, f"pool {name} answers again")

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._behind.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.log(logging.WARNING if isinstance(error, LamellaError) else logging.ERROR, "what waited: %s", error)


async def _trial(driver: StorageDriver) -> None:
    if isinstance(driver, Tried):
        await _in_a_thread_of_its_own(driver.try_out)
    else:
        await driver.status()


async def _in_a_thread_of_its_own(work: Callable[[], None]) -> None:
    """The threads that the loop has for everybody may be those that wait."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not ended.done():
            ended.set_result(None)

    def run() -> None:
        try:
            work()
        except OSError as error:
            log.info("a pool that was tried out: %s", error)
        finally:
            if not loop.is_closed():
                loop.call_soon_threadsafe(end)

    threading.Thread(target=run, name="trial of a pool", daemon=True).start()
    await ended


def pools_of(request: AnyStorageRequest) -> set[str]:
    """The pools that what *request* names lies in."""
    fields: list[Any] = [getattr(request, name) for name in request.__struct_fields__]
    rows: list[Any] = [
        row for field in fields for row in (cast("list[Any]", field) if isinstance(field, list) else [field])
    ]
    return {
        *(row.name for row in rows if getattr(row, "kind", "") == "pool"),
        *(row.spec.pool for row in rows if getattr(row, "kind", "") == "volume"),
    }
