"""An interactive process: frames both ways."""

import select
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType

from lamella.client import calls
from lamella.client.blocking.channel import Channel
from lamella.client.result import Collector, Result
from lamella.model.errors import Unavailable
from lamella.model.stream import LARGEST_DATA, Exit, FromProcess, Stderr, Stdin, StdinEnd, Stdout, ToProcess


class Stream:
    """One process's standard streams. Iterate to read until its end. Not more than one thread sends and one receives."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.exit: Exit | None = None

    @property
    def exit_code(self) -> int | None:
        """The exit code, when its frame has been read."""
        return self.exit.code if self.exit else None

    def send(self, frame: ToProcess) -> None:
        """Hand *frame* over; waits while the process does not read.

        :raise Unavailable: when the other end is gone.
        """
        self.channel.send(calls.pack_frame(frame))

    def write(self, data: bytes) -> None:
        """Send *data* to standard input, in frames of at most ``LARGEST_DATA``."""
        for start in range(0, len(data), LARGEST_DATA):
            self.send(Stdin(data[start : start + LARGEST_DATA]))

    def receive(self) -> FromProcess | None:
        """The next frame; ``None`` after :class:`~lamella.model.stream.Exit`, or when the other end went without one.

        :raise LamellaError: what the daemon said was wrong.
        """
        if self.exit is not None:
            return None
        data = self.channel.receive()
        if data is None:
            return None
        frame = calls.read_frame(data)
        if isinstance(frame, Exit):
            self.exit = frame
        return frame

    def close(self) -> None:
        """Let go. An exec'd process is killed, an instance's own process lives on. Safe to call twice."""
        self.channel.close()

    def __iter__(self) -> Iterator[FromProcess]:
        while (frame := self.receive()) is not None:
            yield frame

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def communicate(stream: Stream, command: Sequence[str], data: bytes | None) -> Result:
    """Feed *data* to the process and gather what it prints, until it ends.

    :raise Unavailable: when the stream ends without an exit code.
    """
    found = Collector(list(command))
    feeding = _pieces(data) if data is not None else iter(())
    channel = stream.channel
    socket = channel.poll_with()
    poll = select.poll()
    fed = False
    while True:
        while channel.pending:
            frame = stream.receive()
            match frame:
                case Stdout(piece):
                    found.stdout += piece
                case Stderr(piece):
                    found.stderr += piece
                case Exit(code, reason):
                    return found.result(code, reason)
                case None:
                    raise Unavailable(
                        f"the stream of {command[0]} ended without an exit code",
                        hint="the daemon may have gone; ask again",
                    )
        # One frame under way at a time: both ends may be waiting for the other to read.
        with suppress(Unavailable):
            while not fed and not channel.unsent:
                piece = next(feeding, None)
                fed = piece is None
                if piece is not None:
                    channel.offer(piece)
        poll.register(socket, select.POLLIN | (select.POLLOUT if channel.unsent else 0))
        for _, events in poll.poll():
            if events & select.POLLOUT:
                channel.flush()
            if events & ~select.POLLOUT:
                channel.advance()


def _pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), LARGEST_DATA):
        yield calls.pack_frame(Stdin(data[start : start + LARGEST_DATA]))
    yield calls.pack_frame(StdinEnd())
