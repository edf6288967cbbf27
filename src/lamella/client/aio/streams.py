"""An interactive process: frames both ways."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from types import TracebackType

from lamella.client import calls
from lamella.client.aio.wire import Channel
from lamella.client.result import Collector, Result
from lamella.model.errors import Unavailable
from lamella.model.stream import LARGEST_DATA, Exit, FromProcess, Stderr, Stdin, StdinEnd, Stdout, ToProcess


class Stream:
    """One process's standard streams; a :class:`lamella.model.stream.ProcessStream`. Iterate to read until its end."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.exit: Exit | None = None

    @property
    def exit_code(self) -> int | None:
        """The exit code, when its frame has been read."""
        return self.exit.code if self.exit else None

    async def send(self, frame: ToProcess) -> None:
        """Hand *frame* over; waits while the process does not read.

        :raise Unavailable: when the other end is gone.
        """
        await self._channel.send(calls.pack_frame(frame))

    async def write(self, data: bytes) -> None:
        """Send *data* to standard input, in frames of at most ``LARGEST_DATA``."""
        for start in range(0, len(data), LARGEST_DATA):
            await self.send(Stdin(data[start : start + LARGEST_DATA]))

    async def receive(self) -> FromProcess | None:
        """The next frame; ``None`` after :class:`~lamella.model.stream.Exit`, or when the other end went without one.

        :raise LamellaError: what the daemon said was wrong.
        """
        if self.exit is not None:
            return None
        data = await self._channel.receive()
        if data is None:
            return None
        frame = calls.read_frame(data)
        if isinstance(frame, Exit):
            self.exit = frame
        return frame

    async def close(self) -> None:
        """Let go. An exec'd process is killed, an instance's own process lives on. Safe to call twice."""
        await self._channel.close()

    async def __aiter__(self) -> AsyncIterator[FromProcess]:
        while (frame := await self.receive()) is not None:
            yield frame

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def communicate(stream: Stream, command: Sequence[str], data: bytes | None) -> Result:
    """Feed *data* to the process and gather what it prints, until it ends.

    :raise Unavailable: when the stream ends without an exit code.
    """
    found = Collector(list(command))

    async def feed() -> None:
        # A process that reads no more input may still have something to say.
        with suppress(Unavailable):
            await stream.write(data or b"")
            await stream.send(StdinEnd())

    feeder = asyncio.create_task(feed()) if data is not None else None
    try:
        async for frame in stream:
            match frame:
                case Stdout(piece):
                    found.stdout += piece
                case Stderr(piece):
                    found.stderr += piece
                case Exit(code, reason):
                    return found.result(code, reason)
    finally:
        if feeder is not None:
            feeder.cancel()
            await asyncio.gather(feeder, return_exceptions=True)
    raise Unavailable(
        f"the stream of {command[0]} ended without an exit code", hint="the daemon may have gone; ask again"
    )
