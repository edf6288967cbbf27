"""The isolation level ``unikernel``: a kernel that is nothing but the application, in a QEMU that is confined to an empty room.

``create`` starts QEMU with processors that stand still; ``start`` lets them run. QEMU outlives the daemon: what it is and how it ended
is written down (qemu/places.py, and by its keeper), and whoever comes next finds it again (session.py).
"""

import asyncio
import contextlib
import os
import signal as signals
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import NoReturn, TypeVar, cast

import msgspec

from lamella.host.compute.driver import Changed, Home, Limits, Machine, Observed
from lamella.host.compute.qemu import layers
from lamella.host.compute.qemu import mechanisms as of_qemu
from lamella.host.compute.qemu.places import Places
from lamella.host.compute.qemu.process import died
from lamella.host.compute.qemu.storage import DiskVerbs
from lamella.host.compute.unikernel import admission, ending, mechanisms, serial, size
from lamella.host.compute.unikernel.boot import OpenTap, boot
from lamella.host.compute.unikernel.command_line import command_line
from lamella.host.compute.unikernel.host import HostParts, look
from lamella.host.compute.unikernel.kernel import recognize
from lamella.host.compute.unikernel.session import POWER_SIGNALS, Session, read_ending, serial_file
from lamella.host.storage.driver import VolumeHandle
from lamella.model.contract import Mechanism
from lamella.model.errors import Conflict, LamellaError, NotFound, Unavailable, Unsupported
from lamella.model.files import FileInfo
from lamella.model.host import Capability
from lamella.model.instance import Phase
from lamella.model.signals import signal_number
from lamella.model.stream import ExecSpec, ProcessStream
from lamella.model.usage import LogEntry, Usage

T = TypeVar("T")


