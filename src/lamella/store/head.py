"""The newest revision that this process has heard of, and who waits for a newer one."""

import asyncio

from lamella.model.errors import Unavailable


class Head:
    """Only grows. Used in one loop."""

    def __init__(self) -> None:
        self.revision = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False

    def advance(self, revision: int) -> None:
        if revision > self.revision:
            self.revision = revision
            self._wake()

    def close(self) -> None:
        """Who waits, and who comes to wait, gets :class:`Unavailable`."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def beyond(self, revision: int) -> None:
        """Wait until something after *revision* was committed.

        :raise Unavailable: when the store is closed.
        """
        while not self._closed and self.revision <= revision:
            future = asyncio.get_running_loop().create_future()
            self._waiting.add(future)
            try:
                await future
            finally:
                self._waiting.discard(future)
        if self._closed:
            raise Unavailable("the store is closed")
