"""Who waits for what: one watch of the store's log, shared by everybody in this process who waits for a resource to change."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from lamella.model.errors import DeadlineExceeded
from lamella.store.store import Change, Store

Listener = Callable[[Change], None]


class Bulletin:
    """Reads the log once and tells every listener of each change, in order."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listeners: set[Listener] = set()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        since = await self._store.revision()
        self._task = asyncio.create_task(self._read(since), name="bulletin")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _read(self, since: int) -> None:
        async for change in self._store.watch(since):
            for listener in tuple(self._listeners):
                listener(change)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call *listener* with every change from now on; the returned function ends that."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    async def until(
        self,
        ids: Collection[str],
        first: Callable[[], Awaitable[bool]],
        check: Callable[[Change], bool],
        *,
        timeout: float,
        after: int = 0,
    ) -> None:
        """Wait until *first* says yes, or ``check(change)`` does for a change of one of the resources *ids*. Listening begins
        before *first* is asked, so what happens meanwhile is heard. The log is read behind those who write it: changes up to
        revision *after* are not news to whoever waits, and what they say is not true any more.

        :raise DeadlineExceeded: when *timeout* seconds went by.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def look(change: Change) -> None:
            if change.revision > after and change.id in ids and not done.done() and check(change):
                done.set_result(None)

        stop = self.listen(look)
        try:
            if await first():
                return
            async with asyncio.timeout(timeout):
                await done
        except TimeoutError:
            raise DeadlineExceeded(f"nothing that was waited for happened within {timeout:g} s") from None
        finally:
            stop()
