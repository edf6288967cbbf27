"""How far a long step is, told from any thread to somebody on the loop, at most ten times a second."""

import asyncio
import time

from lamella.host.images.library import Progress, Report

_PERIOD = 0.1


class Meter:
    """Counts bytes of one step. ``add`` may be called in any thread; the report comes on the loop that the meter was made on.

    A step that runs *after* another keeps silent until that one is full: a person reads one thing at a time.
    """

    def __init__(self, report: Report, step: str, total: int = 0, *, after: "Meter | None" = None) -> None:
        self._report = report
        self._step = step
        self._total = total
        self._after = after
        self._done = 0
        self._told = 0.0
        self._loop = asyncio.get_running_loop()
        self._tell()

    @property
    def full(self) -> bool:
        return self._done >= self._total

    def add(self, size: int) -> None:
        self._done += size
        now = time.monotonic()
        if now - self._told >= _PERIOD or self.full:
            self._told = now
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        if self._after is None or self._after.full:
            done = min(self._done, self._total) if self._total else self._done
            self._report(Progress(step=self._step, done=max(done, 0), total=self._total))
