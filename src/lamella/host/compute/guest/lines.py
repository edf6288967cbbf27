"""Lines of text to a guest and back over its port, bounded: one question at a time, and the line that answers it."""

import asyncio
from collections.abc import Callable

from lamella.model.errors import Corrupt, LamellaError, Unavailable

LARGEST_LINE = 1 << 20

_CHUNK = 64 << 10
_LARGEST_STALE = 4 << 20
_LEAST_STALE = 64  # what a short line costs: it is looked at, too
_DELIMITER = b"\xff"
_HINT = "what answers in it is broken or hostile"


class LineChannel:
    """Reads until the other end goes, :meth:`end` is called, or the guest breaks the rules. Made inside a running event loop.

    What nobody asked for is thrown away, up to 4 MiB between two questions; more than that, or a line longer than its question
    allows, ends it with :class:`Corrupt`.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.closed = asyncio.Event()
        self.failure: LamellaError | None = None
        self._reader = reader
        self._writer = writer
        self._waiting: asyncio.Future[bytes] | None = None
        self._accepts: Callable[[bytes], bool] = _anything
        self._largest = LARGEST_LINE
        self._stale = 0
        self._task = asyncio.create_task(self._run(), name="guest lines")

    async def ask(
        self, question: bytes, *, accepts: Callable[[bytes], bool] | None = None, largest: int = LARGEST_LINE
    ) -> bytes:
        """Send *question* and return the first line after it that it *accepts* (the first of all when left out), at most *largest* bytes.

        A line counts from the last 0xFF byte in it. Not more than one caller at a time.

        :raise Unavailable, Corrupt: when the channel ended instead.
        """
        if self.failure is not None:
            raise self.failure
        waiting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting, self._accepts, self._largest, self._stale = waiting, accepts or _anything, largest, 0
        try:
            self._writer.write(question)
            await self._writer.drain()
            return await waiting
        except OSError as error:
            self.end(Unavailable(f"the guest's port failed: {error}", hint="the guest may have ended"))
            raise self.failure or error from error
        finally:
            self._waiting, self._largest = None, LARGEST_LINE
            if waiting.done() and not waiting.cancelled():
                waiting.exception()  # whoever waited may have been cancelled; then nobody asks for it

    def end(self, error: LamellaError) -> None:
        """Close it; whoever asks, now or later, gets *error*. The first error stays."""
        if self.failure is None:
            self.failure = error
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(self.failure)
        self.closed.set()
        self._writer.close()

    async def close(self, error: LamellaError) -> None:
        """The same, and return when nothing of it is left. What the guest does not read is dropped."""
        self.end(error)
        if self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.wait([self._task])
        self._writer.transport.abort()

    async def _run(self) -> None:
        held = bytearray()
        try:
            while True:
                data = await self._reader.read(_CHUNK)
                if not data:
                    raise Unavailable("the guest's port was closed by the other end", hint="the guest may have ended")
                looked_at = len(held)
                held += data
                self._take(held, looked_at)
        except LamellaError as error:
            self.end(error)
        except OSError as error:
            self.end(Unavailable(f"the guest's port failed: {error}", hint="the guest may have ended"))

    def _take(self, held: bytearray, start: int) -> None:
        begin = 0
        while (end := held.find(b"\n", start)) >= 0:
            line = bytes(held[begin:end]).rpartition(_DELIMITER)[2].strip()
            if self._waiting is not None and not self._waiting.done() and line and self._accepts(line):
                self._waiting.set_result(line)
            else:
                self._stale += max(_LEAST_STALE, end + 1 - begin)
                if self._stale > _LARGEST_STALE:
                    raise Corrupt("the guest's port gives what nobody asked for", hint=_HINT)
            begin = start = end + 1
        del held[:begin]
        if len(held) > self._largest:
            raise Corrupt("the guest's port gives a longer line than an answer can be", hint=_HINT)


def _anything(_: bytes) -> bool:
    return True
