"""A line on standard error while a person waits: a bar on a terminal, a line now and then elsewhere. Nothing for what is quick."""

import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType

_SPINNER = "|/-\\"
_QUICK = 1.0
_SELDOM = 10.0


class Progress:
    """Shows *what* is being done, once it has taken a second. Use as a context manager, in the main thread.

    It draws from a timer's signal: a thread would cost every command its import.
    """

    def __init__(self, what: str, *, quiet: bool = False) -> None:
        self._what = what
        self._step = ""
        self._done = 0
        self._total = 0
        self._bytes = False
        self._quiet = quiet
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._begun = time.monotonic()
        self._drawn = False
        self._closed = False
        self._ticks = 0
        self._before: object = None

    def update(self, step: str, done: int = 0, total: int = 0, *, unit: str = "") -> None:
        """Where it stands; *total* 0 is not known."""
        self._step, self._done, self._total, self._bytes = step, done, total, unit in ("bytes", "B")

    def __enter__(self) -> "Progress":
        if not self._quiet:
            self._before = signal.signal(signal.SIGALRM, self._tick)
            if self._terminal:
                signal.setitimer(signal.ITIMER_REAL, _QUICK, 0.1)
            else:
                signal.setitimer(signal.ITIMER_REAL, _SELDOM, _SELDOM)
        return self

    def __exit__(
        self, kind: "type[BaseException] | None", error: "BaseException | None", trace: "TracebackType | None"
    ) -> None:
        self.close()

    def close(self) -> None:
        """No more of it, from now on; again does nothing."""
        if self._closed:
            return
        self._closed = True
        if not self._quiet:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if self._drawn and self._terminal:
            self._write("\r\x1b[K")

    def _tick(self, number: int, frame: "FrameType | None") -> None:
        self._drawn = True
        self._ticks += 1
        if not self._terminal:
            self._write(f"lamella: {self._text()}, {int(time.monotonic() - self._begun)} s so far\n")
            return
        try:
            columns = os.get_terminal_size(2).columns or 80
        except OSError:
            columns = 80
        self._write(f"\r{_SPINNER[self._ticks % 4]} {self._text()}"[: columns - 1] + "\x1b[K")

    def _text(self) -> str:
        text = f"{self._what}: {self._step}" if self._step else self._what
        if not self._total and not self._done:
            return text
        if self._total:
            part = min(1.0, self._done / self._total)
            bar = "#" * int(part * 20)
            text += f" [{bar:<20}] {part:4.0%}"
        if self._bytes:
            from lamella.model.quantity import format_size

            text += f" {format_size(self._done)}" + (f" of {format_size(self._total)}" if self._total else "")
        elif self._total:
            text += f" {self._done} of {self._total}"
        return text

    def _write(self, text: str) -> None:
        # os.write and no buffered writer: a signal may arrive in the middle of one.
        try:
            os.write(2, text.encode("utf-8", "replace"))
        except OSError:
            self._quiet = True
