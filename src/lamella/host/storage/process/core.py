"""Both processes and what is open in them: kept alive, adopted, brought back.

What is open is written down before it is opened and forgotten after it is closed. When one of the two processes ends unasked, it is
started again and made to be what is written down, with the same ways in; verbs wait for that.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.linux import binaries
from lamella.host.storage.process import jobs, nodes, strays
from lamella.host.storage.process.disks import Disks
from lamella.host.storage.process.doors import Doors
from lamella.host.storage.process.qsd import Qsd, kill, role_of, running
from lamella.host.storage.process.records import Opened, Places
from lamella.model.errors import Conflict, LamellaError, NotFound, Unavailable

log = logging.getLogger("lamella.host.storage")

Heard = Callable[[str, str, str], None]
Keys = Callable[[str], Awaitable[bytes]]
# Seconds after which starting a process that did not start is tried again.
_AGAIN = 1.0
# Seconds for which the locks of a process that was killed may outlive it.
_LOCKS = 20.0


class Core:
    """One a layer. *keys* is asked for a volume's key when it has to be opened again by a daemon that was not given it."""

    def __init__(self, home: Home, keys: Keys | None = None) -> None:
        self.home = home
        self.places = Places(home)
        rights = ["dac_override"]
        self.disks = Disks(self.places.top, self._process("disks", rights), self._process("spare", rights))
        self.doors = Doors(self.places, self._process("doors", ["sys_admin"]))
        # Those of machines, by instance.
        self.machines: dict[str, Doors] = {}
        self.opened: dict[str, Opened] = {}
        self._keys = keys
        self.given: dict[str, bytes] = {}
        self._heard: list[Heard] = []
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._settings: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._writes: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._starting = asyncio.Lock()
        self._revival: asyncio.Task[None] | None = None
        self._closed = False
        # Of ours, under way: their own tasks see to them.
        self.jobs: set[str] = set()

    def doors_of(self, opened: Opened) -> Doors:
        """The process that serves it."""
        if not opened.machine:
            return self.doors
        if opened.machine not in self.machines:
            process = self._process(f"machine-{nodes.tag(opened.machine)}", [])
            self.machines[opened.machine] = Doors(self.places, process, opened.machine)
        return self.machines[opened.machine]

    @property
    def all_doors(self) -> list[Doors]:
        return [self.doors, *self.machines.values()]

    def _process(self, role: str, capabilities: list[str]) -> Qsd:
        return Qsd(self.home, self.home.run / "storage", role, capabilities, lambda: self._gone(role))

    # --- its life

    async def open(self) -> str:
        self._closed = False
        try:
            binaries.tool("qemu-storage-daemon")
            binaries.tool("setpriv")
        except Unavailable as error:
            return str(error)
        await asyncio.to_thread(self.places.prepare)
        self.opened = await asyncio.to_thread(self.places.read_all)
        for opened in self.opened.values():
            self.doors_of(opened)
        disks, doors = await self.disks.adopt(), await self.doors.process.adopt()
        for machine in self.machines.values():
            await machine.process.adopt()
        await self.disks.spare.adopt()
        await self._end_strays()
        if not disks:
            self._tell_unflushed()
        if self.opened or disks or doors:
            try:
                await self._restore(adopted=True)
            except Unavailable:
                # One that answered may hang over what it was asked next (a connection to a process that is gone, drained for ever).
                if not await self.end_hung():
                    raise
                await self._restore(adopted=True)
        return ""

    async def end_hung(self) -> bool:
        """Kill every process that answers nothing; whether there was one. They are started again."""
        processes = [self.disks.process, *(doors.process for doors in self.all_doors)]
        hung = [await process.end_if_hung() for process in processes]
        if self._revival is not None:
            await asyncio.wait([self._revival])
        return any(hung)

    async def _end_strays(self) -> None:
        """What a killed daemon started for one thing (luks.py) still has its volume open."""
        ours = {self.disks.process.pid, self.disks.spare.pid, *(doors.process.pid for doors in self.all_doors)}
        for pid in await asyncio.to_thread(running, self.home.mark, self.places.top) - ours:
            log.warning(
                "a storage process (%d, %s) that nobody waits for is ended", pid, await asyncio.to_thread(role_of, pid)
            )
            await asyncio.to_thread(kill, pid)
        await asyncio.to_thread(self.places.forget_shops)

    async def close(self) -> None:
        self._closed = True
        if self._revival is not None:
            self._revival.cancel()
            with suppress(asyncio.CancelledError):
                await self._revival
        for doors in self.all_doors:
            await doors.process.close()
        await self.disks.process.close()
        await self.disks.spare.close()

    async def end_processes(self) -> None:
        self._closed = True
        for doors in self.all_doors:
            await doors.process.end()
        await self.disks.end()

    def on_event(self, heard: Heard) -> None:
        self._heard.append(heard)

    def tell(self, kind: str, id: str, sentence: str) -> None:
        for heard in self._heard:
            heard(kind, id, sentence)

    @property
    def closed(self) -> bool:
        return self._closed

    # --- when a process is gone

    def _gone(self, role: str) -> None:
        if self._closed or not self.opened or role == "spare":
            return
        self.tell("storage.restarted", "", f"the storage process ({role}) ended; it is started again")
        if role == "disks":
            self._tell_unflushed()
        if self._revival is None or self._revival.done():
            self._revival = asyncio.create_task(self._revive(), name="storage revival")

    def _tell_unflushed(self) -> None:
        """What a layer was given lies in the file at once, but where in the file is written when somebody flushes (qcow2's tables)."""
        for id, opened in self.opened.items():
            if not opened.read_only and opened.node["driver"] == "qcow2":
                what = "was written to it and not flushed may be lost, as after a power cut; no later flush says so"
                self.tell("volume.unflushed", id, f"the storage process ended: what {what}")

    async def _revive(self) -> None:
        while True:
            try:
                await self._restore()
                return
            except LamellaError as error:
                log.error("the storage process cannot be brought back yet: %s", error)
                await asyncio.sleep(_AGAIN)

    async def _restore(self, *, adopted: bool = False) -> None:
        """Start what does not run, and make it be what is written down. Only when it is *adopted*, nothing of ours is under way."""
        async with self._starting:
            await self._start()
            await self._settle_jobs()
            for id in list(self.opened):
                await self._settle(id)
            if adopted:
                for doors in self.all_doors:
                    await strays.drop(
                        doors.monitor, [one for one in self.opened.values() if self.doors_of(one) is doors]
                    )
                await strays.drop(self.disks.monitor, self.opened.values())
            for id in list(self.opened):
                try:
                    await self._reopen_after(id)
                    if adopted and self.opened[id].pressed:
                        await self.doors_of(self.opened[id]).reopen(await self.change(id, pressed=0))
                except LamellaError as error:
                    if not (self.disks.process.here and all(doors.process.here for doors in self.all_doors)):
                        raise
                    log.error("volume %s cannot be opened again: %s", id, error)
                    self.tell("volume.error", id, f"volume {id} cannot be opened again: {error}")
            await self._start_spare()

    async def _reopen_after(self, id: str) -> None:
        """The kernel may hold the locks of a killed process for a moment more: what was under way in io_uring has to end first."""
        end = time.monotonic() + _LOCKS
        while True:
            try:
                await self.reopen(self.opened[id])
                return
            except Conflict:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.05)

    async def _start_spare(self) -> None:
        if not self.disks.spare.here:
            try:
                await self.disks.spare.start()
            except LamellaError as error:
                log.warning("there is no spare storage process: %s", error)

    async def _start(self) -> None:
        if not self.disks.process.here:
            await self.disks.start()
        for doors in self.all_doors:
            if not doors.process.here:
                await doors.start()

    async def _settle_jobs(self) -> None:
        """Jobs whose daemon is gone: one whose result is written down already is finished, the others never were."""
        monitor = self.disks.monitor
        written = {opened.job for opened in self.opened.values()}
        for job in await monitor.ask(list[jobs.Job], "query-jobs"):
            if job.status == "pending" and job.id in written:
                await monitor.execute("job-finalize", {"id": job.id})
                await jobs.gone(monitor, job.id)
            elif job.id not in self.jobs:
                await jobs.cancel(monitor, job.id)
        for doors in self.all_doors:
            for job in await doors.monitor.ask(list[jobs.Job], "query-jobs"):
                if job.id not in self.jobs:
                    await jobs.cancel(doors.monitor, job.id)
        for opened in list(self.opened.values()):
            if opened.job and opened.job not in self.jobs:
                await self.write(msgspec.structs.replace(opened, job=""))

    async def _settle(self, id: str) -> None:
        """A switch was under way when we or ``disks`` ended: find out what became of it."""
        opened = self.opened[id]
        if opened.entering is None:
            return
        entered = nodes.over(opened.node, opened.entering)
        try:
            done = await self.disks.standing(id) == nodes.layer_name(id, nodes.key_of(entered))
        except LamellaError:
            # Whether it was written to, nobody can tell any more; an empty layer on top changes nothing.
            done = opened.entering.path.exists()
        await self.write(msgspec.structs.replace(opened, node=entered if done else opened.node, entering=None))

    async def reopen(self, opened: Opened) -> None:
        if opened.parked:
            return
        await self.disks.open(opened.id, opened.node, read_only=opened.read_only)
        doors = self.doors_of(opened)
        await doors.open(opened, await self.key(opened))
        for door in opened.doors:
            await doors.export(opened, door)

    async def leave_machine(self, machine: str) -> None:
        """End the process of one that has no volumes any more."""
        async with self._starting:
            doors = self.machines.get(machine)
            if doors is not None and all(one.machine != machine for one in self.opened.values()):
                await doors.process.end()
                del self.machines[machine]
                await asyncio.to_thread(self.places.forget_socket, machine)

    async def key(self, opened: Opened) -> bytes:
        if not opened.encrypted or opened.id in self.given:
            return self.given.get(opened.id, b"")
        return await self._keys(opened.id) if self._keys is not None else b""

    @property
    def revived(self) -> bool:
        """Nothing is being brought back at the moment."""
        processes = (self.disks.process, *(doors.process for doors in self.all_doors))
        here = all(process.here and process.pid for process in processes)
        return here and (self._revival is None or self._revival.done())

    # --- for the verbs

    async def ready(self) -> None:
        """Both processes run.

        :raise Unavailable: when they cannot be started.
        """
        while self._revival is not None and not self._revival.done():
            await asyncio.wait([self._revival])
        async with self._starting:
            await self._start()
            await self._start_spare()

    @asynccontextmanager
    async def turn(self, *ids: str) -> AsyncGenerator[None, None]:
        """One verb at a time for each volume."""
        async with self.long_turn(*ids), _taken(self._settings, ids):
            yield

    @asynccontextmanager
    async def long_turn(self, *ids: str) -> AsyncGenerator[None, None]:
        """As :meth:`turn`, but limits are set and writers are held meanwhile: see :meth:`change`."""
        async with _taken(self._turns, ids):
            await self.ready()
            yield

    @asynccontextmanager
    async def setting(self, id: str) -> AsyncGenerator[None, None]:
        """To limit or hold a volume. A job that ends never waits for this: what is held may wait for the end of the job."""
        async with _taken(self._settings, [id]):
            await self.ready()
            yield

    def known(self, id: str) -> Opened:
        """:raise NotFound: when it is not open."""
        if id not in self.opened:
            raise NotFound(f"volume {id} is not open in the storage process")
        return self.opened[id]

    async def write(self, opened: Opened) -> None:
        """Note it, durably."""
        await asyncio.to_thread(self.places.write, opened)
        self.opened[opened.id] = opened

    async def regroup(self, id: str, **fields: int) -> None:
        """Note that it is held or pressed, or is not any more, and have it so when this returns."""
        async with self.setting(id):
            opened = await self.change(id, **fields)
            await self.doors_of(opened).reopen(opened)

    async def change(self, id: str, **fields: Any) -> Opened:
        """Note *fields* alone, whatever else is changed at the same time, by a job and by whoever sets limits."""
        async with _taken(self._writes, [id]):
            opened = msgspec.structs.replace(self.known(id), **fields)
            await self.write(opened)
            return opened


@asynccontextmanager
async def _taken(locks: Mapping[str, asyncio.Lock], ids: Iterable[str]) -> AsyncGenerator[None, None]:
    """The locks of all these, taken in one order, so that no two wait for each other."""
    async with AsyncExitStack() as stack:
        for id in sorted(set(ids)):
            await stack.enter_async_context(locks[id])
        yield
