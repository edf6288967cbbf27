"""The isolation level ``wasm``: a WebAssembly module under WASI, in a worker process that is confined to an empty room.

``create`` has a worker forked that loads the compiled module and waits; ``start`` lets it run. A monitor beside each worker takes its
output and its exit code, and outlives the daemon; docs/wasm.md tells who is confined by what.
"""

import asyncio
import contextlib
import os
import signal as signals
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import NoReturn

import msgspec

from lamella.host.compute.driver import Changed, Home, Limits, Machine, Observed
from lamella.host.compute.qemu.log import Log
from lamella.host.compute.wasm import host, mechanisms, monitor, places, volumes
from lamella.host.compute.wasm import order as orders
from lamella.host.compute.wasm.monitor import Connection, Kind, Lost
from lamella.host.compute.wasm.places import Places, Record
from lamella.host.compute.wasm.session import Session, Stale, lost, open_group
from lamella.host.compute.wasm.source import Source, source
from lamella.host.compute.wasm.stream import HARMLESS, AttachedStream
from lamella.host.linux import syscalls
from lamella.host.linux.blocking import blocking
from lamella.host.linux.cgroup import ROOT as CGROUP_ROOT
from lamella.host.linux.cgroup import Cgroup, Cgroups
from lamella.model.board import Directory
from lamella.model.contract import Mechanism
from lamella.model.errors import Conflict, Invalid, LamellaError, NotFound, Unavailable, Unsupported
from lamella.model.files import FileInfo
from lamella.model.host import Capability
from lamella.model.instance import Phase
from lamella.model.signals import signal_number
from lamella.model.stream import ExecSpec, ProcessStream
from lamella.model.usage import LogEntry, Usage

# What a worker needs beside the module's own memory: page tables, stacks, what it writes of the library's pages.
OVERHEAD = 16 << 20

CONTROLLERS = ("cpu", "cpuacct", "memory", "pids", "freezer")

# A module is one thread; the others are the worker's: one that listens to its monitor, those of the library.
THREADS = 32


