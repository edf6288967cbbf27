"""One QEMU that runs, as this daemon sees it: its process, its monitor, its guest, its log, and what is written down of its end.

A session is made when a microVM starts, and made again by whichever daemon finds it running. Nothing in it is needed by QEMU.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Limits
from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.guest.setup import GuestSetup, GuestState
from lamella.host.compute.microvm import launch
from lamella.host.compute.microvm.arguments import CONSOLE
from lamella.host.compute.microvm.log import Log
from lamella.host.compute.microvm.monitor import Monitor
from lamella.host.compute.microvm.places import ExitRecord, Places, ProcessRecord, boot_id
from lamella.host.linux.cgroup import Cgroup
from lamella.host.linux.processes import readable
from lamella.model.errors import LamellaError, Unavailable

logger = logging.getLogger(__name__)

BOOT_DEADLINE = 90.0
POWER_OFF_DEADLINE = 10.0
AGAIN_DEADLINE = 6.0
LOG_INTERVAL = 0.5
_HOPELESS = ("internal-error", "guest-panicked", "shutdown")
KILLED = 128 + signal.SIGKILL


class Session:
    """Begun by :meth:`open`; ends by itself when QEMU does (``gone`` is set, *ended* called).

    :meth:`close` lets go of it earlier and leaves QEMU alone.
    """

    def __init__(
        self, places: Places, process: ProcessRecord, group: Cgroup, log: Log, ended: Callable[[], None]
    ) -> None:
        self.places = places
        self.process = process
        self.group = group
        self.log = log
        self.paused = False
        self.gone = asyncio.Event()
        self.guest_state: GuestState | None = None
        self._ended = ended
        self._pidfd = -1
        self._errors = -1
        self._console = -1
        self._monitor: Monitor | None = None
        self._guest: GuestClient | None = None
        self._meeting = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._words = ""
        self._met = asyncio.Event()
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
        self._life = asyncio.create_task(self._live(), name=f"microvm {self.places.id}")

    async def close(self) -> None:
        """Let go of it. It goes on, and writes down nothing meanwhile; its guest keeps what it has to say."""
        if self._life is not None:
            self._life.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._life
        self._close_files()

    # --- what the driver asks

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

    async def guest(self, timeout: float = 25.0) -> GuestClient:
        """The guest's agent, when it answers.

        :raise Unavailable: when it does not within *timeout* seconds, or QEMU ended.
        """
        try:
            async with asyncio.timeout(timeout):
                while self._guest is None or self._guest.closed.is_set():
                    self._raise_if_gone()
                    await self._either(self._met)
        except TimeoutError:
            raise Unavailable(
                f"the agent of {self.places.id} did not answer within {timeout:g} s", hint=self.last_words()
            ) from None
        return self._guest

    async def configure(self, setup: Callable[[], GuestSetup]) -> None:
        """Wait for the guest to boot and make it the instance; *setup* is called when it has, since it tells the time.

        :raise Unavailable: when it does not boot; the hint shows its console's end.
        """
        guest = await self.guest(BOOT_DEADLINE)
        await guest.configure(setup())
        await self.write(ready=True)
        self._ready.set()

    async def pause(self) -> None:
        await (await self.monitor()).stop()
        self.paused = True
        self._runs.clear()

    async def resume(self) -> None:
        await (await self.monitor()).proceed()
        self.paused = False
        self._runs.set()

    async def known_state(self, timeout: float) -> GuestState | None:
        """What the guest last said of its command, asked anew when it is there; ``None`` when it has never answered."""
        if self.paused or self.gone.is_set():
            return self.guest_state
        with contextlib.suppress(LamellaError, TimeoutError):
            async with asyncio.timeout(timeout):
                self.guest_state = await (await self.guest(timeout)).state()
        return self.guest_state

    async def write(
        self, *, ready: bool | None = None, started_at: datetime | None = None, limits: Limits | None = None
    ) -> None:
        """Note something new about the run, durably."""
        async with self._writing:
            known = self.process
            self.process = msgspec.structs.replace(
                known,
                ready=known.ready if ready is None else ready,
                started_at=started_at or known.started_at,
                limits=limits or known.limits,
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

    async def _read_status(self, monitor: Monitor) -> None:
        status = await monitor.status()
        if status in _HOPELESS:
            logger.warning("%s: QEMU says %s", self.places.id, status)
            self.kill()
        self.paused = status != "running"
        if not self.paused:
            self._runs.set()

    # --- its life

    async def _live(self) -> None:
        talk = asyncio.create_task(self._talk(), name=f"guest of {self.places.id}")
        try:
            await readable(self._pidfd)
        finally:
            await _end(talk)
            if self._guest is not None:
                await self._guest.close()
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
        if self.places.exit() is None and self.process.started_at is not None:
            self.places.write(died(self.process, self.group, self._words))
        try:
            self.group.remove()
        except LamellaError as error:
            logger.warning("%s: %s", self.places.id, error)
        self.places.remove_run()

    async def _talk(self) -> None:
        """Keep a conversation with the guest while it runs; one that it breaks off or spoils is begun again, slowly."""
        while True:
            try:
                await self.monitor()
                await self._runs.wait()
                await self._converse()
            except LamellaError as error:
                logger.debug("%s: %s", self.places.id, error)
            except ExceptionGroup as group:
                logger.debug("%s: %s", self.places.id, group.exceptions)
            await asyncio.sleep(0.5)

    async def _converse(self) -> None:
        directory = os.open(self.places.run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            path = Path(f"/proc/self/fd/{directory}/agent")
            # A guest that has been met before answers at once, or a fresh connection is what it needs.
            timeout = AGAIN_DEADLINE if self.process.ready else BOOT_DEADLINE
            guest = await GuestClient.connect(path, timeout=timeout)
        finally:
            os.close(directory)
        try:
            self.guest_state = await guest.state()
            self._guest = guest
            self._met.set()
            await self._ready.wait()
            if self.guest_state.started_at is not None and self.process.started_at is None:
                await self.write(started_at=self.guest_state.started_at)
            async with asyncio.TaskGroup() as tasks:
                copying = tasks.create_task(self._copy_log(guest))
                state = await guest.wait_exit()
                await copying
            await self._exited(guest, state)
        finally:
            self._guest = None
            self._met.clear()
            await guest.close()

    async def _copy_log(self, guest: GuestClient) -> None:
        """Take over what the guest wrote; it may forget what is safe here."""
        done = asyncio.Event()

        async def acknowledge() -> None:
            known = self.log.end
            while not done.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOG_INTERVAL):
                        await done.wait()
                if self.log.end != known:
                    known = await self.log.sync()
                    await guest.acknowledge_logs(known)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(acknowledge())
            async for offset, entry in guest.logs(self.log.end):
                self.log.append(offset, entry)
            done.set()

    async def _exited(self, guest: GuestClient, state: GuestState) -> None:
        """The command has ended: first it is safe here, then the guest may go."""
        self.guest_state = state
        await self.log.sync()
        started = self.process.started_at or state.started_at
        record = ExitRecord(
            exit_code=state.exit_code,
            started_at=started,
            finished_at=state.finished_at or datetime.now(UTC),
            reason=state.reason,
        )
        await asyncio.to_thread(self.places.write, record)
        self.log.finish()
        with contextlib.suppress(LamellaError):
            await guest.acknowledge_exit()
        # The end of QEMU ends this task too; a guest that does not power off is not waited for.
        await asyncio.sleep(POWER_OFF_DEADLINE)
        self.kill()

    def _raise_if_gone(self) -> None:
        if self.gone.is_set() or self._life is None or self._life.done():
            raise Unavailable(f"the microVM {self.places.id} has ended", hint=self.last_words())

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


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel *task* until it has ended: what it waits for may be closing something, and take the first time for its own."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.2)


def died(process: ProcessRecord, group: Cgroup | None, words: str) -> ExitRecord:
    """What is written down when QEMU ended and the guest never said how its command did."""
    reason = "the microVM ended without its command's exit code"
    if process.boot != boot_id():
        reason = "the host was restarted"
    elif group is not None and group.oom_kills():
        reason = "the kernel killed the microVM: it used more memory than its group may"
    if words:
        reason += f" ({words})"
    return ExitRecord(exit_code=KILLED, started_at=process.started_at, finished_at=datetime.now(UTC), reason=reason)
