"""What is wished of each volume, done by a task of its own: one that does not answer holds up no other.

Of each kind of wish the newest counts: what was wished before and is not done yet is not done any more.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from lamella.model.errors import LamellaError, NotFound

log = logging.getLogger("lamella.host.storage")

Work = Callable[[], Awaitable[None]]


class Wishes:
    """Kinds are done in the order in which they were wished."""

    def __init__(self) -> None:
        self._wanted: dict[str, dict[str, Work]] = {}
        self._doing: dict[str, asyncio.Task[None]] = {}

    def set(self, id: str, kind: str, work: Work) -> None:
        """Have *work* done for the volume *id*, in place of what was wished of that kind."""
        wanted = self._wanted.setdefault(id, {})
        wanted.pop(kind, None)
        wanted[kind] = work
        if id not in self._doing:
            self._doing[id] = asyncio.create_task(self._do(id), name=f"wishes of {id}")

    async def settled(self, ids: Iterable[str], seconds: float) -> None:
        """Wait until all that was wished of these is done, but no longer than *seconds*."""
        if tasks := [self._doing[id] for id in ids if id in self._doing]:
            await asyncio.wait(tasks, timeout=seconds)

    async def close(self) -> None:
        tasks = list(self._doing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _do(self, id: str) -> None:
        try:
            while wanted := self._wanted.get(id):
                work = wanted.pop(next(iter(wanted)))
                try:
                    await work()
                except NotFound:
                    continue  # it was closed meanwhile
                except LamellaError as error:
                    log.warning("volume %s: %s", id, error)
                except Exception:
                    log.exception("volume %s", id)
        finally:
            del self._doing[id]
            self._wanted.pop(id, None)
