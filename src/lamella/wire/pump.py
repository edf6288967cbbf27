"""A process's streams over the server's end of a WebSocket: frames as msgpack, one a message, in both directions.

Back-pressure is the transport's own: a client that does not read makes ``send`` wait, a process that does not read makes the
server stop reading the socket.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from lamella.model.errors import Internal, Invalid, LamellaError, Unavailable
from lamella.model.stream import LARGEST_DATA, Exit, ProcessStream, Stdin, ToProcess
from lamella.wire.problem import problem_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Gone = Callable[[], bool]

_LOOK_SECONDS = 0.5

log = logging.getLogger("lamella.wire")

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ToProcess).decode


async def converse(receive: Receive, send: Send, stream: ProcessStream, gone: Gone) -> None:
    """Carry frames both ways until the process ends (close 1000 after ``Exit``), or the client goes; lets go of *stream*.

    *gone* says whether the client hung up, also when nothing is read from it (the listener puts one into a scope's state).

    :raise LamellaError: when the stream breaks off, or the client sends what is no frame.
    """
    up = asyncio.create_task(_up(receive, stream), name="stream-up")
    down = asyncio.create_task(_down(send, stream), name="stream-down")
    watch = asyncio.create_task(_until(gone), name="stream-watch")
    try:
        await asyncio.wait({up, down, watch}, return_when=asyncio.FIRST_COMPLETED)
        # What the process says decides, where both have something to tell.
        for task in (down, up):
            if task.done():
                task.result()
                return
    finally:
        for task in (up, down, watch):
            task.cancel()
        await asyncio.gather(up, down, watch, return_exceptions=True)
        await stream.close()


async def _until(gone: Gone) -> None:
    # While a process does not read, nothing is read from its client either: no event would tell that it went.
    while not gone():  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_SECONDS)


async def _up(receive: Receive, stream: ProcessStream) -> None:
    """Until the client goes."""
    open_ended = True
    while (data := await next_message(receive)) is not None:
        try:
            frame = _decode(data)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise Invalid(
                f"a message is not a frame: {error}", hint="send stdin, eof, resize or signal, as msgpack"
            ) from error
        if isinstance(frame, Stdin) and len(frame.data) > LARGEST_DATA:
            raise Invalid(f"a frame carries {len(frame.data)} bytes", hint=f"send at most {LARGEST_DATA} at once")
        if open_ended:
            # Whoever does not read its input any more may still have something to say: wait for its Exit.
            with contextlib.suppress(Unavailable):
                await stream.send(frame)
                continue
            open_ended = False


async def _down(send: Send, stream: ProcessStream) -> None:
    """Until the process has ended."""
    ended = False
    while (frame := await stream.receive()) is not None:
        await send({"type": "websocket.send", "bytes": encode(frame)})
        ended = ended or isinstance(frame, Exit)
    if not ended:
        raise Unavailable("the process went away without telling its end", hint="look at the instance's conditions")
    await send({"type": "websocket.close", "code": 1000, "reason": ""})


async def next_message(receive: Receive) -> bytes | None:
    """The next binary message; ``None`` when the client went.

    :raise Invalid: when it is text.
    """
    message = await receive()
    if message["type"] == "websocket.disconnect":
        return None
    data = message.get("bytes")
    if data is None:
        raise Invalid("a message is text", hint="send binary messages, as msgpack")
    return data


async def guarded(send: Send, work: Awaitable[None]) -> None:
    """Run *work* on an accepted WebSocket: an error goes out as a problem in a text message, then close 4000 + (status - 400)."""
    try:
        await work
        return
    except LamellaError as error:
        failure = error
    except OSError:
        # The client went while something was sent to it.
        return
    except Exception:
        log.exception("an unexpected error on a stream")
        failure = Internal("something went wrong inside the layer", hint="look into the daemon's log")
    with contextlib.suppress(OSError, RuntimeError):
        await send({"type": "websocket.send", "text": msgspec.json.encode(problem_of(failure)).decode()})
        await send({"type": "websocket.close", "code": close_code(failure), "reason": failure.code})


def close_code(error: LamellaError) -> int:
    """Which close code says the error's HTTP status: 4004 is 404, 4103 is 503."""
    return 4000 + error.status - 400
