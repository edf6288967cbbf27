"""One unikernel that runs: its QEMU, its serial line, and what is written down of its end."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from lamella.host.compute.qemu import launch
from lamella.host.compute.qemu.launch import CONSOLE
from lamella.host.compute.qemu.log import Log
from lamella.host.compute.qemu.monitor import Monitor
from lamella.host.compute.qemu.places import ExitRecord, Places, ProcessRecord
from lamella.host.compute.qemu.process import KILLED, QemuProcess, died
from lamella.host.compute.unikernel import ending
from lamella.host.compute.unikernel.serial import Serial, SerialStream
from lamella.host.linux.cgroup import Cgroup
from lamella.model.errors import LamellaError, Unavailable
from lamella.model.signals import signal_number

logger = logging.getLogger(__name__)

KEEPER_PATIENCE = 10.0
ANSWER_PATIENCE = 20.0

POWER_SIGNALS = frozenset(signal_number(name) for name in ("SIGHUP", "SIGINT", "SIGTERM", "SIGPWR"))
"""Signals that press the power button: the only thing that a kernel can be asked."""


def serial_file(places: Places) -> Path:
    return places.state / "serial"


def status_file(places: Places) -> Path:
    return places.state / "status"


class Session(QemuProcess):
    """A :class:`QemuProcess` whose guest has a serial line and nothing else."""

    def __init__(
        self, places: Places, process: ProcessRecord, group: Cgroup, log: Log, ended: Callable[[], None]
    ) -> None:
        super().__init__(places, process, group, log, ended)
        self._serial: Serial | None = None

    async def open(self) -> None:
        await super().open()
        pid = self.process.pid
        try:
            # Our own ends of its pipes. The base class has one of the output already, which is never read.
            ticks = os.open(f"/proc/{pid}/fd/{CONSOLE}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                keys = os.open(f"/proc/{pid}/fd/0", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                os.close(ticks)
                raise
            self._serial = Serial(serial_file(self.places), self.log, ticks, keys)
        except OSError as error:
            await self.close()
            raise Unavailable(f"the QEMU of {self.places.id} is gone") from error

    async def begin(self) -> None:
        """Let the processors run; the run begins now.

        :raise Unavailable: when QEMU could not do it.
        """
        monitor = await self.monitor()
        self.process = msgspec.structs.replace(self.process, started_at=datetime.now(UTC))
        try:
            await monitor.proceed()
        except Unavailable:
            # A kernel may be done before QEMU has answered; then how it ended says that it ran.
            await self._wait_gone(ANSWER_PATIENCE)
            end = self.places.exit()
            if end is None or end.exit_code in (None, ending.BROKEN, KILLED):
                raise
            return
        self.paused = False
        self._runs.set()
        # Written down meanwhile: a daemon that dies before finds the processors running, which says the same.
        await self.write()

    async def _wait_gone(self, timeout: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self.gone.wait()

    def attach(self, signal: Callable[[int], Awaitable[None]]) -> SerialStream:
        """:raise Unavailable: when QEMU is gone."""
        self._raise_if_gone()
        assert self._serial is not None
        return SerialStream(self._serial, self.gone, self.places.exit, signal)

    def last_words(self) -> str:
        if self._errors < 0:
            return self._words
        text = launch.tail(self._errors, launch.ERRORS_SIZE)
        return ending.complaint(text)

    async def _talk(self) -> None:
        if self._serial is None:
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._meet())
            tasks.create_task(self._serial.follow())

    async def _meet(self) -> None:
        """The monitor is there as soon as QEMU is; nobody waits for it before it is needed."""
        try:
            await self.monitor()
        except LamellaError as error:
            logger.debug("%s: %s", self.places.id, error)

    async def _part(self) -> None:
        if self._serial is not None:
            self._serial.take()
            await self.log.sync()

    def _end_record(self) -> ExitRecord:
        found = self._keepers_word()
        if found is None:
            return died(self.process, self.group, self._words)
        return ending.record(found, self.process.started_at, out_of_memory=bool(self.group.oom_kills()))

    def _keepers_word(self) -> ending.Ending | None:
        """Our end of waiting and the keeper's are at the same moment: it may not have written yet. Called in a thread."""
        deadline = time.monotonic() + KEEPER_PATIENCE
        while (found := read_ending(self.places)) is None and time.monotonic() < deadline:
            time.sleep(0.001)
        return found

    async def _read_status(self, monitor: Monitor) -> None:
        status = await monitor.status()
        if status == "internal-error":
            logger.warning("%s: QEMU says %s", self.places.id, status)
            self.kill()
        # A machine that is shut down ends by itself; its exit code would be lost if we hurried it.
        self.paused = status not in ("running", "shutdown")
        if not self.paused:
            self._runs.set()

    def _close_files(self) -> None:
        super()._close_files()
        if self._serial is not None:
            self._serial.close()


def read_ending(places: Places) -> ending.Ending | None:
    try:
        return ending.parse(status_file(places).read_bytes())
    except OSError:
        return None
