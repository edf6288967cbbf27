"""The isolation level ``microvm``: the same image under a kernel of its own, in a QEMU that is confined to an empty room.

``create`` boots the guest and makes it the instance; ``start`` runs the command. QEMU outlives the daemon: what it is and how
it ended is written down (places.py), and whoever comes next finds it again (session.py).
"""

import asyncio
import contextlib
import logging
import signal as signals
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import msgspec

from lamella.host.compute.driver import SUSPENDED_MEMORY, Limits, Machine, MountedVolume, Observed
from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.guest.filing import FileVerbs
from lamella.host.compute.guest.setup import GuestPhase, GuestProcess
from lamella.host.compute.microvm import arguments, size, volumes
from lamella.host.compute.microvm.beginning import BeginVerbs
from lamella.host.compute.microvm.host import look
from lamella.host.compute.microvm.identity import setup_of
from lamella.host.compute.microvm.keeping import SUSPENDED
from lamella.host.compute.microvm.session import Session
from lamella.host.compute.microvm.templates import forget_unfinished
from lamella.host.compute.qemu import layers, mechanisms
from lamella.host.compute.qemu.balloon import BalloonVerbs
from lamella.host.compute.qemu.freezing import FreezeVerbs
from lamella.host.compute.qemu.keeping import forget_receivers
from lamella.host.compute.qemu.monitor import Monitor
from lamella.model.contract import Mechanism
from lamella.model.errors import CannotRun, Conflict, Invalid, LamellaError, NotFound, Unavailable
from lamella.model.host import Capability
from lamella.model.instance import Phase
from lamella.model.quantity import format_size
from lamella.model.signals import signal_number
from lamella.model.stream import ExecSpec, ProcessStream
from lamella.model.usage import LogEntry, Usage

logger = logging.getLogger(__name__)

OpenTap = Callable[[str], Awaitable[int]]

GRACE = 15.0
BALLOON_DEADLINE = 10.0


