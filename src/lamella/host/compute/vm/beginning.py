"""How a full machine begins: it boots, or goes on from a memory that was kept."""

import asyncio
from functools import partial
from typing import ClassVar

import msgspec

from lamella.host.compute.driver import SUSPENDED_MEMORY, Changed, Home, Machine
from lamella.host.compute.qemu import served
from lamella.host.compute.qemu.keeping import SUSPENDED
from lamella.host.compute.qemu.places import Places, ProcessRecord
from lamella.host.compute.qemu.shelf import Frozen, Shelf
from lamella.host.compute.vm import hotplug, launching, memory
from lamella.host.compute.vm.host import HostParts
from lamella.host.compute.vm.keeping import KeepVerbs, beginning, files_of, load
from lamella.host.compute.vm.launching import OpenTap
from lamella.host.compute.vm.session import Session
from lamella.host.linux.processes import environment
from lamella.model.errors import Internal, LamellaError, Unavailable

CONSOLE_DEADLINE = 30.0


class BeginVerbs(KeepVerbs):
    """What a driver of full machines needs to make one. ``resettable`` says whether a machine has a reset button."""

    session_type = Session
    resettable: ClassVar[bool] = True

    def __init__(self, home: Home, changed: Changed) -> None:
        super().__init__(home, changed)
        self._keepers, self._releasing = {}, {}
        self._shelf = Shelf(home.state / "memory" / self.name)
        self._open_tap: OpenTap = _no_taps
        self._environment = environment(home.mark)
        self._host: HostParts | None = None

    def use_taps(self, open_tap: OpenTap) -> None:
        """*open_tap* is given a port's id and returns the open descriptor of its TAP, which is ours to close."""
        self._open_tap = open_tap

    def plan(self, host: HostParts, machine: Machine) -> launching.Plan:
        """What *machine* will be on this host."""
        return launching.plan(host, machine)

    def _ready(self) -> HostParts:
        if self._host is None:
            raise Unavailable("full machines are not available on this host", hint="lamella doctor says why")
        return self._host

    async def _create(self, machine: Machine) -> None:
        await self._clear(machine.id)
        places = self._places(machine.id)
        former = None
        if machine.memory == SUSPENDED_MEMORY:
            machine = msgspec.structs.replace(machine, memory=SUSPENDED + machine.id)
            former = places.process()
        else:
            await self._shelf.remove(SUSPENDED + machine.id)
        async with self._kept(machine) as begins:
            await self._make(machine, places, begins, former)

    async def _make(
        self, machine: Machine, places: Places, begins: Frozen | None, former: ProcessRecord | None
    ) -> None:
        """Boot it, or have it go on from *begins*; *former* is what is written down of one that is suspended, and stays so on failure."""
        host = self._ready()
        plan = self.plan(host, machine) if begins is None else beginning(host, machine, begins)
        log = self._log(machine.id)

        def prepare() -> None:
            places.prepare()
            places.write(machine)
            memory.forget_half_written(places.state)
            log.open()

        await asyncio.to_thread(prepare)
        log.begin()
        try:
            # Whoever looks meanwhile must not adopt it as the work of another daemon.
            async with self._adoption(machine.id), files_of(begins) as files:
                record = await launching.start(
                    host,
                    plan,
                    places,
                    machine,
                    group=self._group(machine.id),
                    open_tap=self._open_tap,
                    mark=self._home.mark,
                    files=files,
                    began=machine.memory,
                )
                session = await self._new_session(places, record)
            try:
                monitor = await session.monitor()
            except LamellaError as error:
                raise Unavailable(f"QEMU did not start: {session.last_words() or error.message}") from error
            if begins is not None:
                await load(monitor, machine, begins, self._open_tap, reach(session))
            await hotplug.rewire(monitor, machine, self._open_tap, reaches=reach(session))
            # The firmware reads the boot order when it starts, and was told of what was plugged in since.
            if self.resettable and begins is None:
                await monitor.execute("system_reset")
            async with asyncio.timeout(CONSOLE_DEADLINE):
                await session.console.ready()
            await session.write(ready=True)
        except BaseException:
            await asyncio.shield(self._clear(machine.id))
            if former is not None:
                # Still suspended.
                places.write(former)
            raise


def reach(session: Session) -> hotplug.Reaches:
    return partial(served.reaches, session.process.pid)


async def _no_taps(port: str) -> int:
    raise Internal("nobody said where TAPs come from", hint="call use_taps before create")
