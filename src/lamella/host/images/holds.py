"""What is in use by work in hand, so that collecting never takes it, and whose turn it is to bring something that two want."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager


class Hold:
    """What one pull, import or build needs until it is over. Made by :meth:`Holds.begin`."""

    def __init__(self, settled: asyncio.Lock) -> None:
        self.digests: set[str] = set()
        self._settled = settled

    async def add(self, *digests: str) -> None:
        """From here on nobody takes them. Look whether they are there only after this: it waits for a collection under way."""
        async with self._settled:
            self.digests.update(digests)


class Holds:
    """All holds, and what was brought so lately that nobody who asks for a collection can have heard of it.

    An image stays for *grace* seconds after it came, or until somebody names it.
    """

    def __init__(self, grace: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.settled = asyncio.Lock()
        self._holds: set[Hold] = set()
        self._fresh: dict[str, float] = {}
        self._grace = grace
        self._clock = clock

    def begin(self) -> Hold:
        hold = Hold(self.settled)
        self._holds.add(hold)
        return hold

    def end(self, hold: Hold) -> None:
        self._holds.discard(hold)

    def held(self) -> set[str]:
        return {digest for hold in self._holds for digest in hold.digests}

    def brought(self, image: str) -> None:
        self._fresh[image] = self._clock() + self._grace

    def known(self, images: set[str]) -> None:
        """Somebody names these: their grace is over."""
        for image in images:
            self._fresh.pop(image, None)

    def fresh(self) -> set[str]:
        now = self._clock()
        self._fresh = {image: until for image, until in self._fresh.items() if until > now}
        return set(self._fresh)


class Turns:
    """One at a time for each key: who comes second finds the work done."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, key: str) -> AsyncGenerator[None, None]:
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            users = self._locks[key][1] - 1
            if users:
                self._locks[key] = (lock, users)
            else:
                del self._locks[key]
