"""Keeping the memory of a microVM that runs, and beginning with one that was kept (:class:`KeepsMemory`).

What is kept is copied, while the guest's processes are held, to a second QEMU that never runs: a live migration over a socket pair, so that
its memory is whole and of one instant however much of it was shared with a template. What the second one has is then sealed.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime

import msgspec

from lamella.host.compute.driver import Machine, Remembered
from lamella.host.compute.guest.setup import GuestIdentity, GuestPhase
from lamella.host.compute.microvm import arguments, launching
from lamella.host.compute.microvm.host import HostParts
from lamella.host.compute.microvm.identity import network_of
from lamella.host.compute.microvm.session import BOOT_DEADLINE, Session
from lamella.host.compute.microvm.template import Shape, about, fits
from lamella.host.compute.qemu import memory_file, passing
from lamella.host.compute.qemu.driver import QemuDriver
from lamella.host.compute.qemu.memory_file import MEMORY
from lamella.host.compute.qemu.monitor import Monitor
from lamella.host.compute.qemu.places import Places
from lamella.host.compute.qemu.process import end_process
from lamella.host.compute.qemu.shelf import Frozen, Shelf
from lamella.host.compute.qemu.size import group_limits
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.linux.spare_tap import spare_tap
from lamella.model.errors import Conflict, LamellaError, NotFound, Unavailable, Unsupported

# The last uid of an instance's range, which nothing of the instance uses.
LAST_ID = 65535
SUSPENDED = "suspended-"


class KeepVerbs(QemuDriver[Session]):
    """:class:`KeepsMemory`. A driver says what a machine's hardware is like (:meth:`_shape_now`)."""

    _shelf: Shelf

    def _ready(self) -> HostParts:
        raise NotImplementedError

    def _shape_now(self, machine: Machine) -> Shape:
        """What decides whether a memory of *machine* fits."""
        raise NotImplementedError

    # --- keeping

    @contextlib.asynccontextmanager
    async def remember(self, id: str, memory: str) -> AsyncGenerator[Remembered]:
        """See ``KeepsMemory``."""
        told = Remembered()
        async with self._keeping(id):
            session = await self._running(id)
            if session.paused and not session.process.asleep:
                raise Conflict(f"the microVM {id} is paused, and cannot be asked to hold still", hint="resume it first")
            async with self._copy(session, memory, told):
                yield told

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
                    raise Conflict(f"the microVM {id} has not begun to run", hint="stop it")
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
            if not fits(self._shape_now(known), self._shape_now(machine)):
                raise Conflict(f"{machine.id} was made as another machine", hint="a copy is as large as its template")
            told = msgspec.structs.replace(machine, memory=known.memory, fresh=known.fresh)
            await asyncio.to_thread(session.places.write, told)

    @contextlib.asynccontextmanager
    async def _copy(
        self, session: Session, memory: str, told: Remembered, *, goes_on: bool = True
    ) -> AsyncGenerator[None]:
        machine = session.places.machine()
        if machine is None:
            raise NotFound(f"nothing is written down of {session.places.id}", hint="start it again")
        host, shape = self._ready(), self._shape_now(machine)
        monitor = await session.monitor()
        guest = await session.guest(timeout=5)
        began, kept = 0.0, False

        async def hold() -> None:
            nonlocal began
            began = began or time.perf_counter()
            await guest.hold(None)

        state = memory_file.make("state", 0)
        session.copying = True
        try:
            async with self._sent(session, host, machine, shape, memory, hold) as (receiver, pages):
                yield
                await passing.finish(monitor)
                kept = True
                await asyncio.shield(_go_on(session, stays=not goes_on))
                told.pause = time.perf_counter() - began
                await passing.received(receiver)
                await passing.ignore_shared(receiver)
                await passing.save(receiver, state)
            await asyncio.to_thread(memory_file.punch_zeros, pages)
            made = await self._shelf.keep(memory, pages, state, about(shape, host))
            told.size = made.size
        except BaseException:
            if not (kept and goes_on):
                await asyncio.shield(_go_on(session, stays=False))
            raise
        finally:
            os.close(state)
        os.close(pages)

    @contextlib.asynccontextmanager
    async def _sent(
        self,
        session: Session,
        host: HostParts,
        machine: Machine,
        shape: Shape,
        memory: str,
        hold: Callable[[], Awaitable[None]],
    ) -> AsyncGenerator[tuple[Monitor, int]]:
        """A :meth:`_receiver` to which all but the last was sent. The machine is held near the end; when the end comes sooner, all is sent
        again, held from the beginning."""
        monitor = await session.monitor()
        async with contextlib.AsyncExitStack() as stack:
            receiver, pages = await stack.enter_async_context(self._receiver(host, machine, shape, memory))
            try:
                await _send(monitor, receiver, hold)
            except passing.TooSoon:
                await run_on(session)
                os.close(pages)
                await stack.aclose()
                receiver, pages = await stack.enter_async_context(self._receiver(host, machine, shape, memory))
                await hold()
                await _send(monitor, receiver, None)
            yield receiver, pages

    @contextlib.asynccontextmanager
    async def _receiver(
        self, host: HostParts, machine: Machine, shape: Shape, memory: str
    ) -> AsyncGenerator[tuple[Monitor, int]]:
        """A QEMU that takes over what it is sent and never runs: its monitor, and the file that is its memory, which the caller closes
        when nothing failed."""
        hardware = msgspec.structs.replace(shape.hardware, empty_root=shape.root, incoming=True)
        places = Places(self._home, "template", memory)
        group = Cgroups(ROOT, self._home.mark).group(f"memory-{memory}")
        pages = memory_file.make("memory", hardware.size.memory)
        await asyncio.to_thread(places.prepare)
        try:
            with contextlib.ExitStack() as stack:
                limits = group_limits(hardware.size.limits, hardware.size, host.accelerator.name)
                await asyncio.to_thread(group.create, limits)
                files = {MEMORY: pages}
                if hardware.mac is not None:
                    for fd in (taps := await asyncio.to_thread(spare_tap)):
                        stack.callback(os.close, fd)
                    files[arguments.TAP] = taps[0]
                user = machine.id_base + LAST_ID
                pid = await launching.start(host, places, hardware, files, user=user, group=group, mark=self._home.mark)
                try:
                    receiver = await Monitor.connect(places.run / "monitor")
                    try:
                        yield receiver, pages
                    finally:
                        await receiver.close()
                finally:
                    await asyncio.shield(end_process(pid))
        except BaseException:
            os.close(pages)
            raise
        finally:
            await asyncio.to_thread(group.remove)
            await asyncio.to_thread(places.remove)

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
            wanted = about(self._shape_now(machine), self._ready())
            for what in ("made of", "hardware"):
                if frozen.made.about.get(what) != wanted[what]:
                    raise Unsupported(
                        f"this memory is of {frozen.made.about.get(what)}, and here is {wanted[what]}",
                        hint="begin anew without it: lamella restart boots it",
                    )
            yield frozen

    async def _awake(self, session: Session) -> None:
        """Let what began with a memory go on, as the machine that is written down now.

        :raise Unavailable: when its guest does not answer.
        """
        async with session.waking:
            if not session.process.asleep:
                return
            machine = session.places.machine()
            if machine is None:
                raise NotFound(f"nothing is written down of {session.places.id}", hint="start it again")
            await session.resume()
            guest = await session.guest(BOOT_DEADLINE)
            await guest.renew(_identity(machine))
            state = await guest.state()
            began = state.started_at if state.phase is not GuestPhase.READY else None
            if began is not None and machine.fresh:
                began = datetime.now(UTC)
            await session.write(asleep=False, ready=True, started_at=began)
            session.met_again()
            if machine.memory.startswith(SUSPENDED):
                await self._shelf.remove(machine.memory)

    def _keeping(self, id: str) -> asyncio.Lock:
        """Held while a memory is kept."""
        return self._keepers.setdefault(id, asyncio.Lock())

    _keepers: dict[str, asyncio.Lock]


async def _send(monitor: Monitor, receiver: Monitor, hold: Callable[[], Awaitable[None]] | None) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        await passing.receive(receiver, theirs.fileno())
        await passing.send(monitor, ours.fileno(), hold)


async def _go_on(session: Session, *, stays: bool) -> None:
    """It runs again, and its processes with it; with *stays* it stands still for good."""
    try:
        if not stays:
            await run_on(session)
            await (await session.guest(timeout=5)).release()
    except Unavailable:
        # It ended meanwhile; whoever follows it knows.
        return
    finally:
        session.copying = stays


async def run_on(session: Session) -> None:
    """Nobody sends it any more, and it runs."""
    with contextlib.suppress(LamellaError):
        await passing.cancel(await session.monitor())
    await session.resume()


def _identity(machine: Machine) -> GuestIdentity:
    now = datetime.now(UTC)
    if not machine.fresh:
        return GuestIdentity(entropy=os.urandom(64), time=now)
    return GuestIdentity(
        entropy=os.urandom(64),
        hostname=machine.hostname,
        network=network_of(machine),
        drop_network=machine.nic is None,
        nameservers=machine.nameservers,
        pids=machine.limits.pids,
        time=now,
    )