class WasmDriver:
    """:class:`ComputeDriver` for WebAssembly modules and components."""

    name = "wasm"

    def __init__(self, home: Home, changed: Changed) -> None:
        self._home = home
        self._changed = changed
        self._sessions: dict[str, Session] = {}
        self._logs: dict[str, Log] = {}
        self._verbs: dict[str, asyncio.Lock] = {}
        self._adopting: dict[str, asyncio.Lock] = {}
        self._cgroups: Cgroups | None = None
        self._parts: host.Parts | None = None

    # --- the host

    async def open(self) -> list[Capability]:
        try:
            self._parts = await host.look(self._home, self._group)
        except (LamellaError, OSError, TimeoutError) as error:
            return [Capability(name="compute.wasm", available=False, reason=str(error))]
        return self._parts.capabilities()

    async def close(self) -> None:
        for session in list(self._sessions.values()):
            await session.close()
        self._sessions.clear()
        if self._parts is not None:
            await self._parts.zygote.close()

    async def inventory(self) -> set[str]:
        return places.inventory(self._home)

    async def collect_images(self, keep: set[str]) -> int:
        """Remove compiled modules of images that are gone; returns bytes freed."""
        return await blocking(self._ready().modules.collect, keep)

    # --- one instance

    async def observe(self, id: str) -> Observed | None:
        place = Places(self._home, id)
        if not place.state.is_dir():
            return None
        session = await self._session(id)
        process, record = place.process(), place.record()
        if session is None or session.ended.is_set() or process is None:
            return self._stopped(place, record)
        phase = Phase.STARTING
        if session.running:
            phase = Phase.PAUSED if session.group.is_frozen() else Phase.RUNNING
        return Observed(
            phase=phase,
            pid=process.worker,
            started_at=process.started_at,
            launched=record.limits if record else None,
        )

    async def create(self, machine: Machine) -> None:
        parts = self._ready()
        _refuse(machine)
        async with self._lock(machine.id):
            await self._clear(machine.id)
            found = source(machine)
            counted = machine.fuel is not None
            for attempt in range(2):
                compiled = await parts.modules.ensure(found, fuel=counted, user=machine.id_base)
                try:
                    session = await self._make(parts, machine, found, str(compiled))
                    await session.made()
                    return
                except Stale as error:
                    await self._clear(machine.id)
                    parts.modules.forget(compiled)
                    if attempt:
                        raise Unavailable(f"wasmtime does not take what it compiled: {error}") from error
                except Lost:
                    await self._clear(machine.id)
                    if attempt:
                        raise
                    await parts.zygote.renew()
                except BaseException:
                    await asyncio.shield(self._clear(machine.id))
                    raise

    async def start(self, id: str) -> None:
        async with self._lock(id):
            if (session := await self._session(id)) is None and Places(self._home, id).exit() is not None:
                return  # it was started, and has ended
            session = session or await self._running(id)
            await session.start()

    async def stop(self, id: str, *, signal: str, timeout: float) -> None:
        async with self._lock(id):
            session = await self._session(id)
            if session is None:
                return
            number = signal_number(signal)
            if session.running and not session.group.is_frozen() and timeout > 0 and number not in HARMLESS:
                with contextlib.suppress(TimeoutError, Unavailable):
                    await monitor.interrupt(session.connection, number)
                    async with asyncio.timeout(timeout):
                        await session.gone.wait()
                        return
            await self._kill(session)

    async def kill(self, id: str, signal: int) -> None:
        session = await self._running(id)
        if signal == signals.SIGKILL:
            await blocking(session.group.kill_all)
        elif signal in (signals.SIGSTOP, signals.SIGTSTP, signals.SIGTTIN, signals.SIGTTOU):
            raise Unsupported("a WebAssembly module cannot be stopped by a signal", hint="pause the instance")
        elif session.group.is_frozen():
            raise Conflict(f"{id} is paused and takes no signal but KILL", hint="resume it first")
        elif signal not in HARMLESS:
            await monitor.interrupt(session.connection, signal)

    async def pause(self, id: str) -> None:
        async with self._lock(id):
            session = await self._running(id)
            if not session.running:
                raise Conflict(f"the module of {id} was not started yet", hint="start it first")
            await blocking(session.group.freeze)

    async def resume(self, id: str) -> None:
        async with self._lock(id):
            await blocking((await self._running(id)).group.thaw)

    async def update(self, id: str, limits: Limits) -> None:
        async with self._lock(id):
            session = await self._running(id)
            record = session.places.record()
            if record is None:
                raise NotFound(f"nothing is written down of {id}", hint="create it again")
            if limits.memory != record.limits.memory:
                raise Unsupported(
                    "the memory of a WebAssembly module is bounded when it starts", hint="restart it with the new limit"
                )
            await blocking(session.group.update, group_limits(limits))
            new = msgspec.structs.replace(record, limits=limits)
            await blocking(session.places.write, new)

    async def remove(self, id: str) -> None:
        async with self._lock(id):
            await self._clear(id, everything=True)
            self._logs.pop(id, None)
        self._verbs.pop(id, None)
        self._adopting.pop(id, None)

    # --- its streams

    async def attach(self, id: str) -> ProcessStream:
        session = await self._running(id)
        connection = await Connection.connect(session.places.socket)
        try:
            await connection.send(b"A")
            while (packet := await connection.receive()) is not None and packet.kind is not Kind.ATTACHED:
                pass
            if packet is None:
                raise Conflict(f"the instance {id} has just ended", hint="its output is in its log")
        except BaseException:
            connection.close()
            raise
        return AttachedStream(connection)

    async def logs(
        self, id: str, *, follow: bool = False, tail: int | None = None, since: datetime | None = None
    ) -> AsyncIterator[LogEntry]:
        if not Places(self._home, id).state.is_dir():
            raise NotFound(f"there is no WebAssembly instance {id} here")
        session = await self._session(id)
        if session is not None and follow:
            session.follow()
        async for entry in self._log(id).read(follow=follow, tail=tail, since=since):
            yield entry

    async def usage(self, id: str) -> Usage:
        session = await self._running(id)
        record = session.places.record()
        used = await blocking(session.group.usage)
        return Usage(
            at=datetime.now(UTC),
            cpu_seconds=used.cpu_seconds,
            memory=used.memory,
            memory_limit=record.limits.memory if record else None,
            processes=1,
        )

    async def mechanisms(self, id: str) -> list[Mechanism]:
        session = await self._session(id)
        process = session.process if session else None
        record = session.places.record() if session else None
        if session is None or process is None or record is None:
            return []
        try:
            return await blocking(mechanisms.read, process.worker, session.group, record, self._ready().landlock)
        except OSError:
            return []

    # --- what there is none of

    async def exec(self, id: str, spec: ExecSpec) -> ProcessStream:
        raise Unsupported(
            "a WebAssembly instance is one module: there is no other program in it to run",
            hint="start another instance",
        )

    async def stat(self, id: str, path: str) -> FileInfo:
        _no_files()

    async def list_directory(self, id: str, path: str) -> list[FileInfo]:
        _no_files()

    async def read_file(self, id: str, path: str) -> AsyncIterator[bytes]:
        _no_files()
        yield b""

    async def write_file(
        self, id: str, path: str, data: AsyncIterator[bytes], *, mode: int = 0o644, uid: int = 0, gid: int = 0
    ) -> None:
        _no_files()

    async def make_directory(self, id: str, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        _no_files()

    # --- how

    async def _make(self, parts: host.Parts, machine: Machine, found: Source, compiled: str) -> Session:
        """Have monitor and worker forked. What they need is opened here: they see no path of the host."""
        place, group = Places(self._home, machine.id), self._group(machine.id)
        directories = volumes.directories(machine)
        record = Record(
            limits=machine.limits,
            user=machine.id_base,
            component=found.component,
            stdin=machine.stdin,
            fuel=machine.fuel,
            deadline=machine.deadline,
            directories=directories,
        )
        order = orders.pack(
            orders.Order(
                user=machine.id_base,
                boot=parts.boot,
                component=found.component,
                stdin=machine.stdin,
                arguments=found.arguments,
                environment=machine.environment,
                directories=directories,
                fuel=machine.fuel,
                memory=machine.limits.memory,
                deadline=machine.deadline,
            )
        )
        await parts.zygote.open()

        def prepare() -> Connection:
            with contextlib.ExitStack() as stack:

                def own(fd: int) -> int:
                    stack.callback(os.close, fd)
                    return fd

                place.prepare(record)
                _mend(place)
                group.create(group_limits(machine.limits))
                fds = [
                    stack.enter_context(monitor.listening(place.socket)).fileno(),
                    own(os.open(place.state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)),
                    own(syscalls.clone_mount(compiled)),
                ]
                procs = [own(fd) for fd in open_group(group)]
                shown = [own(_open_directory(one)) for one in directories]
                return parts.zygote.ask(
                    orders.RUN,
                    order,
                    [*fds, *procs, *shown],
                    groups=len(procs),
                    directories=len(shown),
                )

        connection = await blocking(prepare)
        session = Session(place, group, self._log(machine.id), connection, self._has_ended)
        self._sessions[machine.id] = session
        return session

    def _has_ended(self, session: Session) -> None:
        self._changed(session.places.id)

    async def _session(self, id: str) -> Session | None:
        """The session of *id*, made anew for what another daemon started; ``None`` when nothing runs."""
        session = self._sessions.get(id)
        if session is not None and session.gone.is_set():
            self._sessions.pop(id, None)
            session = None
        if session is not None:
            return None if session.ended.is_set() else session
        async with self._adopting.setdefault(id, asyncio.Lock()):
            if id in self._sessions:
                return self._sessions[id]
            place = Places(self._home, id)
            process = place.process()
            if process is None or place.exit() is not None or not process.alive():
                return None
            try:
                connection = await Connection.connect(place.socket)
            except Unavailable:
                return None
            hello = await connection.receive()
            if hello is None or hello.kind is not Kind.HELLO or hello.state not in "PRB":
                connection.close()
                return None
            session = Session(place, self._group(id), self._log(id), connection, self._has_ended)
            self._sessions[id] = session
            session.adopt(hello)
            return session

    async def _running(self, id: str) -> Session:
        session = await self._session(id)
        if session is None:
            if not Places(self._home, id).state.is_dir():
                raise NotFound(f"there is no WebAssembly instance {id} here")
            raise Conflict(f"the WebAssembly instance {id} does not run", hint="start it first")
        return session

    async def _kill(self, session: Session) -> None:
        await blocking(session.group.kill_all)
        try:
            async with asyncio.timeout(2):
                await session.gone.wait()
        except TimeoutError:
            # A monitor that does not tell is of no use to anybody.
            process = session.process
            if process is not None and process.alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signals.SIGKILL)
            await session.gone.wait()

    async def _clear(self, id: str, *, everything: bool = False) -> None:
        """Whatever runs is killed and what belonged to the run removed; log and exit record stay, but with *everything*."""
        place = Places(self._home, id)
        if not place.state.is_dir():
            return  # it is made first and removed last: without it there is nothing
        session = await self._session(id)
        if session is not None and session.ready:
            await self._kill(session)
        elif (waiting := self._sessions.get(id)) is not None:
            if waiting.ended.is_set():
                await waiting.gone.wait()
            else:
                await waiting.close()
        self._sessions.pop(id, None)

        def sweep() -> None:
            self._group(id).remove()
            process = place.process()
            if process is not None and place.exit() is None and process.alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signals.SIGKILL)
            if everything:
                place.remove()
            else:
                place.remove_run()

        await blocking(sweep)

    def _stopped(self, place: Places, record: Record | None) -> Observed:
        end, process = place.exit(), place.process()
        if end is None and process is not None and process.started_at is not None:
            # A worker ends with its monitor; one that does not is ended here.
            with contextlib.suppress(LamellaError):
                self._group(place.id).remove()
            end = lost(process)
            place.write(end)
        return Observed(
            phase=Phase.STOPPED,
            exit_code=end.exit_code if end else None,
            started_at=end.started_at if end else None,
            finished_at=end.finished_at if end else None,
            launched=record.limits if record else None,
        )

    def _ready(self) -> host.Parts:
        if self._parts is None:
            raise Unavailable("WebAssembly is not available on this host", hint="lamella doctor says why")
        return self._parts

    def _group(self, id: str) -> Cgroup:
        if self._cgroups is None:
            self._cgroups = Cgroups(CGROUP_ROOT, self._home.mark)
            if self._cgroups.version == 1:
                # A group in each tree costs as much as all the rest of a start: only where something is limited or counted.
                self._cgroups.trees = {
                    name: self._cgroups.trees[name] for name in CONTROLLERS if name in self._cgroups.trees
                }
        return self._cgroups.group(id)

    def _log(self, id: str) -> Log:
        return self._logs.setdefault(id, Log(Places(self._home, id).state))

    def _lock(self, id: str) -> asyncio.Lock:
        return self._verbs.setdefault(id, asyncio.Lock())


