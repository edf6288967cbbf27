"""One machine that runs: its QEMU, its serial line, and what is done when its guest ends, crashes or hangs.

QEMU never ends or goes on by itself then: it stands in a run state that says what happened, until the daemon (this one, or the next)
has written it down and acts. So nothing is lost while there is no daemon.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from lamella.host.compute.driver import Machine, MountedVolume
from lamella.host.compute.qemu.log import Log
from lamella.host.compute.qemu.monitor import Monitor
from lamella.host.compute.qemu.places import ExitRecord, Places, ProcessRecord
from lamella.host.compute.qemu.process import KILLED, QemuProcess
from lamella.host.compute.vm import memory
from lamella.host.compute.vm.console import Console, Viewer
from lamella.host.compute.vm.desktop import Desktop
from lamella.host.compute.vm.inside import Inside
from lamella.host.compute.vm.launching import SCREEN
from lamella.host.compute.vm.volumes import Mounting
from lamella.host.linux.cgroup import Cgroup
from lamella.model.board import OnCrash, Watchdog
from lamella.model.errors import LamellaError, NotFound, Unavailable

logger = logging.getLogger(__name__)

PANICKED = 128 + signal.SIGABRT
QUIT_DEADLINE = 5.0
STEADY = 15.0

_PAUSED = ("paused", "prelaunch", "inmigrate", "io-error", "watchdog", "suspended")
_EVENTS = ("STOP", "SHUTDOWN", "GUEST_PANICKED", "WATCHDOG")
_PORT_EVENT = "VSERPORT_CHANGE"


class Session(QemuProcess):
    """A :class:`QemuProcess` with a serial line and an end that is written down by its run state."""

    def __init__(
        self, places: Places, process: ProcessRecord, group: Cgroup, log: Log, ended: Callable[[], None]
    ) -> None:
        def over() -> None:
            self.console.finish()
            ended()

        super().__init__(places, process, group, log, over)
        self.console = Console(log)
        self.inside = Inside(places.run / "agent", places.run / "qga", started=process.started_at)
        self.mounting = Mounting(self.inside, self._volumes)
        self.forced = ""
        self._machine: Machine | None = None
        self._desktop: Desktop | None = None

    @property
    def machine(self) -> Machine | None:
        """What was asked, as it is written down."""
        if self._machine is None:
            self._machine = self.places.machine()
        return self._machine

    def _volumes(self) -> list[MountedVolume]:
        return [] if self.machine is None else self.machine.volumes

    def know(self, machine: Machine) -> None:
        """The devices were changed: *machine* is what it is now."""
        self._machine = machine

    @property
    def desktop(self) -> Desktop:
        """The tickets to its screen.

        :raise NotFound: when nothing is written down of it.
        """
        if self._desktop is None:
            if self.machine is None:
                raise NotFound(f"nothing is written down of {self.places.id}", hint="start it again")
            self._desktop = Desktop(self.machine.board, self.places.state / SCREEN)
        return self._desktop

    def view(self) -> Viewer:
        """The serial line, live."""

        def ending() -> int | None:
            end = self.places.exit()
            return end.exit_code if end is not None else None

        return self.console.attach(ending)

    async def end(self, reason: str) -> None:
        """Pull the cord: QEMU is asked to end, which closes its files in order, and killed when it does not. Returns when it has ended."""
        self.forced = self.forced or reason
        with contextlib.suppress(LamellaError, TimeoutError):
            async with asyncio.timeout(QUIT_DEADLINE):
                await (await self.monitor()).execute("quit")
                await self.gone.wait()
        self.kill()
        await self.gone.wait()

    async def close(self) -> None:
        await super().close()
        self.console.finish()

    # --- what QemuProcess asks

    async def _talk(self) -> None:
        """Hold the serial line and watch the run state while QEMU runs."""
        self.inside.open()
        while True:
            try:
                monitor = await self.monitor()
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._hold_console())
                    tasks.create_task(self._watch(monitor))
                    tasks.create_task(self._listen(monitor))
                    tasks.create_task(self.mounting.run())
            except LamellaError as error:
                logger.debug("%s: %s", self.places.id, error)
            except ExceptionGroup as group:
                logger.debug("%s: %s", self.places.id, group.exceptions)
            await self._hang_up()
            await asyncio.sleep(0.5)

    async def _hold_console(self) -> None:
        await self.console.run(self.places.run / "console")
        raise Unavailable(f"the serial line of {self.places.id} was closed")

    async def _hang_up(self) -> None:
        """A conversation with the monitor that broke off is begun anew by whoever needs one next."""
        async with self._meeting:
            broken, self._monitor = self._monitor, None
        if broken is not None:
            await broken.close()

    async def _part(self) -> None:
        await self.inside.close()

    async def _listen(self, monitor: Monitor) -> None:
        """The guest opens and closes the ports of its agents, as when it reboots."""
        with monitor.events([_PORT_EVENT]) as events:
            while True:
                data = (await events.next()).data
                if (id := data.get("id")) in ("agent-port", "qga-port"):
                    await self.inside.port_changed(ours=id == "agent-port", opened=bool(data.get("open")))

    async def _watch(self, monitor: Monitor) -> None:
        with monitor.events(_EVENTS) as events:
            while True:
                status = await monitor.status()
                self._note(status)
                await self._act(monitor, status)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(STEADY):
                        await events.next()

    async def _read_status(self, monitor: Monitor) -> None:
        self._note(await monitor.status())

    def _note(self, status: str) -> None:
        if not self.copying:
            self.paused = status in _PAUSED

    def _end_record(self) -> ExitRecord:
        record = super()._end_record()
        return msgspec.structs.replace(record, reason=self.forced) if self.forced else record

    # --- what happened to the guest

    async def _act(self, monitor: Monitor, status: str) -> None:
        match status:
            case "shutdown":
                await self._over(monitor, 0, "")
            case "guest-panicked":
                await self._over(monitor, PANICKED, "the guest's kernel panicked" + await self._keep_crash(monitor))
            case "watchdog":
                await self._bark(monitor)
            case "internal-error":
                await self._over(monitor, KILLED, "QEMU cannot go on with this guest (internal error)")
            case _:
                pass

    async def _keep_crash(self, monitor: Monitor) -> str:
        machine = self.machine
        if machine is None or machine.board.on_crash is not OnCrash.DUMP:
            return ""
        return await self._dump(monitor)

    async def _dump(self, monitor: Monitor) -> str:
        try:
            await memory.keep(monitor, self.places.state)
        except (LamellaError, OSError) as error:
            logger.warning("%s: %s", self.places.id, error)
            return f"; its memory could not be kept: {error}"
        return "; its memory is kept"

    async def _bark(self, monitor: Monitor) -> None:
        """The guest began to feed its watchdog and stopped. QEMU has paused it already."""
        machine = self.machine
        match machine.board.watchdog if machine else Watchdog.PAUSE:
            case Watchdog.POWEROFF:
                await self._over(monitor, KILLED, "the guest hung: its watchdog was not fed, and switched it off")
            case Watchdog.DUMP:
                logger.warning("%s: the watchdog was not fed%s; reset", self.places.id, await self._dump(monitor))
                await monitor.execute("system_reset")
                await monitor.proceed()
                self.paused = False
            case _:
                pass

    async def _over(self, monitor: Monitor, code: int, reason: str) -> None:
        """Write down how the run ended, then let QEMU end."""
        if self.places.exit() is None:
            record = ExitRecord(
                exit_code=code, started_at=self.process.started_at, finished_at=datetime.now(UTC), reason=reason
            )
            await asyncio.to_thread(self.places.write, record)
        with contextlib.suppress(LamellaError):
            await monitor.execute("quit")
        # The end of QEMU ends this task too.
        await asyncio.sleep(QUIT_DEADLINE)
        self.kill()
