"""The table of what control may ask: from the type of a request to what answers it, with progress on the way.

Each kind of work registers its own: ``requests.serve(TakeSnapshot, take)``, where ``take(request, tell)`` returns the result that the
request names, or raises what a person should read. Work goes on when nobody listens any more: control asks again, and finds it done.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from lamella.model.errors import Internal, LamellaError, Unavailable, Unsupported
from lamella.model.storage_requests import AnyStorageRequest, StorageProgress, StorageRequest

log = logging.getLogger("lamella.host.storage")

# Tells how far it is: the step's name, how much is done, of how much, in what unit (``bytes``, ``volumes``).
Tell = Callable[[str, int, int, str], None]

RequestT = TypeVar("RequestT", bound=StorageRequest)
Handler = Callable[[RequestT, Tell], Coroutine[Any, Any, object]]
# Awaits the work of a request, or says why nobody should wait for it any longer.
Bound = Callable[[AnyStorageRequest, Coroutine[Any, Any, object]], Awaitable[object]]


class Requests:
    """What this host answers. One handler a type; the newest that was registered."""

    def __init__(self) -> None:
        self._handlers: dict[type[StorageRequest], Handler[Any]] = {}
        self._running: set[asyncio.Task[object]] = set()
        self._guards: list[Callable[[AnyStorageRequest], None]] = []
        self._bound: Bound | None = None

    def serve(self, kind: type[RequestT], handler: Handler[RequestT]) -> None:
        self._handlers[kind] = handler

    def guard(self, refuse: Callable[[AnyStorageRequest], None]) -> None:
        """Ask *refuse* before every request: what it raises is the answer."""
        self._guards.append(refuse)

    def bind(self, bound: Bound) -> None:
        """Have all work done by *bound*."""
        self._bound = bound

    async def answer(self, request: AnyStorageRequest) -> AsyncIterator[StorageProgress]:
        """Lines of progress, the newest only when they come faster than they are read, and last the result or the error.

        :raise Unavailable: when storage ends before: what becomes of it is answered to whoever asks again.
        """
        news = asyncio.Event()
        line: list[StorageProgress] = []

        def tell(step: str, done: int = 0, total: int = 0, unit: str = "") -> None:
            line[:] = [StorageProgress(step=step, done=done, total=total, unit=unit)]
            news.set()

        task = asyncio.create_task(self._work(request, tell), name=type(request).__name__)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: news.set())
        while not task.done():
            await news.wait()
            news.clear()
            while line:
                yield line.pop()
        if task.cancelled():
            raise Unavailable("the host's storage is ending", hint="ask again in a moment")
        elif (error := task.exception()) is not None:
            yield failed(error)
        else:
            yield encoded(task.result())

    async def _work(self, request: AnyStorageRequest, tell: Tell) -> object:
        handler = self._handlers.get(type(request))
        if handler is None:
            raise Unsupported(f"this host answers no {type(request).__name__}")
        for refuse in self._guards:
            refuse(request)
        work = handler(request, tell)
        return await (work if self._bound is None else self._bound(request, work))

    async def close(self) -> None:
        """What is being done is let go of, as by a crash: whoever asks again has it finished."""
        for task in tuple(self._running):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


def encoded(result: object) -> StorageProgress:
    """The last line of a request that went well."""
    return StorageProgress(result=msgspec.Raw(msgspec.json.encode(result)))


def failed(error: BaseException) -> StorageProgress:
    """The last line of one that did not."""
    if not isinstance(error, LamellaError):
        log.error("a storage request", exc_info=error)
        error = Internal(f"storage failed: {type(error).__name__}", hint="the host's log has more")
    return StorageProgress(error_code=error.code, error=error.message, hint=error.hint)