def group_limits(limits: Limits) -> Limits:
    """What holds the worker, of which the module's memory is a part. Pure."""
    memory = None if limits.memory is None else limits.memory + OVERHEAD
    return Limits(cpu=limits.cpu, memory=memory, pids=THREADS)


def _refuse(machine: Machine) -> None:
    """:raise Unsupported: when something is asked that a module cannot have."""
    if machine.terminal:
        raise Unsupported(
            "a WebAssembly module has no terminal", hint="run it without one; standard input works", field="terminal"
        )
    if machine.nic is not None or machine.nics:
        raise Unsupported(
            "a WebAssembly instance has no network: WASI preview 1 cannot open a socket, and components are given none",
            hint="ask for no NIC",
            field="nics",
        )
    if machine.disks or machine.cdroms or machine.usb:
        raise Unsupported("a WebAssembly module has no devices", hint="give it directories instead")
    volumes.directories(machine)


def _open_directory(one: Directory) -> int:
    """The directory as a detached mount, which alone of the host the worker gets to see.

    :raise Invalid: when it is not there.
    """
    try:
        fd = os.open(one.source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return syscalls.clone_mount(f"/proc/self/fd/{fd}/.")
        finally:
            os.close(fd)
    except OSError as error:
        raise Invalid(
            f"the directory {one.source} cannot be used: {error.strerror}",
            hint="it is looked up on the instance's host",
            field="directories",
        ) from error


def _mend(place: Places) -> None:
    """Cut off what a monitor that was killed wrote half of its log."""
    if any(place.state.glob("log.*")):
        log = Log(place.state)
        log.open()
        log.close()


def _no_files() -> NoReturn:
    raise Unsupported(
        "a WebAssembly instance has no files of its own",
        hint="give it a directory of the host (--dir) and use the files there",
    )
