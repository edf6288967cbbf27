"""What every driver of machines under QEMU keeps of them: sessions, logs, locks, and what is known of one that has ended."""

import asyncio
from typing import ClassVar, Generic, TypeVar

from lamella.host.compute.driver import Changed, Home, Machine, Observed
from lamella.host.compute.qemu import pages, places
from lamella.host.compute.qemu.log import Log
from lamella.host.compute.qemu.places import Places, ProcessRecord
from lamella.host.compute.qemu.process import QemuProcess, died
from lamella.host.linux import processes
from lamella.host.linux.cgroup import ROOT, Cgroup, Cgroups
from lamella.model.errors import Conflict, NotFound, Unavailable
from lamella.model.instance import Phase

# Seconds between tries of what finds a disk locked.
_LOCKED = (0.1, 0.2, 0.4, 0.8, 1.6)

S = TypeVar("S", bound=QemuProcess)


class QemuDriver(Generic[S]):
    """A level says what it is called to a person (``noun``), which session it has, and what it does with one that it adopts."""

    name = ""
    noun: ClassVar[str] = ""
    session_type: type[S]

    def __init__(self, home: Home, changed: Changed) -> None:
        self._home = home
        self._changed = changed
        self._sessions: dict[str, S] = {}
        self._logs: dict[str, Log] = {}
        self._verbs: dict[str, asyncio.Lock] = {}
        self._adopting: dict[str, asyncio.Lock] = {}

    async def close(self) -> None:
        for session in list(self._sessions.values()):
            await session.close()
        self._sessions.clear()

    async def inventory(self) -> set[str]:
        return places.inventory(self._home, self.name)

    async def remove(self, id: str) -> None:
        async with self._lock(id):
            await self._clear(id)
            log = self._logs.pop(id, None)
            if log is not None:
                log.close()
            await asyncio.to_thread(self._places(id).remove)
        self._verbs.pop(id, None)

    async def processors(self, id: str) -> list[int]:
        session = await self._session(id)
        if session is None:
            return []
        inside = await (await session.monitor()).processors()
        return await asyncio.to_thread(processes.threads_outside, session.process.pid, inside)

    async def merged(self, id: str) -> bool | None:
        session = await self._session(id)
        return None if session is None else await pages.merged(await session.monitor())

    async def merge(self, id: str, on: bool) -> None:
        session = await self._session(id)
        if session is not None:
            await pages.merge(await session.monitor(), on)

    async def create(self, machine: Machine) -> None:
        """Made anew a few times while a disk is locked: who had it open may have ended a moment ago, and let go a moment from now."""
        async with self._lock(machine.id):
            for wait in _LOCKED:
                try:
                    await self._create(machine)
                except Unavailable as error:
                    if "lock" not in f"{error.message} {error.hint}":
                        raise
                    await asyncio.sleep(wait)
                else:
                    return
            await self._create(machine)

    async def _create(self, machine: Machine) -> None:
        """:meth:`~lamella.host.compute.driver.ComputeDriver.create`, once."""
        raise NotImplementedError

    async def _adopted(self, session: S) -> None:
        """Another daemon's machine was taken hold of: what a level needs of it before its verbs."""

    async def _new_session(self, places: Places, record: ProcessRecord) -> S:
        """Take hold of a QEMU that runs.

        :raise Unavailable: when it is gone already.
        """

        def ended() -> None:
            if self._sessions.get(places.id) is session:
                del self._sessions[places.id]
            self._changed(places.id)

        session = self.session_type(places, record, self._group(places.id), self._log(places.id), ended)
        await session.open()
        self._sessions[places.id] = session
        return session

    async def _session(self, id: str) -> S | None:
        """The session of *id*, made anew for a QEMU that another daemon started; ``None`` when none runs."""
        async with self._adoption(id):
            session = self._sessions.get(id)
            if session is not None:
                return None if session.gone.is_set() else session
            places = self._places(id)
            record = places.process()
            if record is None or not record.alive():
                return None
            try:
                session = await self._new_session(places, record)
            except Unavailable:
                return None
            await self._adopted(session)
            return session

    async def _running(self, id: str) -> S:
        """:raise NotFound: when there is nothing of that id. :raise Conflict: when it does not run."""
        session = await self._session(id)
        if session is None:
            if not self._places(id).state.is_dir():
                raise NotFound(f"there is no {self.noun} {id} here")
            raise Conflict(f"the {self.noun} {id} does not run", hint="start it first")
        return session

    async def _clear(self, id: str) -> None:
        """Whatever runs is killed and what belonged to the run removed; what is durable stays."""
        session = self._sessions.get(id)
        if session is not None:
            session.kill()
            await session.gone.wait()
        await asyncio.to_thread(self._group(id).remove)
        await asyncio.to_thread(self._places(id).remove_run)

    def _stopped(self, places: Places) -> Observed:
        """What is known of the last run; how it ended is written down if nobody has done so."""
        record = places.process()
        end = places.exit()
        if end is None and record is not None and record.started_at is not None:
            end = died(record, None, "")
            places.write(end)
        if record is None:
            return Observed(phase=Phase.STOPPED)
        return Observed(
            phase=Phase.STOPPED,
            exit_code=end.exit_code if end else None,
            started_at=end.started_at if end else None,
            finished_at=end.finished_at if end else None,
            launched=(record.largest or record.size).limits,
            accelerator=record.accelerator,
            accelerator_reason=record.accelerator_reason,
            board_type=record.board_type,
        )

    def _places(self, id: str) -> Places:
        return Places(self._home, self.name, id)

    def _group(self, id: str) -> Cgroup:
        return Cgroups(ROOT, self._home.mark).group(id)

    def _log(self, id: str) -> Log:
        return self._logs.setdefault(id, Log(self._places(id).state))

    def _lock(self, id: str) -> asyncio.Lock:
        """Held by a verb that changes the machine."""
        return self._verbs.setdefault(id, asyncio.Lock())

    def _adoption(self, id: str) -> asyncio.Lock:
        """Held by whoever takes hold of a QEMU, and while one is started: who looks meanwhile must not take it for another daemon's."""
        return self._adopting.setdefault(id, asyncio.Lock())
