"""What every kind of storage work is given: the pools, the storage process, the keys, and what is open."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from lamella.host.compute.driver import Home
from lamella.host.storage.blocks import BlockDaemon
from lamella.host.storage.opened import OpenTable
from lamella.host.storage.pools import Pools
from lamella.host.storage.records import Records
from lamella.host.storage.requests import Requests
from lamella.host.storage.stacks import Stacks
from lamella.host.storage.wing import Heard, Writers


class Locks:
    """One thing at a time for each volume."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, volume_ids: Iterable[str]) -> AsyncGenerator[None]:
        """Hold the locks of all these, taken in one order, so that no two wait for each other."""
        taken: list[str] = []
        try:
            for id in sorted(set(volume_ids)):
                lock, count = self._held.get(id, (asyncio.Lock(), 0))
                self._held[id] = (lock, count + 1)
                try:
                    await lock.acquire()
                except BaseException:
                    self._leave(id)
                    raise
                taken.append(id)
            yield
        finally:
            for id in reversed(taken):
                self._held[id][0].release()
                self._leave(id)

    def _leave(self, id: str) -> None:
        lock, count = self._held[id]
        if count == 1:
            del self._held[id]
        else:
            self._held[id] = (lock, count - 1)


@dataclass
class Parts:
    """``Volumes.parts``. Work on one volume holds ``locks.of([id])``; ``tell`` is what the person should hear."""

    home: Home
    pools: Pools
    daemon: BlockDaemon
    stacks: Stacks
    records: Records
    opened: OpenTable
    requests: Requests
    locks: Locks = field(default_factory=Locks)
    writers: Writers | None = None
    heard: Heard | None = None

    def tell(self, event: str, subject: str, message: str) -> None:
        if self.heard is not None:
            self.heard(event, subject, message)