class MicrovmDriver(FileVerbs, FreezeVerbs[Session], BalloonVerbs[Session], BeginVerbs):
    """:class:`ComputeDriver` for microVMs. ``use_taps`` says where the descriptors of NICs come from."""

    name = "microvm"
    noun = "microVM"
    root_device = arguments.DATA_DEVICE
    session_type = Session

    # --- the host

    async def open(self) -> list[Capability]:
        try:
            self._host = await look(self._home)
        except LamellaError as error:
            return [Capability(name="compute.microvm", available=False, reason=str(error))]
        await self._shelf.clear()
        await asyncio.to_thread(forget_unfinished, self._home)
        await asyncio.to_thread(forget_receivers, self._home, self.name)
        return self._host.capabilities()

    async def close(self) -> None:
        await self.templates.close()
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
        phase = Phase.STARTING
        if (record.asleep or record.rests) and not session.gone.is_set():
            return Observed(phase=phase, pid=record.pid, launched=record.size.limits)
        if record.started_at is None and record.ready:
            # A daemon that died between starting the command and writing it down left it to us to ask.
            state = await session.known_state(timeout=5)
            if state is not None and state.phase in (GuestPhase.RUNNING, GuestPhase.EXITED):
                await session.write(started_at=state.started_at or datetime.now(UTC))
                record = session.process
        if not record.ready:
            # Half made, by a daemon that is gone: there is nothing to be had of it.
            return Observed(phase=Phase.STOPPED)
        if record.started_at is not None:
            phase = Phase.PAUSED if session.paused else Phase.RUNNING
        if session.gone.is_set():
            return self._ended(places)
        return Observed(
            phase=phase,
            pid=record.pid,
            started_at=record.started_at,
            launched=record.size.limits,
            accelerator=record.accelerator,
            accelerator_reason=record.accelerator_reason,
        )

    async def _create(self, machine: Machine) -> None:
        await self._clear(machine.id)
        host = self._ready()
        wakes = machine.memory == SUSPENDED_MEMORY
        if wakes:
            machine = msgspec.structs.replace(machine, memory=SUSPENDED + machine.id)
        else:
            await self._shelf.remove(SUSPENDED + machine.id)
        former = self._places(machine.id).process() if wakes else None
        wanted = size.size_of(machine.limits)
        volumes.check(machine)
        image = await self.block_images.ensure(machine.rootfs)
        async with self._kept(machine) as begins:
            places = self._places(machine.id)
            log = self._log(machine.id)

            def prepare() -> None:
                places.prepare()
                places.write(machine)
                log.open()

            await asyncio.to_thread(prepare)
            log.begin()
            try:
                if begins is not None:
                    await self._go_on_from(host, places, machine, wanted, image, begins)
                else:
                    session = await self._begin(host, places, machine, wanted, image)
                    await session.configure(lambda: setup_of(machine))
                    await volumes.mount(await session.guest(), machine)
            except BaseException:
                await asyncio.shield(self._clear(machine.id))
                if former is not None:
                    # Still suspended.
                    places.write(former)
                raise

    async def start(self, id: str) -> None:
        async with self._lock(id):
            session = await self._running(id)
            await self._awake(session)
            if session.process.started_at is not None:
                return
            machine = session.places.machine()
            if machine is None:
                raise NotFound(f"nothing is written down of {id}", hint="create it again")
            guest = await session.guest()
            try:
                state = await guest.start(
                    GuestProcess(
                        command=machine.command,
                        environment=machine.environment,
                        working_directory=machine.working_directory,
                        user=machine.user,
                        terminal=machine.terminal,
                        stdin=machine.stdin,
                    )
                )
            except Invalid as error:
                code = (await guest.state()).exit_code
                if code not in (126, 127):
                    raise
                raise CannotRun(error.message, exit_code=code) from error
            await session.write(started_at=state.started_at or datetime.now(UTC))

    async def stop(self, id: str, *, signal: str, timeout: float) -> None:
        async with self._lock(id):
            session = await self._session(id)
            if session is None:
                await self._drop(id)
                return
            number = signal_number(signal)
            if session.process.started_at is not None:
                with contextlib.suppress(LamellaError, TimeoutError):
                    async with asyncio.timeout(timeout + GRACE):
                        if session.paused:
                            await session.resume()
                        guest = await session.guest(timeout=5)
                        await guest.shutdown(number, timeout)
                        await session.gone.wait()
            session.kill()
            await session.gone.wait()

    async def kill(self, id: str, signal: int) -> None:
        session = await self._running(id)
        forced = signal == signals.SIGKILL
        if session.paused:
            if not forced:
                raise Conflict(f"{id} is paused and takes no signal but KILL", hint="resume it first")
            session.kill()
            return
        try:
            await (await session.guest(timeout=5)).signal(signal)
        except Unavailable:
            if not forced:
                raise
            session.kill()

    async def pause(self, id: str) -> None:
        async with self._lock(id):
            await (await self._running(id)).pause()

    async def resume(self, id: str) -> None:
        async with self._lock(id):
            await (await self._running(id)).resume()

    async def update(self, id: str, limits: Limits) -> None:
        async with self._lock(id):
            session = await self._running(id)
            record = session.process
            change = size.change(record.size, limits, record.accelerator)
            held = session.group.read_limits().memory
            monitor = await session.monitor()
            guest_memory = change.guest_memory
            machine = session.places.machine()
            if machine is not None and machine.memory_guarantee is not None:
                # What was taken from one that needs it no more is given back when it does.
                guest_memory = min(guest_memory, await monitor.memory())
            if held is None or (change.group.memory or 0) >= held:
                await asyncio.to_thread(session.group.update, change.group)
                await _resize(monitor, guest_memory)
            else:
                await _resize(monitor, guest_memory)
                await asyncio.to_thread(session.group.update, change.group)
            await session.write(limits=limits)

    # --- inside

    async def _freezer(self, id: str) -> GuestClient:
        return await self._agent(id)

    async def _grown(self, session: Session, volume: MountedVolume) -> None:
        await volumes.mount_one(await session.guest(timeout=5), volume)

    async def exec(self, id: str, spec: ExecSpec) -> ProcessStream:
        return await (await self._agent(id)).exec(spec)

    async def attach(self, id: str) -> ProcessStream:
        return await (await self._agent(id)).attach()

    async def logs(
        self, id: str, *, follow: bool = False, tail: int | None = None, since: datetime | None = None
    ) -> AsyncIterator[LogEntry]:
        if not self._places(id).state.is_dir():
            raise NotFound(f"there is no microVM {id} here")
        await self._session(id)
        async for entry in self._log(id).read(follow=follow, tail=tail, since=since):
            yield entry

    async def usage(self, id: str) -> Usage:
        session = await self._running(id)
        machine = session.places.machine()
        group = await asyncio.to_thread(session.group.usage)
        inside: Usage | None = None
        if not session.paused:
            with contextlib.suppress(LamellaError, TimeoutError):
                async with asyncio.timeout(2):
                    inside = await (await session.guest(timeout=1)).usage()
        limit = session.process.limits.memory or session.process.size.memory
        return Usage(
            at=datetime.now(UTC),
            cpu_seconds=group.cpu_seconds,
            memory=group.memory,
            memory_limit=limit,
            processes=inside.processes if inside else None,
            disk_used=layers.used(machine.volume) if machine else None,
            received=inside.received if inside else None,
            sent=inside.sent if inside else None,
        )

    async def collect_images(self, keep: set[str]) -> int:
        """Remove block images and templates of images that are gone; returns bytes freed."""
        return await self.block_images.collect(keep) + await self.templates.collect(keep)

    async def mechanisms(self, id: str) -> list[Mechanism]:
        session = await self._session(id)
        if session is None:
            return []
        try:
            evidence = await asyncio.to_thread(mechanisms.read, session.process.pid)
        except OSError:
            return []
        found = mechanisms.of_process(evidence) + mechanisms.of_group(session.group, session.process.pid)
        found += await asyncio.to_thread(self._beginning, session)
        with contextlib.suppress(LamellaError):
            monitor = await session.monitor()
            kernel = ""
            if not session.paused:
                with contextlib.suppress(LamellaError):
                    kernel = (await session.guest(timeout=1)).hello.kernel
            found += mechanisms.of_machine(
                kvm=await monitor.kvm(),
                memory=await monitor.memory(),
                vcpus=session.process.size.vcpus,
                kernel=kernel,
            )
            if not session.paused:
                found += await self._inside(session)
        return found

    async def _inside(self, session: Session) -> list[Mechanism]:
        """What the guest's own kernel holds its processes to, and how large the disk is that it was given."""
        guest = await session.guest(timeout=1)
        most = (
            b"".join([piece async for piece in guest.read_file(mechanisms.PIDS_MAX)]).decode(errors="replace").strip()
        )
        machine = session.places.machine()
        size = 0
        if machine is not None:
            size = machine.volume.size or machine.volume.path.stat().st_size
        return mechanisms.of_guest(most, size) + volumes.of_guest(machine, await volumes.mounts(guest))

    # --- how

    @contextlib.asynccontextmanager
    async def _files(self, id: str) -> AsyncGenerator[GuestClient]:
        yield await self._agent(id)

    async def _agent(self, id: str) -> GuestClient:
        session = await self._running(id)
        await self._awake(session)
        await self._released(id)
        if session.paused:
            raise Conflict(f"the microVM {id} is paused", hint="resume it first")
        return await session.guest()

    async def _adopted(self, session: Session) -> None:
        await self._take_over(session)


async def _resize(monitor: Monitor, memory: int) -> None:
    """Have the balloon leave the guest *memory* bytes, and wait until it does.

    :raise Conflict: when the guest does not give back what it is asked for; it keeps what it had then.
    """
    before = await monitor.memory()
    await monitor.set_memory(memory)
    try:
        async with asyncio.timeout(BALLOON_DEADLINE):
            while await monitor.memory() != memory:  # noqa: ASYNC110 - QEMU tells of it once a second at most
                await asyncio.sleep(0.02)
    except TimeoutError:
        if memory > before:
            return
        await monitor.set_memory(before)
        raise Conflict(
            f"the guest did not give memory back down to {format_size(memory)} within {BALLOON_DEADLINE:g} s",
            hint="it is in use; free some inside, or ask for more",
        ) from None
