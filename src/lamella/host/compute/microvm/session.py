"""One microVM that runs: its QEMU, the conversation with its guest's agent, and what the guest wrote.

The agent says how the command did; that is written down here before the guest may go.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.guest.setup import GuestPhase, GuestSetup, GuestState
from lamella.host.compute.qemu.log import Log
from lamella.host.compute.qemu.places import ExitRecord, Places, ProcessRecord
from lamella.host.compute.qemu.process import QemuProcess
from lamella.host.linux.cgroup import Cgroup
from lamella.model.errors import LamellaError, Unavailable

logger = logging.getLogger(__name__)

BOOT_DEADLINE = 90.0
POWER_OFF_DEADLINE = 10.0
AGAIN_DEADLINE = 6.0
LOG_INTERVAL = 0.5


class Session(QemuProcess):
    """A :class:`QemuProcess` whose guest runs our agent."""

    def __init__(
        self, places: Places, process: ProcessRecord, group: Cgroup, log: Log, ended: Callable[[], None]
    ) -> None:
        super().__init__(places, process, group, log, ended)
        self.guest_state: GuestState | None = None
        self._guest: GuestClient | None = None
        self._met = asyncio.Event()

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
        """Wait for the guest to answer and make it the instance; *setup* is called when it has, since it tells the time.

        :raise Unavailable: when it does not boot; the hint shows its console's end.
        """
        guest = await self.guest(BOOT_DEADLINE)
        waits = self.guest_state is None or self.guest_state.phase is GuestPhase.WAITING
        await (guest.configure if waits else guest.become)(setup())
        await self.write(ready=True)
        self._ready.set()

    def met_again(self) -> None:
        """The guest was made the instance without :meth:`configure`."""
        self._ready.set()

    async def known_state(self, timeout: float) -> GuestState | None:
        """What the guest last said of its command, asked anew when it is there; ``None`` when it has never answered."""
        if self.paused or self.gone.is_set():
            return self.guest_state
        with contextlib.suppress(LamellaError, TimeoutError):
            async with asyncio.timeout(timeout):
                self.guest_state = await (await self.guest(timeout)).state()
        return self.guest_state

    # --- its conversation

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

    async def _part(self) -> None:
        if self._guest is not None:
            await self._guest.close()
