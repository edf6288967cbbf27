"""The isolation level ``vm``: a whole machine with firmware, disks, NICs and a screen, in a QEMU that is confined to an empty room.

``create`` makes the machine and plugs in its devices, with its processors standing still; ``start`` lets them run. QEMU outlives the
daemon: what it is and how it ended is written down (qemu/places.py), and whoever comes next finds it again (session.py).
"""

import asyncio
import contextlib
import logging
import signal as signals
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime

import msgspec

from lamella.host.compute.driver import Limits, Machine, MountedVolume, Observed
from lamella.host.compute.guest.filing import FileVerbs
from lamella.host.compute.qemu import layers
from lamella.host.compute.qemu.balloon import BalloonVerbs
from lamella.host.compute.qemu.freezing import FreezeVerbs
from lamella.host.compute.qemu.keeping import forget_receivers
from lamella.host.compute.qemu.monitor import Monitor
from lamella.host.compute.vm import evidence, hotplug, launching, memory, screen, sizing
from lamella.host.compute.vm.beginning import CONSOLE_DEADLINE, BeginVerbs, reach
from lamella.host.compute.vm.host import look
from lamella.host.compute.vm.inside import Inside
from lamella.host.compute.vm.session import Session
from lamella.model.board import DesktopTicket, Graphics, Input
from lamella.model.contract import Mechanism
from lamella.model.errors import Conflict, LamellaError, NotFound, Unsupported
from lamella.model.host import Capability
from lamella.model.instance import Phase
from lamella.model.signals import signal_number
from lamella.model.stream import ExecSpec, ProcessStream
from lamella.model.usage import LogEntry, Usage

# How long an agent in the guest may take to answer that it powers off, before the power button is pressed.
AGENT_DEADLINE = 5.0
# When a guest that has grown is told to use what it got, in seconds after one another.
ONLINE_PAUSES = (0.1, 1.0)

logger = logging.getLogger(__name__)