class UnikernelDriver(DiskVerbs[Session]):
    """:class:`ComputeDriver` for unikernels. ``use_taps`` says where the descriptors of NICs come from."""

    name = "unikernel"
    noun = "unikernel"
    session_type = Session
    root_device = "dev-root"

    def __init__(self, home: Home, changed: Changed) -> None:
        super().__init__(home, changed)
        self._open_tap: OpenTap | None = None
        self._host: HostParts | None = None

    def use_taps(self, open_tap: Callable[[str], Awaitable[int]]) -> None:
        """*open_tap* is given a port's id and returns the open descriptor of its TAP, which is ours to close."""
        self._open_tap = open_tap

    # --- the host

    async def open(self) -> list[Capability]:
        try:
            self._host = await look(self._home)
        except LamellaError as error:
            return [Capability(name="compute.unikernel", available=False, reason=str(error))]
        return self._host.capabilities()

    # --- one instance

    async def observe(self, id: str) -> Observed | None:
        places = self._places(id)
        if not places.state.is_dir():
            return None
        session = await self._session(id)
        if session is None:
            return await self._at_rest(places)
        await session.look()
        if session.process.started_at is None and not session.paused and not session.gone.is_set():
            # A daemon that died between letting the processors run and writing it down left it to us to say when.
            await session.write(started_at=datetime.now(UTC))
        record = session.process
        if session.gone.is_set():
            return await self._at_rest(places)
        phase = Phase.STARTING
        if record.started_at is not None:
            phase = Phase.PAUSED if session.paused else Phase.RUNNING
        return Observed(
            phase=phase,
            pid=record.pid,
            started_at=record.started_at,
            launched=record.size.limits,
            accelerator=record.accelerator,
            accelerator_reason=record.accelerator_reason,
            board_type=record.board_type,
        )

    async def _create(self, machine: Machine) -> None:
        await self._clear(machine.id)
        host = self._ready()
        admission.check(machine)
        kernel, initrd = admission.files_of(machine.rootfs)
        wanted = size.size_of(machine.limits)
        line = command_line(machine)
        places = self._places(machine.id)
        log = self._log(machine.id)

        def prepare() -> None:
            with kernel.open("rb") as file:

                def read(offset: int, length: int) -> bytes:
                    return os.pread(file.fileno(), length, offset)

                recognize(read)
            places.prepare()
            log.open()

        # What is made durable is made so while QEMU starts; until all of it is, there is nothing here but what a create clears.
        try:
            async with self._adoption(machine.id):
                await asyncio.to_thread(prepare)
                log.begin()
                starting = boot(
                    self._home,
                    host,
                    places,
                    self._group(machine.id),
                    machine,
                    size=wanted,
                    command_line=line,
                    kernel=kernel,
                    initrd=initrd,
                    open_tap=self._open_tap,
                )
                record, _ = await _both(starting, asyncio.to_thread(places.write, machine))
                await _both(self._new_session(places, record), asyncio.to_thread(places.write, record))
        except BaseException:
            await asyncio.shield(self._clear(machine.id))
            raise

    async def start(self, id: str) -> None:
        async with self._lock(id):
            session = await self._running(id)
            if session.process.started_at is None:
                try:
                    await session.begin()
                except Unavailable as error:
                    words = session.last_words()
                    raise Unavailable(f"QEMU did not start: {words}" if words else error.message) from error

    async def stop(self, id: str, *, signal: str, timeout: float) -> None:
        number = signal_number(signal)
        async with self._lock(id):
            session = await self._session(id)
            if session is None:
                return
            if session.process.started_at is not None and number != signals.SIGKILL and timeout > 0:
                with contextlib.suppress(LamellaError, TimeoutError):
                    async with asyncio.timeout(timeout):
                        if session.paused:
                            await session.resume()
                        await self._press(session)
                        await session.gone.wait()
            session.kill()
            await session.gone.wait()

    async def kill(self, id: str, signal: int) -> None:
        session = await self._running(id)
        if signal == signals.SIGKILL:
            session.kill()
            return
        if signal not in POWER_SIGNALS:
            raise Unsupported(
                "a unikernel has no processes to send a signal to: KILL ends it, and TERM, INT, HUP or PWR press its power button",
                hint="use one of those",
            )
        if session.paused:
            raise Conflict(f"{id} is paused and takes no signal but KILL", hint="resume it first")
        await self._press(session)

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
            group = size.change(record.size, limits, record.accelerator)
            await asyncio.to_thread(session.group.update, group)
            await session.write(limits=limits)

    # --- its own process

    async def attach(self, id: str) -> ProcessStream:
        session = await self._running(id)

        async def signal(number: int) -> None:
            await self.kill(id, number)

        return session.attach(signal)

    async def logs(
        self, id: str, *, follow: bool = False, tail: int | None = None, since: datetime | None = None
    ) -> AsyncIterator[LogEntry]:
        if not self._places(id).state.is_dir():
            raise NotFound(f"there is no unikernel {id} here")
        if await self._session(id) is None:
            await self._at_rest(self._places(id))
        async for entry in self._log(id).read(follow=follow, tail=tail, since=since):
            yield entry

    async def usage(self, id: str) -> Usage:
        session = await self._running(id)
        machine = session.places.machine()
        group = await asyncio.to_thread(session.group.usage)
        disks = [layers.used(volume) for volume in _volumes(machine).values()]
        return Usage(
            at=datetime.now(UTC),
            cpu_seconds=group.cpu_seconds,
            memory=group.memory,
            memory_limit=session.process.size.memory,
            disk_used=sum(size for size in disks if size is not None) if disks else None,
        )

    async def mechanisms(self, id: str) -> list[Mechanism]:
        session = await self._session(id)
        if session is None:
            return []
        try:
            evidence = await asyncio.to_thread(of_qemu.read, session.process.pid)
        except OSError:
            return []
        found = of_qemu.of_process(evidence) + of_qemu.of_group(session.group, session.process.pid)
        with contextlib.suppress(LamellaError):
            monitor = await session.monitor()
            memory = await monitor.ask(_Memory, "query-memory-size-summary")
            processors = await monitor.ask(list[_Processor], "query-cpus-fast")
            found += mechanisms.of_machine(kvm=await monitor.kvm(), memory=memory.base_memory, vcpus=len(processors))
            volumes = _volumes(session.places.machine())
            sizes = {name: volume.size or volume.path.stat().st_size for name, volume in volumes.items()}
            found += mechanisms.of_disks(sizes)
        return found

    # --- what does not exist here

    async def exec(self, id: str, spec: ExecSpec) -> ProcessStream:
        self._refuse(
            "run a second program: a unikernel has one program, which is its kernel, and nobody in it could start another"
        )

    async def stat(self, id: str, path: str) -> FileInfo:
        self._no_files()

    async def list_directory(self, id: str, path: str) -> list[FileInfo]:
        self._no_files()

    async def read_file(self, id: str, path: str) -> AsyncIterator[bytes]:
        self._no_files()
        yield b""

    async def write_file(
        self, id: str, path: str, data: AsyncIterator[bytes], *, mode: int = 0o644, uid: int = 0, gid: int = 0
    ) -> None:
        self._no_files()

    async def make_directory(self, id: str, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        self._no_files()

    def _no_files(self) -> NoReturn:
        self._refuse("reach files: whether a unikernel has any, only its own code knows")

    def _refuse(self, what: str) -> NoReturn:
        raise Unsupported(
            f"the level unikernel cannot {what}", hint="use its serial line: lamella attach, lamella logs"
        )

    # --- how

    async def _press(self, session: Session) -> None:
        """The power button: a kernel that listens to ACPI turns itself off, others never notice."""
        await (await session.monitor()).execute("system_powerdown")

    async def _clear(self, id: str) -> None:
        """Whatever runs is killed and what belonged to the run removed; what is durable stays."""
        session = self._sessions.get(id)
        if session is not None:
            session.kill()
            await session.gone.wait()
        places = self._places(id)
        await asyncio.to_thread(self._group(id).remove)
        if session is None and places.process() is not None:
            async with self._adoption(id):
                await asyncio.to_thread(self._catch_up, places)
        await asyncio.to_thread(places.remove_run)

    async def _at_rest(self, places: Places) -> Observed:
        """What is known of the last run, its end and its output written down; not while another one is being made."""
        async with self._adoption(places.id):
            return await asyncio.to_thread(self._stopped, places)

    def _stopped(self, places: Places) -> Observed:
        record = places.process()
        end = places.exit()
        if end is None and record is not None and not record.alive():
            found = read_ending(places)
            if found is not None and (record.started_at is not None or not found.signal):
                end = ending.record(found, record.started_at, out_of_memory=False)
            elif record.started_at is not None:
                end = died(record, None, "")
            if end is not None:
                places.write(end)
        if record is None:
            return Observed(phase=Phase.STOPPED)
        if not record.alive():
            self._catch_up(places)
        return Observed(
            phase=Phase.STOPPED,
            exit_code=end.exit_code if end else None,
            started_at=end.started_at if end else None,
            finished_at=end.finished_at if end else None,
            launched=record.size.limits,
            accelerator=record.accelerator,
            accelerator_reason=record.accelerator_reason,
            board_type=record.board_type,
        )

    def _catch_up(self, places: Places) -> None:
        """What came out of the serial line while no daemon was there. Called in a thread; nothing runs."""
        path = serial_file(places)
        log = self._log(places.id)
        with contextlib.suppress(FileNotFoundError):
            log.open()
            try:
                if path.stat().st_size > log.end:
                    serial.catch_up(path, log)
                # Once it is in the log, the file is of no use: the next run begins a new one.
                path.unlink(missing_ok=True)
            finally:
                log.close()

    def _ready(self) -> HostParts:
        if self._host is None:
            raise Unavailable("unikernels are not available on this host", hint="lamella doctor says why")
        return self._host


async def _both(first: Awaitable[T], second: Awaitable[object]) -> tuple[T, object]:
    """Wait for both, and for the other one when one fails."""
    done = await asyncio.gather(first, second, return_exceptions=True)
    for item in done:
        if isinstance(item, BaseException):
            raise item
    return cast("tuple[T, object]", done)


class _Memory(msgspec.Struct, rename="kebab"):
    base_memory: int


class _Processor(msgspec.Struct, rename="kebab"):
    cpu_index: int


def _volumes(machine: Machine | None) -> dict[str, VolumeHandle]:
    if machine is None:
        return {}
    return {**({"root": machine.disk} if machine.disk else {}), **{disk.name: disk.volume for disk in machine.disks}}
