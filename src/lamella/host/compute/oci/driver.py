"""The container driver: OCI images as containers, by an OCI runtime under conmon.

This file is the lifecycle from top to bottom; each step's work lives in the module of its name. What is true of an instance is
read from its bundle, its shim and its cgroup every time, so a driver that starts anew on the same home knows all that the last
one knew.
"""

import asyncio
import os
import shutil
import signal as signals
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from lamella.host.compute.driver import Changed, Home, Limits, Machine, Observed
from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.guest.filing import FileVerbs
from lamella.host.compute.oci import (
    building,
    bundle,
    execution,
    files,
    identity,
    logs,
    mechanisms,
    probe,
    record,
    rootfs,
    shim,
    volumes,
)
from lamella.host.compute.oci.attach import AttachStream
from lamella.host.compute.oci.layout import Place, Places
from lamella.host.compute.oci.namespaces import NamespacePool
from lamella.host.compute.oci.seccomp import profile
from lamella.host.compute.oci.spec import Seccomp
from lamella.host.compute.oci.traffic import traffic
from lamella.host.linux import binaries, processes
from lamella.host.linux.blocking import blocking
from lamella.host.linux.cgroup import ROOT, Cgroup, Cgroups
from lamella.model.contract import Mechanism
from lamella.model.errors import CannotRun, Conflict, LamellaError, NotFound, Unavailable, Unsupported
from lamella.model.host import Capability
from lamella.model.instance import Phase
from lamella.model.signals import signal_number
from lamella.model.stream import ExecSpec, ProcessStream
from lamella.model.usage import LogEntry, Usage

SHIMS = "shims"
KILLED = 128 + signals.SIGKILL
LIVING = (Phase.STARTING, Phase.RUNNING, Phase.PAUSED)