class VmDriver(FileVerbs, FreezeVerbs[Session], BalloonVerbs[Session], BeginVerbs):
    """:class:`ComputeDriver` for full machines. ``use_taps`` says where the descriptors of NICs come from."""

    name = "vm"
    noun = "machine"
    # --- the host

    async def open(self) -> list[Capability]:
        try:
            self._host = await look(self._home)
        except LamellaError as error:
            return [Capability(name="compute.vm", available=False, reason=str(error))]
        await self._shelf.clear()
        await asyncio.to_thread(forget_receivers, self._home, self.name)
        return self._host.capabilities()

    async def close(self) -> None:
        await self._stop_keeping()
        await super().close()
        self._shelf.close()

    # --- one instance

    async def observe(self, id: str) -> Observed | None:
        places = self._places(id)
        if not places.state.is_dir():
            return None
        session = await self._session(id)
        if session is None:
            return self._ended(places)
        await session.look()
        record = session.process
        if record.asleep and not session.gone.is_set():
            # A memory that was loaded in part is none.
            phase = Phase.STARTING if record.ready else Phase.STOPPED
            launched = (record.largest or record.size).limits
            return Observed(phase=phase, pid=record.pid, launched=launched, board_type=record.board_type)
        if not record.ready:
            # Half made, by a daemon that is gone: there is nothing to be had of it.
            return Observed(phase=Phase.STOPPED)
        if record.started_at is None and not session.paused and not session.gone.is_set():
            # A daemon that died between letting it run and writing that down.
            await session.write(started_at=datetime.now(UTC))
            record = session.process
        devices: list[str] | None = None
        with contextlib.suppress(LamellaError, msgspec.ValidationError):
            devices = await hotplug.plugged(await session.monitor())
        if session.gone.is_set():
            return self._ended(places)
        phase = Phase.STARTING
        if record.started_at is not None:
            phase = Phase.PAUSED if session.paused else Phase.RUNNING
        return Observed(
            phase=phase,
            pid=record.pid,
            started_at=record.started_at,
            launched=(record.largest or record.size).limits,
            accelerator=record.accelerator,
            accelerator_reason=record.accelerator_reason,
            devices=devices,
            board_type=record.board_type,
        )

    async def start(self, id: str) -> None:
        async with self._lock(id):
            session = await self._running(id)
            await self._awake(session)
            if session.process.started_at is not None:
                return
            await session.resume()
            await session.write(started_at=datetime.now(UTC))
            session.inside.started = session.process.started_at

    async def stop(self, id: str, *, signal: str, timeout: float) -> None:
        """Ask the guest by its agent, else by the power button; *signal* KILL (or no time) pulls the cord at once."""
        async with self._lock(id):
            session = await self._session(id)
            if session is None:
                await self._drop(id)
                return
            forced = signal_number(signal) == signals.SIGKILL or timeout <= 0
            if session.process.started_at is not None and not forced:
                with contextlib.suppress(LamellaError, TimeoutError):
                    async with asyncio.timeout(timeout):
                        if session.paused:
                            await session.resume()
                        await self._ask_to_stop(session, timeout)
                        await session.gone.wait()
            if not session.gone.is_set():
                await session.end(
                    "it was forced off"
                    if forced
                    else f"it was forced off: the guest did not shut down in {timeout:g} s"
                )

    async def kill(self, id: str, signal: int) -> None:
        session = await self._running(id)
        match signal:
            case signals.SIGKILL:
                await session.end("killed")
            case signals.SIGTERM:
                if session.paused:
                    raise Conflict(f"{id} is paused and hears no power button", hint="resume it first, or kill it")
                await (await session.monitor()).execute("system_powerdown")
            case _:
                raise Unsupported(
                    f"a machine takes no signal {signal}",
                    hint="TERM presses its power button, KILL pulls its cord; signals to processes inside are sent with exec",
                    field="signal",
                )

    async def pause(self, id: str) -> None:
        async with self._lock(id):
            await (await self._started(id)).pause()

    async def resume(self, id: str) -> None:
        async with self._lock(id):
            await (await self._started(id)).resume()

    async def update(self, id: str, limits: Limits) -> None:
        async with self._lock(id):
            session = await self._running(id)
            machine = session.machine
            if machine is None:
                raise NotFound(f"nothing is written down of {id}", hint="start it again")
            monitor = await session.monitor()
            current = await sizing.look(monitor)
            change = sizing.change(current, limits, session.process.accelerator)
            if machine.memory_guarantee is not None:
                change = sizing.reclaimed(change, current, limits, session.process.accelerator)
            group = launching.with_the_rest(change.group, machine)
            held = session.group.read_limits().memory
            if held is None or (group.memory or 0) >= held:
                await asyncio.to_thread(session.group.update, group)
                await sizing.resize(monitor, change)
            else:
                await sizing.resize(monitor, change)
                await asyncio.to_thread(session.group.update, group)
            await session.write(limits=limits)
            await _use_what_came(session.inside, sizing.size_of(limits).vcpus)

    # --- devices

    async def rewire(self, machine: Machine) -> None:
        async with self._lock(machine.id):
            session = await self._running(machine.id)
            kept = {volume.id for volume in machine.volumes}
            if session.process.started_at is not None and not session.paused:
                await session.mounting.let_go(
                    volume for volume in self._known(session).volumes if volume.id not in kept
                )
            await self._note(session, machine)
            await hotplug.rewire(await session.monitor(), machine, self._open_tap, reaches=reach(session))
            if session.process.started_at is not None and not session.paused:
                await session.mounting.bring(machine.volumes)

    async def _note(self, session: Session, machine: Machine) -> None:
        await super()._note(session, machine)
        session.know(machine)

    async def _grown(self, session: Session, volume: MountedVolume) -> None:
        await session.mounting.bring([volume])

    async def _freezer(self, id: str) -> Inside:
        return await self._inside(id)

    # --- the machine as a whole

    async def reset(self, id: str) -> None:
        """Press its reset button."""
        await (await (await self._started(id)).monitor()).execute("system_reset")

    async def dump(self, id: str, *, crash: bool) -> AsyncIterator[bytes]:
        """:raise NotFound: when *crash* is asked for and none is kept."""
        state = self._places(id).state
        if not state.is_dir():
            raise _not_here(id)
        pieces = memory.stream_crash(state)
        if not crash:
            pieces = memory.stream_now(await (await self._running(id)).monitor(), state)
        async for piece in pieces:
            yield piece

    # --- its screen

    async def screenshot(self, id: str) -> bytes:
        return await screen.screenshot(await self._with_screen(id))

    async def input(self, id: str, input: Input) -> None:
        await screen.send(await self._with_screen(id), input)

    async def desktop(self, id: str, kind: str) -> DesktopTicket:
        session = await self._running(id)
        return await session.desktop.ticket(await session.monitor(), kind)

    async def screen(self, id: str, kind: str) -> ProcessStream:
        session = await self._running(id)
        return await session.desktop.connect(await session.monitor(), kind)

    # --- streams

    async def attach(self, id: str) -> ProcessStream:
        """The serial console."""
        return (await self._running(id)).view()

    async def logs(
        self, id: str, *, follow: bool = False, tail: int | None = None, since: datetime | None = None
    ) -> AsyncIterator[LogEntry]:
        if not self._places(id).state.is_dir():
            raise _not_here(id)
        await self._session(id)
        async for entry in self._log(id).read(follow=follow, tail=tail, since=since):
            yield entry

    # --- inside

    async def exec(self, id: str, spec: ExecSpec) -> ProcessStream:
        return await (await self._inside(id)).exec(spec)

    async def usage(self, id: str) -> Usage:
        """What its group uses, and what the guest says of itself where an agent answers."""
        session = await self._running(id)
        group = await asyncio.to_thread(session.group.usage)
        inside: Usage | None = None
        if session.process.started_at is not None and not session.paused:
            with contextlib.suppress(LamellaError, TimeoutError):
                async with asyncio.timeout(2):
                    inside = await session.inside.usage()
        machine = session.machine
        return Usage(
            at=datetime.now(UTC),
            cpu_seconds=group.cpu_seconds,
            memory=group.memory,
            memory_limit=session.process.limits.memory or session.process.size.memory,
            processes=inside.processes if inside else None,
            disk_used=layers.used(machine.disk) if machine and machine.disk else None,
            received=inside.received if inside else None,
            sent=inside.sent if inside else None,
        )

    async def mechanisms(self, id: str) -> list[Mechanism]:
        session = await self._session(id)
        if session is None:
            return []
        return await evidence.gather(session) + await asyncio.to_thread(self._beginning, session)

    # --- how

    async def _with_screen(self, id: str) -> Monitor:
        session = await self._running(id)
        if session.machine is not None and session.machine.board.graphics is Graphics.NONE:
            raise Unsupported(f"the machine {id} has no screen", hint="give it graphics, or use its console")
        return await session.monitor()

    @contextlib.asynccontextmanager
    async def _files(self, id: str) -> AsyncGenerator[Inside]:
        yield await self._inside(id)

    async def _inside(self, id: str) -> Inside:
        session = await self._started(id)
        if session.paused:
            raise Conflict(f"the machine {id} is paused", hint="resume it first")
        return session.inside

    async def _ask_to_stop(self, session: Session, timeout: float) -> None:
        """By an agent in the guest; by the power button where none answers."""
        try:
            async with asyncio.timeout(min(AGENT_DEADLINE, timeout / 2)):
                await session.inside.shutdown()
        except (LamellaError, TimeoutError):
            await (await session.monitor()).execute("system_powerdown")

    async def _started(self, id: str) -> Session:
        session = await self._running(id)
        if session.process.started_at is None:
            raise Conflict(f"the machine {id} has not been started", hint="start it first")
        return session

    async def _adopted(self, session: Session) -> None:
        if not await self._take_over(session):
            return
        with contextlib.suppress(LamellaError, TimeoutError):
            await session.monitor()
            async with asyncio.timeout(CONSOLE_DEADLINE):
                await session.console.ready()


def _not_here(id: str) -> NotFound:
    return NotFound(f"there is no machine {id} here")


async def _use_what_came(inside: Inside, vcpus: int) -> None:
    """Have a Linux guest use the memory that it was given and *vcpus* processors, as far as somebody inside can be asked to.

    It finds them in its own time, so it is told more than once; what it has already stays as it is.
    """
    for pause in ONLINE_PAUSES:
        await asyncio.sleep(pause)
        if not (inside.agents.ours or inside.agents.qga):
            return
        with contextlib.suppress(LamellaError, TimeoutError):
            async with asyncio.timeout(AGENT_DEADLINE):
                stream = await inside.exec(ExecSpec(command=["/bin/sh", "-c", sizing.online(vcpus)]))
                try:
                    while await stream.receive() is not None:
                        pass
                finally:
                    await stream.close()
