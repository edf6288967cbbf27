"""The answering side of the wire: an ASGI application that knows verbs, and asks of every caller a certificate of one role.

A call is a POST of msgpack arguments, answered by msgpack. A stream is a WebSocket whose first message are the arguments; an error
on it is a problem in a text message, then a close.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from lamella.model.errors import Internal, Invalid, LamellaError, NotFound, Unavailable
from lamella.wire.identity import require
from lamella.wire.problem import MEDIA_TYPE, problem_of
from lamella.wire.pump import Gone, Receive, Send, encode, guarded, next_message

log = logging.getLogger("lamella.wire")

ArgumentsT = TypeVar("ArgumentsT", bound=msgspec.Struct)

LARGEST_CALL = 64 << 20
_MSGPACK = b"application/msgpack"

# Both are given the caller's name, as its certificate says.
Call = Callable[[str, bytes], Awaitable[Any]]
Stream = Callable[[str, bytes, "Ends"], Awaitable[None]]


class Ends(msgspec.Struct, frozen=True):
    """An accepted WebSocket."""

    receive: Receive
    send: Send
    gone: Gone


def call(type: type[ArgumentsT], answer: Callable[[str, ArgumentsT], Awaitable[Any]]) -> Call:
    """A verb that takes *type* and answers once."""

    async def decoded(caller: str, data: bytes) -> Any:
        return await answer(caller, _arguments(data, type))

    return decoded


def stream(type: type[ArgumentsT], converse: Callable[[ArgumentsT, Ends], Awaitable[None]]) -> Stream:
    """A verb that takes *type* and then talks."""

    async def decoded(_caller: str, data: bytes, ends: Ends) -> None:
        await converse(_arguments(data, type), ends)

    return decoded


class Service:
    """Verbs for callers of one *role*; nobody else gets an answer."""

    def __init__(self, role: str, *, calls: dict[str, Call], streams: dict[str, Stream]) -> None:
        self._role = role
        self._calls = calls
        self._streams = streams

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        verb = scope["path"].removeprefix("/")
        peer = scope["state"]["peer"]
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await guarded(send, self._converse(peer, verb, Ends(receive, send, scope["state"]["gone"])))
            return
        status, media_type, body = 200, _MSGPACK, b""
        try:
            body = encode(await self._answer(peer, verb, receive))
        except LamellaError as error:
            status, media_type, body = error.status, MEDIA_TYPE.encode(), msgspec.json.encode(problem_of(error))
        except Exception:
            log.exception("an unexpected error in the verb %s", verb)
            failure = problem_of(Internal("something went wrong at the other end", hint="look into its log"))
            status, media_type, body = 500, MEDIA_TYPE.encode(), msgspec.json.encode(failure)
        headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _answer(self, peer: Any, verb: str, receive: Receive) -> Any:
        caller = require(peer, self._role)
        if verb not in self._calls:
            raise NotFound(f"there is no verb {verb!r}", hint="both ends should have the same version")
        return await self._calls[verb](caller, await _body(receive))

    async def _converse(self, peer: Any, verb: str, ends: Ends) -> None:
        caller = require(peer, self._role)
        if verb not in self._streams:
            raise NotFound(f"there is no stream {verb!r}", hint="both ends should have the same version")
        data = await next_message(ends.receive)
        if data is not None:
            await self._streams[verb](caller, data, ends)


async def send_items(ends: Ends, items: AsyncIterator[bytes]) -> None:
    """Send every item as a message, then close; stop when the caller goes.

    :raise LamellaError: what *items* raises.
    """

    async def deliver() -> None:
        async for item in items:
            await ends.send({"type": "websocket.send", "bytes": item})
        await ends.send({"type": "websocket.close", "code": 1000, "reason": ""})

    async def gone() -> None:
        while await next_message(ends.receive) is not None:
            pass

    tasks = {asyncio.create_task(deliver()), asyncio.create_task(gone())}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()


async def receive_chunks(receive: Receive) -> AsyncIterator[bytes]:
    """What the caller sends, up to the empty message that ends it.

    :raise Unavailable: when the caller goes before that: a part is never taken for the whole.
    """
    while chunk := await next_message(receive):
        yield chunk
    if chunk is None:
        raise Unavailable("the caller went away while it was sending")


def _arguments(data: bytes, type: type[ArgumentsT]) -> ArgumentsT:
    try:
        return msgspec.msgpack.decode(data, type=type)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Invalid(
            f"the arguments are not understood: {error}", hint="both ends should have the same version"
        ) from error


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Unavailable("the caller went away while it was sending")
        body += message.get("body", b"")
        if len(body) > LARGEST_CALL:
            raise Invalid(f"a call is larger than {LARGEST_CALL} bytes", hint="send less at once")
        if not message.get("more_body", False):
            return bytes(body)