class OciDriver(FileVerbs):
    """Implements :class:`~lamella.host.compute.driver.ComputeDriver`. The process must be in the layer's room."""

    name = "oci"

    def __init__(self, home: Home, changed: Changed) -> None:
        self._home = home
        self._changed = changed
        self._places = Places(home)
        self._pool = NamespacePool(home.mark)
        self._program = files.AgentProgram()
        self._shims: dict[str, shim.Shim] = {}
        self._streams: dict[str, set[AttachStream]] = {}
        self._execs: dict[str, set[execution.ExecStream]] = {}
        self._exec_count = 0
        self._disk_used: dict[str, tuple[float, int]] = {}
        self._cgroups: Cgroups | None = None
        self._tools: shim.Tools | None = None
        self._seccomp: Seccomp | None = None

    # -- the level ---------------------------------------------------------------------------------------------------

    async def open(self) -> list[Capability]:
        """Find the tools, prove that this host has what the walls are made of, keep namespaces ready."""
        try:
            reason = await self._open()
        except LamellaError as error:
            return [Capability(name="compute.container", available=False, reason=str(error))]
        self._pool.fill()
        assert self._tools is not None
        return [
            Capability(name="compute.container", available=True, value=self._tools.runtime_name, reason=reason),
            Capability(
                name="compute.container.cgroup",
                available=True,
                value=f"version {self._groups.version}",
                reason=f"read from {self._groups.root}",
            ),
        ]

    async def _open(self) -> str:
        probe.check_home(self._home)
        tools = shim.Tools(conmon=binaries.tool("conmon"), runtime=binaries.tool("crun", "runc"))
        await blocking(self._places.make)
        if tools.runtime_name == "runc":
            probe.check_path(self._places.instances)
        seccomp = profile(probe.machine())
        for id in await self.inventory():
            await blocking(execution.sweep, self._places.of(id).execs)
        cgroups = Cgroups(ROOT, self._home.mark)
        await blocking(probe.check_cgroups, cgroups)
        await blocking(cgroups.group(SHIMS).create, Limits())
        pair = await self._pool.take()
        try:
            await blocking(probe.check_filesystem, pair, self._home)
        finally:
            await pair.drop()
        self._tools, self._seccomp, self._cgroups = tools, seccomp, cgroups
        return f"{tools.runtime} under {tools.conmon}; an id-mapped overlay was mounted, a cgroup's limits were set and read back"

    async def close(self) -> None:
        for streams in list(self._streams.values()):
            for stream in list(streams):
                await stream.close()
        for execs in list(self._execs.values()):
            for stream in list(execs):
                await stream.close()
        for one in self._shims.values():
            one.close()
        self._shims.clear()
        self._program.close()
        await self._pool.close()

    async def inventory(self) -> set[str]:
        return await blocking(self._places.ids)

    # -- looking -----------------------------------------------------------------------------------------------------

    async def observe(self, id: str) -> Observed | None:
        place = self._places.of(id)
        if not place.bundle.is_dir():
            return None
        machine = record.read(place.machine)
        launched = machine.limits if machine else None
        started = _modified(place.started)
        one = self._shim(place)
        if one is None and not place.exit.exists():
            # Its shim is gone and told nothing: what still runs there has no streams and nobody who will wait for it.
            await blocking(self._end_orphans, id)
        if one is None or place.exit.exists():
            return Observed(
                phase=Phase.STOPPED,
                exit_code=self._exit_code(place),
                started_at=started,
                finished_at=_modified(place.exit),
                launched=launched,
            )
        pid = processes.read_pid(place.pid)
        if pid is None or place.start_fifo.exists():
            return Observed(phase=Phase.STARTING, pid=pid, launched=launched)
        phase = Phase.PAUSED if self._group(id).is_frozen() else Phase.RUNNING
        return Observed(phase=phase, pid=pid, started_at=started, launched=launched)

    def _end_orphans(self, id: str) -> None:
        group = self._group(id)
        with suppress(LamellaError, OSError):
            if group.pids():
                group.kill_all()

    def _exit_code(self, place: Place) -> int | None:
        try:
            code = int(place.exit.read_text())
        except (OSError, ValueError):
            # Nobody wrote down how it ended: its shim was killed, or the host went down. What it left is killed.
            return KILLED if place.started.exists() else None
        return code if 0 <= code <= 255 else KILLED

    def _shim(self, place: Place) -> shim.Shim | None:
        one = self._shims.get(place.id)
        if one is None:
            one = shim.Shim.find(place, self._ended)
            if one is not None:
                self._shims[place.id] = one
        return one

    def _ended(self, one: shim.Shim) -> None:
        if self._shims.get(one.place.id) is one:
            del self._shims[one.place.id]
        self._changed(one.place.id)

    async def _phase(self, id: str) -> Phase | None:
        seen = await self.observe(id)
        return seen.phase if seen else None

    async def _need(self, id: str, *phases: Phase) -> Place:
        """:raise NotFound: when there is no such instance. :raise Conflict: when it is in none of *phases*."""
        phase = await self._phase(id)
        if phase is None:
            raise NotFound(f"there is no container {id} on this host")
        if phase not in phases:
            hint = "resume it first" if phase == Phase.PAUSED else "start it first"
            raise Conflict(f"instance {id} is {phase}", hint=hint)
        return self._places.of(id)

    # -- the lifecycle -----------------------------------------------------------------------------------------------

    async def create(self, machine: Machine) -> None:
        place = self._places.of(machine.id)
        if self._tools is None or self._seccomp is None:
            raise Unsupported("this host runs no containers", hint="lamella doctor says why")
        volumes.check(machine)
        await self._clear(place)
        try:
            await self._prepare(place, machine, self._seccomp)
            await shim.create(
                place, self._places, self._tools, self._home.mark, terminal=machine.terminal, stdin=machine.stdin
            )
        except CannotRun as error:
            await self._clear(place, keep_bundle=True)
            place.exit.write_text(str(error.exit_code))
            if machine.command[0] in error.message:
                raise
            raise CannotRun(f"{machine.command[0]}: {error.message}", exit_code=error.exit_code) from error
        except BaseException:
            await asyncio.shield(self._undo(place))
            raise
        await blocking(volumes.hide, place)
        await blocking(self._group(machine.id).gather)
        self._settle_shim(place)
        if self._shim(place) is None:
            raise Unavailable(f"the shim of {machine.id} died as it was made", hint="try again")

    async def _undo(self, place: Place) -> None:
        """Take back a create that failed; a log with nothing in it is no log."""
        await self._clear(place)
        with suppress(OSError):
            if place.log.stat().st_size == 0:
                place.log.unlink()

    async def _prepare(self, place: Place, machine: Machine, seccomp: Seccomp) -> None:
        pair = await self._pool.take()
        try:
            await blocking(building.build, place, machine, self._group(machine.id), seccomp, pair.pin)
        finally:
            await pair.drop()

    def _settle_shim(self, place: Place) -> None:
        """The shim does not live off the instance's limits, nor in whatever group the daemon is in."""
        pid = processes.read_pid(place.shim_pid)
        if pid is not None:
            for path in self._groups.group(SHIMS).procs_files():
                with suppress(OSError):
                    path.write_text(str(pid))

    async def start(self, id: str) -> None:
        phase = await self._phase(id)
        if phase in (Phase.RUNNING, Phase.PAUSED):
            return
        place = await self._need(id, Phase.STARTING)
        tools = self._needed_tools
        if tools.runtime_name == "crun" and shim.write_start(place):
            place.started.touch()
            return
        code, said = await processes.run(
            [str(tools.runtime), f"--root={self._places.runtime}", "start", id],
            environment=processes.environment(self._home.mark),
        )
        if code != 0:
            raise shim.refusal(said)
        place.started.touch()

    async def stop(self, id: str, *, signal: str, timeout: float) -> None:
        place = self._places.of(id)
        one = self._shim(place)
        if one is None:
            return
        phase = await self._phase(id)
        if phase == Phase.PAUSED:
            await self.resume(id)
        if phase in (Phase.RUNNING, Phase.PAUSED) and timeout > 0:
            self._signal(place, signal_number(signal))
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await one.ended.wait()
                return
        await self._force(place, one)

    async def _force(self, place: Place, one: shim.Shim) -> None:
        """Kill everything inside, and see that the shim gets to write down the end."""
        self._signal(place, signals.SIGKILL)
        await blocking(self._group(place.id).kill_all)
        if await _within(1.0, one.ended):
            return
        # A client that does not read keeps conmon from going on: it has to go.
        for stream in list(self._streams.get(place.id, ())):
            stream.drop()
        if await _within(5.0, one.ended):
            return
        one.kill(signals.SIGKILL)
        await _within(5.0, one.ended)

    async def kill(self, id: str, signal: int) -> None:
        place = await self._need(id, *LIVING)
        self._signal(place, signal)
        if signal == signals.SIGKILL:
            await blocking(self._group(id).thaw)

    def _signal(self, place: Place, number: int) -> None:
        one, pid = self._shim(place), processes.read_pid(place.pid)
        if one is None or pid is None:
            return
        with suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                # Its parent is its shim: a number that was given to somebody else meanwhile is not hit.
                if processes.parent(pid) == one.pid:
                    signals.pidfd_send_signal(pidfd, number)
            finally:
                os.close(pidfd)

    async def pause(self, id: str) -> None:
        if await self._phase(id) != Phase.PAUSED:
            await self._need(id, Phase.RUNNING)
            await blocking(self._group(id).freeze)

    async def resume(self, id: str) -> None:
        if await self._phase(id) != Phase.RUNNING:
            await self._need(id, Phase.PAUSED)
            await blocking(self._group(id).thaw)

    async def update(self, id: str, limits: Limits) -> None:
        await self._need(id, *LIVING)
        await blocking(self._group(id).update, limits)

    async def remove(self, id: str) -> None:
        place = self._places.of(id)
        await self._clear(place)
        place.log.unlink(missing_ok=True)
        Path(f"{place.log}.tmp").unlink(missing_ok=True)

    async def _clear(self, place: Place, *, keep_bundle: bool = False) -> None:
        """End and remove all of a run but its log. Each step may find its work done already."""
        for stream in list(self._execs.pop(place.id, ())):
            await stream.close()
        one = self._shim(place)
        if one is not None:
            await self._force(place, one)
            self._settle_end(one)
        for stream in list(self._streams.pop(place.id, ())):
            await stream.close()
        self._disk_used.pop(place.id, None)
        await blocking(self._wipe, place, keep_bundle)

    def _settle_end(self, one: shim.Shim) -> None:
        one.close()
        if self._shims.get(one.place.id) is one:
            del self._shims[one.place.id]

    def _wipe(self, place: Place, keep_bundle: bool) -> None:
        group = self._group(place.id)
        if group.exists():
            group.remove()
        if place.bundle.exists():
            if not place.exit.exists():
                # Nothing ended in order, so a daemon may have died between starting a shim and hearing of it.
                shim.end_strays(place)
                group.remove()
            rootfs.dismantle(place.bundle)
        shutil.rmtree(place.runtime, ignore_errors=True)
        place.exit.unlink(missing_ok=True)
        for half_written in place.exit.parent.glob(f"{place.id}.*"):
            half_written.unlink(missing_ok=True)
        # The directory goes last: as long as it is there, the instance is in the inventory.
        if not keep_bundle and place.bundle.exists():
            shutil.rmtree(place.bundle)

    # -- streams -----------------------------------------------------------------------------------------------------

    async def exec(self, id: str, spec: ExecSpec) -> ProcessStream:
        place = await self._need(id, Phase.RUNNING)
        if spec.terminal and self._needed_tools.runtime_name == "runc":
            raise Unsupported("runc gives a terminal to no process that it also waits for", hint="install crun")
        machine = self._machine(place)
        who = await blocking(_identify, place, machine.user if spec.user is None else spec.user)
        process = bundle.process(machine, spec, who)
        stream = await execution.execute(self._runtime(id), process, self._exec_folder(place), stdin=spec.stdin)
        stream.limit(spec.timeout)
        self._execs.setdefault(id, set()).add(stream)
        stream.on_close(lambda: self._execs.get(id, set()).discard(stream))
        return stream

    def _exec_folder(self, place: Place) -> Path:
        self._exec_count += 1
        return place.execs / f"{os.getpid()}-{self._exec_count}"

    def _runtime(self, id: str) -> execution.ExecRuntime:
        return execution.ExecRuntime(tools=self._needed_tools, root=self._places.runtime, id=id, mark=self._home.mark)

    async def attach(self, id: str) -> ProcessStream:
        place = await self._need(id, *LIVING)
        one = self._shim(place)

        async def ending() -> int | None:
            if one is not None:
                await one.ended.wait()
            return self._exit_code(place)

        stream = AttachStream(
            place,
            terminal=self._machine(place).terminal,
            ending=ending,
            signal=lambda number: self.kill(id, number),
        )
        self._streams.setdefault(id, set()).add(stream)
        stream.on_close(lambda: self._streams.get(id, set()).discard(stream))
        return stream

    async def logs(
        self, id: str, *, follow: bool = False, tail: int | None = None, since: datetime | None = None
    ) -> AsyncIterator[LogEntry]:
        place = self._places.of(id)
        if not place.bundle.is_dir():
            raise NotFound(f"there is no container {id} on this host")
        one = self._shim(place) if follow else None
        ended = one.ended if one is not None else None
        async for entry in logs.entries(place.log, ended=ended, tail=tail, since=since):
            yield entry

    # -- files -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _files(self, id: str) -> AsyncGenerator[GuestClient]:
        place = await self._need(id, Phase.RUNNING, Phase.STARTING)
        machine = self._machine(place)
        root = identity.Identity(uid=0, gid=0)
        spec = ExecSpec(command=files.COMMAND, working_directory="/")
        process = bundle.process(machine, spec, root)
        async with files.agent(self._runtime(id), process, self._exec_folder(place), self._program) as client:
            yield client

    # -- figures -----------------------------------------------------------------------------------------------------

    async def usage(self, id: str) -> Usage:
        place = self._places.of(id)
        machine = record.read(place.machine)
        if machine is None:
            raise NotFound(f"there is no container {id} on this host")
        now = datetime.now(UTC)
        disk = await self._used(id, machine.volume.path)
        if self._shim(place) is None:
            return Usage(at=now, disk_used=disk)
        group = self._group(id)
        used = group.usage()
        pid = processes.read_pid(place.pid)
        received, sent = traffic(pid) if pid is not None and machine.nic is not None else (None, None)
        return Usage(
            at=now,
            cpu_seconds=used.cpu_seconds,
            memory=used.memory,
            memory_limit=group.read_limits().memory,
            processes=used.processes,
            disk_used=disk,
            received=received,
            sent=sent,
        )

    async def _used(self, id: str, disk: Path) -> int:
        """Counting walks the tree, so an answer serves for ten seconds."""
        known = self._disk_used.get(id)
        if known is None or time.monotonic() - known[0] > 10:
            known = (time.monotonic(), await blocking(rootfs.disk_used, disk))
            self._disk_used[id] = known
        return known[1]

    async def mechanisms(self, id: str) -> list[Mechanism]:
        if await self._phase(id) not in (Phase.RUNNING, Phase.PAUSED):
            return []
        pid = processes.read_pid(self._places.of(id).pid)
        if pid is None:
            return []
        machine = record.read(self._places.of(id).machine)
        found = await blocking(mechanisms.read, pid, self._group(id))
        return found + await blocking(volumes.mechanisms, pid, machine.volumes if machine else [])

    async def netns(self, id: str) -> Path:
        """The network namespace of a created instance, as a file that can be joined.

        :raise NotFound: when it has none.
        """
        place = self._places.of(id)
        if not place.net_namespace.exists():
            raise NotFound(f"instance {id} has no network namespace on this host")
        return place.net_namespace

    # -- what was found by open --------------------------------------------------------------------------------------

    @property
    def _groups(self) -> Cgroups:
        if self._cgroups is None:
            self._cgroups = Cgroups(ROOT, self._home.mark)
        return self._cgroups

    @property
    def _needed_tools(self) -> shim.Tools:
        if self._tools is None:
            raise Unsupported("this host runs no containers", hint="lamella doctor says why")
        return self._tools

    def _group(self, id: str) -> Cgroup:
        return self._groups.group(id)

    def _machine(self, place: Place) -> Machine:
        machine = record.read(place.machine)
        if machine is None:
            raise NotFound(f"there is no container {place.id} on this host")
        return machine


def _modified(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return None


async def _within(seconds: float, event: asyncio.Event) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def _identify(place: Place, user: str) -> identity.Identity:
    root = os.open(place.rootfs, os.O_PATH | os.O_DIRECTORY)
    try:
        return identity.look_up(root, user)
    finally:
        os.close(root)
