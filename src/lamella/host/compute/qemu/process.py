"""One QEMU that runs, as this daemon sees it: its process, its monitor, its log, and what is written down of its end.

Made when a machine starts, and made again by whichever daemon finds it running. Nothing in it is needed by QEMU.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from lamella.host.compute.driver import Limits
from lamella.host.compute.qemu import launch
from lamella.host.compute.qemu.launch import CONSOLE
from lamella.host.compute.qemu.log import Log
from lamella.host.compute.qemu.monitor import Monitor
from lamella.host.compute.qemu.places import ExitRecord, Places, ProcessRecord, boot_id
from lamella.host.linux.cgroup import Cgroup
from lamella.host.linux.processes import readable
from lamella.model.errors import LamellaError, Unavailable

logger = logging.getLogger(__name__)

_HOPELESS = ("internal-error", "guest-panicked", "shutdown")
KILLED = 128 + signal.SIGKILL


class QemuProcess:
    """Begun by :meth:`open`; ends by itself when QEMU does (``gone`` is set, *ended* called).

    :meth:`close` lets go of it earlier and leaves QEMU alone. A level fills in :meth:`_talk` (what is kept up while it runs)
    and :meth:`_part` (what is let go of when it has ended).
    """

    def __init__(
        self, places: Places, process: ProcessRecord, group: Cgroup, log: Log, ended: Callable[[], None]
    ) -> None:
        self.places = places
        self.process = process
        self.group = group
        self.log = log
        self.paused = False
        # While its memory is copied it stands still for moments that are nobody's wish.
        self.copying = False
        self.waking = asyncio.Lock()
        self.gone = asyncio.Event()
        self._ended = ended
        self._pidfd = -1
        self._errors = -1
        self._console = -1
        self._monitor: Monitor | None = None
        self._meeting = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._words = ""
        self._runs = asyncio.Event()
        self._ready = asyncio.Event()
        self._life: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Take hold of the process and begin to listen to it.

        :raise Unavailable: when it is gone.
        """
        pid = self.process.pid
        try:
            self._pidfd = os.pidfd_open(pid)
            if not self.process.alive():
                raise ProcessLookupError(pid)
            self._errors = os.open(f"/proc/{pid}/fd/2", os.O_RDONLY | os.O_CLOEXEC)
            self._console = os.open(f"/proc/{pid}/fd/{CONSOLE}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._close_files()
            raise Unavailable(f"the QEMU of {self.places.id} is gone") from error
        if self.process.ready:
            self._ready.set()
        await asyncio.to_thread(self.log.open)
        self.log.go_on()
        self._life = asyncio.create_task(self._live(), name=f"{self.places.level} {self.places.id}")

    async def close(self) -> None:
        """Let go of it. It goes on, and nothing is written down meanwhile."""
        if self._life is not None:
            self._life.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._life
        self._close_files()

    # --- what a driver asks

    async def monitor(self) -> Monitor:
        """:raise Unavailable: when QEMU does not answer."""
        async with self._meeting:
            if self._monitor is None:
                self._monitor = await Monitor.connect(self.places.run / "monitor")
                await self._read_status(self._monitor)
            return self._monitor

    async def look(self) -> None:
        """Ask QEMU whether the guest runs. A disk that is full pauses it; what QEMU cannot go on with is ended."""
        with contextlib.suppress(LamellaError):
            await self._read_status(await self.monitor())

    async def pause(self) -> None:
        await (await self.monitor()).stop()
        self.paused = True
        self._runs.clear()

    async def resume(self) -> None:
        await (await self.monitor()).proceed()
        self.paused = False
        self._runs.set()

    async def write(
        self,
        *,
        ready: bool | None = None,
        started_at: datetime | None = None,
        limits: Limits | None = None,
        asleep: bool | None = None,
        rests: bool | None = None,
        suspended: bool | None = None,
    ) -> None:
        """Note something new about the run, durably."""
        async with self._writing:
            known = self.process
            self.process = msgspec.structs.replace(
                known,
                ready=known.ready if ready is None else ready,
                started_at=started_at or known.started_at,
                limits=limits or known.limits,
                asleep=known.asleep if asleep is None else asleep,
                rests=known.rests if rests is None else rests,
                suspended=known.suspended if suspended is None else suspended,
            )
            await asyncio.to_thread(self.places.write, self.process)

    def kill(self) -> None:
        """End QEMU at once."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def last_words(self) -> str:
        """The end of what QEMU and the guest's kernel wrote."""
        words = [launch.tail(fd) for fd in (self._errors, self._console) if fd >= 0]
        return "; ".join(text for text in words if text) or self._words

    # --- what a level fills in

    async def _talk(self) -> None:
        """Runs as long as QEMU does."""
        await self.gone.wait()

    async def _part(self) -> None:
        """QEMU has ended or is let go of."""

    def _end_record(self) -> ExitRecord:
        """What is written down when QEMU ended and nothing else told how the run did."""
        return died(self.process, self.group, self._words)

    async def _read_status(self, monitor: Monitor) -> None:
        status = await monitor.status()
        if status in _HOPELESS:
            logger.warning("%s: QEMU says %s", self.places.id, status)
            self.kill()
        if self.copying:
            return
        self.paused = status != "running"
        if not self.paused:
            self._runs.set()

    # --- its life

    async def _live(self) -> None:
        talk = asyncio.create_task(self._talk(), name=f"guest of {self.places.id}")
        try:
            await readable(self._pidfd)
        finally:
            await end_task(talk)
            await self._part()
            if self._monitor is not None:
                await self._monitor.close()
        await asyncio.to_thread(self._finish)
        self._close_files()
        self.log.close()
        self.gone.set()
        self._ended()

    def _finish(self) -> None:
        """The process is gone: how the run ended must be written down before anything of it is removed."""
        self._words = self.last_words()
        if self.places.exit() is None and self.process.started_at is not None and not self.process.suspended:
            self.places.write(self._end_record())
        try:
            self.group.remove()
        except LamellaError as error:
            logger.warning("%s: %s", self.places.id, error)
        self.places.remove_run()

    def _raise_if_gone(self) -> None:
        if self.gone.is_set() or self._life is None or self._life.done():
            raise Unavailable(f"the QEMU of {self.places.id} has ended", hint=self.last_words())

    async def _either(self, event: asyncio.Event) -> None:
        """Wait for *event* or for the end."""
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self.gone.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _close_files(self) -> None:
        for fd in (self._pidfd, self._errors, self._console):
            if fd >= 0:
                os.close(fd)
        self._pidfd = self._errors = self._console = -1


async def end_process(pid: int) -> None:
    """Kill a QEMU that nobody follows, and wait until it has let go of everything."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            await readable(pidfd)
        finally:
            os.close(pidfd)


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel *task* until it has ended: what it waits for may be closing something, and take the first time for its own."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.2)


def died(process: ProcessRecord, group: Cgroup | None, words: str) -> ExitRecord:
    """What is written down when QEMU ended and the guest never said how its command did."""
    reason = "QEMU ended without its command's exit code"
    if process.boot != boot_id():
        reason = "the host was restarted"
    elif group is not None and group.oom_kills():
        reason = "the kernel killed QEMU: it used more memory than its group may"
    if words:
        reason += f" ({words})"
    return ExitRecord(exit_code=KILLED, started_at=process.started_at, finished_at=datetime.now(UTC), reason=reason)
