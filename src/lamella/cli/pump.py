"""Between this terminal and a process elsewhere: bytes both ways, the window's size, signals, and in the end an exit code."""

import os
import select
import signal
import sys

from lamella.client.msgpack import pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

    from lamella.cli.progress import Progress
    from lamella.client.blocking.channel import Channel

_PIECE = 32 << 10
_QUEUE = 256 << 10  # what may wait to be sent before the keyboard has to
_LOOK = 0.25  # seconds between two looks whether a command that says nothing has begun
_ENOUGH = 3  # interrupts after which a person wants out, whatever the process makes of them
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def window() -> "tuple[int, int] | None":
    """Rows and columns of this terminal; ``None`` without one."""
    for descriptor in (1, 0, 2):
        try:
            size = os.get_terminal_size(descriptor)
        except OSError:
            continue
        if size.lines > 0 and size.columns > 0:
            return size.lines, size.columns
    return None


class Keyboard:
    """Standard input as the other end's terminal wants it: every key at once, nothing interpreted here."""

    def __init__(self, raw: bool) -> None:
        self._raw = raw

    def __enter__(self) -> "Keyboard":
        if self._raw:
            import termios
            import tty

            self._before = termios.tcgetattr(0)
            tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead is kept
        return self

    def __exit__(
        self, kind: "type[BaseException] | None", error: "BaseException | None", trace: "TracebackType | None"
    ) -> None:
        if self._raw:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, self._before)


class Pump:
    """Carries one process's streams over *channel* until it ends.

    With *terminal* the window's size is followed and an interrupt is a key like any other; without, signals that come
    to us are sent on. The third interrupt lets go. With *leave*, a key, this is a visit: that key ends it (exit code 0), and signals
    that come to us are ours.
    """

    def __init__(self, channel: "Channel", *, terminal: bool, stdin: bool, leave: bytes = b"") -> None:
        self._channel = channel
        self._terminal = terminal
        self._stdin = stdin
        self._leave = leave
        self._left = False
        self._signals: list[int] = []
        self._interrupts = 0
        self._progress: Progress | None = None
        self._complained = False
        self._starting: Callable[[], bool] = lambda: False

    def run(self, progress: "Progress | None" = None, starting: "Callable[[], bool] | None" = None) -> int:
        """The process's exit code. *progress* is shown until something comes, or *starting* says that it has begun.

        :raise Unavailable: when the connection breaks before there is one.
        :raise KeyboardInterrupt: at the third interrupt.
        :raise BrokenPipeError: when nobody reads our output.
        """
        self._progress, self._starting = progress, starting or self._starting
        wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = {number: signal.signal(number, self._caught) for number in self._wanted()}
        previous = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        try:
            with Keyboard(self._terminal and self._stdin):
                if self._terminal:
                    self._resize()
                return self._loop(wake)
        finally:
            signal.set_wakeup_fd(previous)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(wake)
            os.close(waker)

    def _wanted(self) -> "tuple[int, ...]":
        if self._leave:
            return (signal.SIGWINCH, signal.SIGTERM, signal.SIGHUP) if self._terminal else ()
        return (
            (signal.SIGWINCH, signal.SIGTERM, signal.SIGHUP)
            if self._terminal and self._stdin
            else ((*_FORWARDED, signal.SIGWINCH) if self._terminal else _FORWARDED)
        )

    def _caught(self, number: int, frame: "FrameType | None") -> None:
        self._signals.append(number)

    def _loop(self, wake: int) -> int:
        channel = self._channel
        socket = channel.poll_with()
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        while True:
            code = self._arrived()
            if code is not None:
                return code
            poll.register(socket, select.POLLIN | (select.POLLOUT if channel.unsent else 0))
            if self._stdin and channel.unsent < _QUEUE:
                poll.register(0, select.POLLIN)
            ready = dict(poll.poll(None if self._progress is None else _LOOK * 1000))
            if self._stdin and channel.unsent < _QUEUE:
                poll.unregister(0)
            if not ready and not self._starting():
                self._begun()
            if wake in ready:
                self._drain(wake)
            if ready.get(socket, 0) & select.POLLOUT:
                channel.flush()
            if ready.get(socket, 0) & ~select.POLLOUT:
                channel.advance()
            elif 0 in ready:
                self._type()
            if self._left and not channel.unsent:
                return 0

    def _arrived(self) -> "int | None":
        """Hand out what has come; the exit code, when that was it."""
        channel = self._channel
        while channel.pending:
            data = channel.receive()
            if data is None:
                raise self._lost()
            self._begun()
            kind, *values = frame_of(data)
            if kind == "stdout" and isinstance(values[0], bytes):
                _write(1, values[0])
            elif kind == "stderr" and isinstance(values[0], bytes):
                self._complained = True
                _write(2, values[0])
            elif kind == "exit" and isinstance(values[0], int):
                # A container's runtime says itself why a command is not there; it is not said twice.
                said = values[0] in (126, 127) and self._complained
                if len(values) > 1 and values[1] and not said:
                    sys.stderr.write(f"lamella: {values[1]}\n")
                return values[0]
        return None

    def _begun(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def _lost(self) -> Exception:
        from lamella.model.errors import Unavailable

        code, reason = self._channel.closing
        return Unavailable(
            f"the daemon closed the stream before the command ended{f': {reason}' if reason else ''} ({code})",
            hint="the instance may run on: `lamella ps -a` and `lamella logs` show it",
        )

    def _type(self) -> None:
        try:
            data = os.read(0, _PIECE)
        except OSError:
            data = b""  # a terminal that has gone (EIO), or a closed descriptor
        if self._leave and self._terminal and self._leave in data:
            data, _, _ = data.partition(self._leave)
            self._left, self._stdin = True, False
            if data:
                self._channel.offer(pack(("stdin", data)))
        elif data:
            self._channel.offer(pack(("stdin", data)))
        else:
            self._stdin = False
            self._channel.offer(pack(("eof",)))

    def _drain(self, wake: int) -> None:
        os.read(wake, 4096)
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGWINCH:
                self._resize()
                continue
            if self._leave:
                raise SystemExit(128 + number)
            self._interrupts += number == signal.SIGINT
            if self._interrupts >= _ENOUGH:
                raise KeyboardInterrupt
            self._channel.offer(pack(("signal", int(number))))

    def _resize(self) -> None:
        size = window()
        if size is not None:
            self._channel.offer(pack(("resize", *size)))


def frame_of(data: bytes) -> "list[object]":
    """The frame in a message: its kind and at least one value; ``unknown`` for what is none of ours."""
    value = unpack(data)
    if isinstance(value, list):
        parts: list[object] = value  # pyright: ignore[reportUnknownVariableType]
        if len(parts) >= 2:
            return parts
    return ["unknown", None]


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
