"""What a handler gives back: an ASGI application that sends bytes which are encoded already, or a stream of them."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from litestar.types import Receive, Scope, Send

from lamella.model.errors import LamellaError
from lamella.model.kinds import AnyResource
from lamella.wire.problem import MEDIA_TYPE, Problem

log = logging.getLogger("lamella.api")

JSON = b"application/json"
_encode = msgspec.json.Encoder().encode

# How long a stream's first item is waited for before the status line goes out: what fails at once is a problem with a
# status of its own, what is silent does not keep the reader waiting for headers.
_GRACE = 0.2


class Answer:
    """A whole answer, its body encoded already."""

    __slots__ = ("body", "headers", "status")

    def __init__(
        self, status: int, body: bytes = b"", *, media_type: bytes = JSON, headers: dict[str, str] | None = None
    ) -> None:
        self.status = status
        self.body = body
        self.headers: list[tuple[bytes, bytes]] = [(b"content-length", b"%d" % len(body))]
        if body:
            self.headers.append((b"content-type", media_type))
        for name, value in (headers or {}).items():
            self.headers.append((name.encode("latin-1"), value.encode("latin-1", "replace")))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


def json(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """*value*, a struct of the model, as JSON."""
    return Answer(status, _encode(value), headers=headers)


def text(value: str, media_type: str) -> Answer:
    """*value* as it is."""
    return Answer(200, value.encode(), media_type=media_type.encode())


def resource(value: AnyResource, *, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """A resource with its revision as ETag."""
    return json(value, status=status, headers={"etag": f'"{value.revision}"', **(headers or {})})


def nothing() -> Answer:
    """Done, and nothing to say about it."""
    return Answer(204)


def problem(value: Problem, *, headers: dict[str, str] | None = None) -> Answer:
    """An error, as RFC 9457 writes it."""
    return Answer(value.status, _encode(value), media_type=MEDIA_TYPE.encode(), headers=headers)


class Stream:
    """Chunks as they come, until they end, the reader goes, or the server stops.

    What *chunks* raises before the first one is raised by :meth:`begin`; later there is no status line left to say it in: *last*
    turns it into a last chunk, and without *last* the connection is cut, so that a reader never takes a part for the whole.
    """

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        media_type: str,
        *,
        heartbeat: tuple[float, bytes] | None = None,
        last: Callable[[LamellaError], bytes] | None = None,
    ) -> None:
        self._chunks = chunks
        self._media_type = media_type
        self._heartbeat = heartbeat
        self._last = last
        self._next: asyncio.Future[bytes | None] | None = None

    async def begin(self, *, grace: float | None = _GRACE) -> "Stream":
        """Ask for the first chunk, and wait at most *grace* seconds for it (``None``: as long as it takes).

        :raise LamellaError: when there will be no stream.
        """
        self._next = asyncio.ensure_future(self._pull())
        try:
            await asyncio.wait({self._next}, timeout=grace)
            if self._next.done():
                self._next.result()
        except BaseException:
            await self._close()
            raise
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", self._media_type.encode()), (b"cache-control", b"no-store")]
        closing: asyncio.Event | None = scope["state"].get("closing")
        gone = asyncio.ensure_future(_disconnected(receive))
        stopped = asyncio.ensure_future(closing.wait()) if closing else None
        ends: set[asyncio.Future[Any]] = {gone, *({stopped} if stopped else ())}
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            if await self._pump(send, ends):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
            await self._close()

    async def _pump(self, send: Send, ends: "set[asyncio.Future[Any]]") -> bool:
        """Whether the stream came to its own end, or said why not."""
        seconds, beat = self._heartbeat or (None, b"")
        while True:
            self._next = self._next or asyncio.ensure_future(self._pull())
            done, _ = await asyncio.wait({self._next, *ends}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if self._next in done:
                pulled, self._next = self._next, None
                try:
                    chunk = pulled.result()
                except LamellaError as error:
                    log.warning("a stream broke off: %s", error)
                    if self._last is None:
                        return False
                    await send({"type": "http.response.body", "body": self._last(error), "more_body": True})
                    return True
                if chunk is None:
                    return True
                if chunk:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            if not done.isdisjoint(ends):
                # A watch has no end of its own, so a stopping server may end it properly; a file has.
                return self._heartbeat is not None
            if not done:
                await send({"type": "http.response.body", "body": beat, "more_body": True})

    async def _pull(self) -> bytes | None:
        try:
            return await anext(self._chunks)
        except StopAsyncIteration:
            return None

    async def _close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
            self._next = None
        close = getattr(self._chunks, "aclose", None)
        if close is not None:
            with contextlib.suppress(LamellaError):
                await close()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
