"""Keeping the memory of a machine that runs, and beginning with one that was kept (:class:`KeepsMemory`), whatever QEMU it is.

What is kept is copied to a second QEMU that never runs: a live migration over a socket pair, so that its memory is whole and of one instant
however much of it was shared with a template. What the second one has is then sealed. A level says how its receiver is started and who
inside makes the guest hold still.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from lamella.host.compute.driver import Home, Limits, Machine, Observed, Remembered
from lamella.host.compute.qemu import mechanisms, memory_file, passing
from lamella.host.compute.qemu.driver import QemuDriver
from lamella.host.compute.qemu.memory_file import MEMORY
from lamella.host.compute.qemu.monitor import Monitor, Refused
from lamella.host.compute.qemu.places import ExitRecord, Places
from lamella.host.compute.qemu.process import KILLED, QemuProcess, end_process, end_task
from lamella.host.compute.qemu.shelf import Frozen, Shelf
from lamella.host.linux.cgroup import ROOT, Cgroup, Cgroups
from lamella.model.contract import Mechanism
from lamella.model.errors import Conflict, LamellaError, NotFound, Unavailable, Unsupported
from lamella.model.instance import Phase

# The last uid of an instance's range, which nothing of the instance uses.
LAST_ID = 65535
SUSPENDED = "suspended-"
HELD = "held"

S = TypeVar("S", bound=QemuProcess)


class Receiver(msgspec.Struct, kw_only=True, frozen=True):
    """The QEMU that takes over a machine and never runs.

    ``memory`` is the machine's in bytes, ``limits`` are those of the group around it, ``about`` is what is written down of what it takes
    over. ``start`` starts it in a group, with these descriptors beside its own, and tells its pid; ``plug`` then gives it the devices that
    came to the machine while it ran.
    """

    memory: int
    limits: Limits
    about: dict[str, str]
    start: Callable[[Places, Cgroup, dict[int, int]], Awaitable[int]]
    plug: Callable[[Monitor], Awaitable[None]] | None = None


class KeepVerbs(QemuDriver[S]):
    """:class:`KeepsMemory`, by what a level fills in."""

    _shelf: Shelf
    _keepers: dict[str, asyncio.Lock]
    _releasing: dict[str, asyncio.Task[None]]

    # --- what a level fills in

    async def _receiver(self, session: S, machine: Machine) -> Receiver:
        """What takes the running *machine* over.

        :raise Unsupported: when it cannot be kept.
        """
        raise NotImplementedError

    def _about(self, machine: Machine, kept: dict[str, str]) -> dict[str, str]:
        """What would be written down of *machine*, had it been kept as *kept* was.

        :raise Unsupported: when it cannot begin so.
        """
        raise NotImplementedError

    def _same(self, one: Machine, other: Machine) -> bool:
        """Whether one that was made as *one* can be *other*."""
        raise NotImplementedError

    def _live(self, session: S) -> bool:
        """Whether it may run while most of its memory is sent; it stands still from the beginning otherwise."""
        return True

    async def _hold(self, session: S, *, goes_on: bool) -> bool:
        """Have what runs inside hold still, if it *goes_on* or if the level wants to; whether it does."""
        raise NotImplementedError

    async def _release(self, session: S) -> None:
        """Have what holds still inside go on; what does not is fine."""
        raise NotImplementedError

    async def _renew(self, session: S, machine: Machine, *, again: bool) -> datetime | None:
        """Tell the guest of *session*, whose processors run since now, what it is. *again*: somebody may have done so already. Returns
        since when the machine's own work runs; ``None`` is that it does not.

        :raise Unavailable: when nobody answers inside who has to.
        """
        raise NotImplementedError

    async def _told(self, session: S, machine: Machine) -> None:
        """One that rested goes on: tell its guest what has changed."""
        await self._renew(session, machine, again=True)

    async def _rehearse(self, session: S) -> None:
        """Have the guest do once what it will do when it is started."""

    def _woken(self, session: S) -> None:
        """It went on, and that is written down."""

    # --- keeping

    @contextlib.asynccontextmanager
    async def remember(self, id: str, memory: str) -> AsyncGenerator[Remembered]:
        """See ``KeepsMemory``."""
        told = Remembered()
        async with self._keeping(id):
            session = await self._running(id)
            if session.process.rests:
                await self._awake(session)
            if session.paused and not session.process.asleep:
                raise Conflict(
                    f"the {self.noun} {id} is paused, and cannot be asked to hold still", hint="resume it first"
                )
            async with self._copy(session, memory, told):
                yield told

    def let_go(self) -> int:
        """See ``KeepsMemory``."""
        return self._shelf.let_go()

    async def forget(self, memory: str) -> None:
        """See ``KeepsMemory``."""
        await self._shelf.remove(memory)

    async def suspend(self, id: str) -> None:
        """See ``KeepsMemory``."""
        async with self._keeping(id), self._lock(id):
            session = await self._session(id)
            if session is None:
                return
            if not session.process.suspended:
                if session.process.started_at is None:
                    raise Conflict(f"the {self.noun} {id} has not begun to run", hint="stop it")
                if session.paused:
                    await session.resume()
                async with self._copy(session, SUSPENDED + id, Remembered(), goes_on=False):
                    pass
                await session.write(suspended=True)
            session.kill()
            await session.gone.wait()
            # Its room is what it was suspended for.
            self._shelf.rest(SUSPENDED + id)

    async def remove(self, id: str) -> None:
        await super().remove(id)
        await self._shelf.remove(SUSPENDED + id)

    async def take(self, machine: Machine) -> None:
        """See ``KeepsMemory``."""
        async with self._lock(machine.id):
            session = await self._running(machine.id)
            known = session.places.machine()
            if known is None or session.process.started_at is not None:
                raise Conflict(f"{machine.id} does not wait to be told what it is")
            if not self._same(known, machine):
                raise Conflict(f"{machine.id} was made as another machine", hint="a copy is as large as its template")
            told = msgspec.structs.replace(machine, memory=known.memory, fresh=known.fresh)
            await asyncio.to_thread(session.places.write, told)

    @contextlib.asynccontextmanager
    async def _copy(self, session: S, memory: str, told: Remembered, *, goes_on: bool = True) -> AsyncGenerator[None]:
        machine = self._known_machine(session)
        receiver = await self._receiver(session, machine)
        monitor = await session.monitor()
        began, held, kept = 0.0, False, False

        async def hold() -> None:
            nonlocal began, held
            began = began or time.perf_counter()
            held = await self._hold(session, goes_on=goes_on)

        state = memory_file.make("state", 0)
        session.copying = True
        try:
            async with self._sent(session, receiver, memory, hold) as (other, pages):
                yield
                await passing.finish(monitor)
                kept = True
                await asyncio.shield(self._go_on(session, stays=not goes_on))
                told.pause = time.perf_counter() - began
                await passing.received(other)
                await passing.ignore_shared(other)
                await passing.save(other, state)
            await asyncio.to_thread(memory_file.punch_zeros, pages)
            made = await self._shelf.keep(memory, pages, state, receiver.about | {HELD: "yes" if held else ""})
            told.size = made.size
        except BaseException:
            if not (kept and goes_on):
                await asyncio.shield(self._go_on(session, stays=False))
            raise
        finally:
            os.close(state)
        os.close(pages)

    @contextlib.asynccontextmanager
    async def _sent(
        self, session: S, receiver: Receiver, memory: str, hold: Callable[[], Awaitable[None]]
    ) -> AsyncGenerator[tuple[Monitor, int]]:
        """A :meth:`_receiving` to which all but the last was sent. The machine is held near the end; when the end comes sooner, all is sent
        again, held from the beginning."""
        monitor = await session.monitor()
        async with contextlib.AsyncExitStack() as stack:
            other, pages = await stack.enter_async_context(self._receiving(receiver, memory))
            try:
                if not self._live(session):
                    await hold()
                    await monitor.stop()
                    await _send(monitor, other, None)
                else:
                    await _send(monitor, other, hold)
            except passing.TooSoon:
                await self._run_on(session)
                os.close(pages)
                await stack.aclose()
                other, pages = await stack.enter_async_context(self._receiving(receiver, memory))
                await hold()
                await _send(monitor, other, None)
            yield other, pages

    @contextlib.asynccontextmanager
    async def _receiving(self, receiver: Receiver, memory: str) -> AsyncGenerator[tuple[Monitor, int]]:
        """A QEMU that takes over what it is sent and never runs: its monitor, and the file that is its memory, which the caller closes
        when nothing failed."""
        places = Places(self._home, _level(self.name), memory)
        group = Cgroups(ROOT, self._home.mark).group(f"{_level(self.name)}-{memory}")
        pages = memory_file.make("memory", receiver.memory)
        try:
            await asyncio.to_thread(places.prepare)
            await asyncio.to_thread(group.create, receiver.limits)
            pid = await receiver.start(places, group, {MEMORY: pages})
            try:
                monitor = await Monitor.connect(places.run / "monitor")
                try:
                    if receiver.plug is not None:
                        await receiver.plug(monitor)
                    yield monitor, pages
                finally:
                    await monitor.close()
            finally:
                await asyncio.shield(end_process(pid))
        except BaseException:
            os.close(pages)
            raise
        finally:
            await asyncio.to_thread(group.remove)
            await asyncio.to_thread(places.remove)

    async def _go_on(self, session: S, *, stays: bool) -> None:
        """It runs again, and its processes with it; with *stays* it stands still for good."""
        try:
            if not stays:
                await self._run_on(session)
                await self._release(session)
        except Unavailable:
            # It ended meanwhile; whoever follows it knows.
            return
        finally:
            session.copying = stays

    async def _run_on(self, session: S) -> None:
        with contextlib.suppress(LamellaError):
            await passing.cancel(await session.monitor())
        await session.resume()

    # --- beginning

    @contextlib.asynccontextmanager
    async def _kept(self, machine: Machine) -> AsyncGenerator[Frozen | None]:
        """The memory that *machine* begins with, if it begins with one.

        :raise NotFound: when it is gone. :raise Unsupported: when it was kept of another machine, or on another kernel or QEMU.
        """
        if not machine.memory:
            yield None
            return
        async with self._shelf.using(machine.memory) as frozen:
            kept = frozen.made.about
            wanted = self._about(machine, kept)
            for what in ("made of", "hardware"):
                if kept.get(what) != wanted[what]:
                    raise Unsupported(
                        f"this memory is of {kept.get(what)}, and here is {wanted[what]}",
                        hint="begin anew without it: lamella restart boots it",
                    )
            yield frozen

    async def _awake(self, session: S) -> None:
        """Let what began with a memory go on, as the machine that is written down now.

        :raise Unavailable: when its guest does not answer.
        """
        async with session.waking:
            if session.process.rests:
                await session.resume()
                await self._told(session, self._known_machine(session))
                await session.write(rests=False)
                return
            if not session.process.asleep:
                return
            machine = self._known_machine(session)
            again = await (await session.monitor()).status() == "running"
            await session.resume()
            began = await self._renew(session, machine, again=again)
            await session.write(asleep=False, ready=True, started_at=began)
            self._woken(session)
            if machine.memory.startswith(SUSPENDED):
                await self._shelf.remove(machine.memory)

    async def _rest(self, session: S) -> None:
        """Have what began with a memory be the machine that is written down, and stand still until it is told its command: what a start
        needs was done once then, and is quick the second time."""
        await self._awake(session)
        await self._rehearse(session)
        await session.pause()
        await session.write(rests=True)

    def _known_machine(self, session: S) -> Machine:
        machine = session.places.machine()
        if machine is None:
            raise NotFound(f"nothing is written down of {session.places.id}", hint="start it again")
        return machine

    # --- what was kept and does not run

    def _ended(self, places: Places) -> Observed:
        """What is known of one that does not run."""
        record = places.process()
        if record is not None and record.suspended and self._shelf.about(SUSPENDED + places.id) is not None:
            return Observed(
                phase=Phase.SUSPENDED,
                started_at=record.started_at,
                accelerator=record.accelerator,
                board_type=record.board_type,
            )
        return self._stopped(places)

    def _beginning(self, session: S) -> list[Mechanism]:
        """Whose pages it shares. Blocks for a moment."""
        began = session.process.began
        made = self._shelf.about(began) if began else None
        return mechanisms.of_beginning(began, made.about.get("owner") if made else None, session.process.pid)

    async def _drop(self, id: str) -> None:
        """What is suspended is over: its memory goes, and that it ended is written down."""
        places = self._places(id)
        record = places.process()
        if record is not None and record.suspended:
            end = ExitRecord(exit_code=KILLED, started_at=record.started_at, finished_at=datetime.now(UTC))
            await asyncio.to_thread(places.write, end)
            await asyncio.to_thread(places.write, msgspec.structs.replace(record, suspended=False))
            await self._shelf.remove(SUSPENDED + id)

    async def _take_over(self, session: S) -> bool:
        """Go on where a daemon that died was keeping the memory of *session*; whether it still runs."""
        if session.process.suspended:
            # Its memory is safe; who kept it died before it could end it.
            session.kill()
            return False
        if session.process.asleep or session.process.rests:
            return True
        with contextlib.suppress(LamellaError):
            if await passing.underway(await session.monitor()):
                # Who copied its memory died.
                await self._run_on(session)
            task = asyncio.create_task(self._let_go(session), name=f"release {session.places.id}")
            self._releasing[session.places.id] = task
            task.add_done_callback(lambda _: self._releasing.pop(session.places.id, None))
        return True

    async def _let_go(self, session: S) -> None:
        """Nothing of it holds still for a copy that nobody makes any more."""
        with contextlib.suppress(LamellaError):
            async with self._keeping(session.places.id):
                await self._release(session)

    async def _released(self, id: str) -> None:
        """Wait until :meth:`_let_go` has done what it can."""
        if (task := self._releasing.get(id)) is not None:
            await asyncio.wait([task])

    async def _stop_keeping(self) -> None:
        """For the end of a driver."""
        for task in list(self._releasing.values()):
            await end_task(task)

    def _keeping(self, id: str) -> asyncio.Lock:
        """Held while a memory is kept."""
        return self._keepers.setdefault(id, asyncio.Lock())


def forget_receivers(home: Home, level: str) -> None:
    """End what a daemon that died left of one that took over a machine of *level*."""
    groups = Cgroups(ROOT, home.mark)
    for id in groups.ids():
        if id.startswith(f"{_level(level)}-"):
            groups.group(id).remove()
    for place in (home.state, home.run):
        shutil.rmtree(place / _level(level), ignore_errors=True)


def _level(level: str) -> str:
    return f"{level}-memory"


async def _send(monitor: Monitor, receiver: Monitor, hold: Callable[[], Awaitable[None]] | None) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        await passing.receive(receiver, theirs.fileno())
        try:
            await passing.send(monitor, ours.fileno(), hold)
        except Refused as error:
            raise Unsupported(f"QEMU cannot keep the memory of this machine: {error.reason}") from error
