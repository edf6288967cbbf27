"""Acting on the steps of ladder.py: copies that wait for a command are given back, instances of low priority are paused one after another,
resumed when there is memory again, and ended where an operator asked for that."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec

from lamella.host.compute.driver import ComputeDriver
from lamella.host.memory import ladder
from lamella.host.memory.ladder import Candidate, HostMemory, Step
from lamella.model.assignment import Assignment
from lamella.model.errors import LamellaError
from lamella.model.instance import Phase, Priority
from lamella.model.quantity import format_size

log = logging.getLogger("lamella.host.memory")

# Seconds between two that give way: what the last one left has to be seen first.
PAUSE = 5.0
_SIGKILL = 9


class Kept(Protocol):
    """What is needed of an instance's worker."""

    id: str
    asked: Assignment
    driver: ComputeDriver

    @property
    def phase(self) -> Phase: ...

    def remark(self, type: str, message: str) -> None:
        """Tell an event of it."""
        ...

    def hold_still(self, why: str) -> None:
        """Pause it whatever was asked, until *why* is empty."""
        ...


class GivingWay:
    """Where the host stands (``step``), and who was paused for it. With ``kills``, who is paused already is ended at the last step.

    *taken* says what an instance takes of the host, in bytes; it may block for microseconds. Who is paused is written to *file*, so that
    the next daemon does not let all of them go on at once.
    """

    def __init__(self, taken: Callable[[str], int], file: Path | None = None) -> None:
        self._taken = taken
        self._file = file
        self.kills = False
        self._paused = _read(file)
        self.step = Step.PAUSE if self._paused else Step.CALM
        self._acted = -PAUSE

    def adopt(self, one: Kept) -> None:
        """Before anything is done to *one*: have it stand still, if it did for the daemon before."""
        if one.id in self._paused:
            one.hold_still("the host ran short of memory: it stays paused until there is more")

    async def climb(self, host: HostMemory, instances: Sequence[Kept]) -> None:
        """Take the step that *host* asks for."""
        paused = list(self._paused)
        before, self.step = self.step, ladder.step(host, self.step, kills=self.kills)
        left = f"the host has {format_size(host.available)} of {format_size(host.total)} of its memory left"
        alive = {one.id: one for one in instances if one.phase in (Phase.RUNNING, Phase.PAUSED)}
        if before is Step.CALM and self.step > Step.CALM:
            log.warning("%s: what nobody needs is taken back", left)
            for one in alive.values():
                if one.asked.instance.spec.memory_guarantee:
                    one.remark("memory.pressure", f"{left}: what it does not need is taken back at once")
            for one in instances:
                if one.phase is Phase.READY and one.asked.instance.spec.template is not None:
                    one.remark("memory.pressure", f"{left}: what waits for a command goes first")
        for one in instances:
            if one.id in self._paused and (
                self.step < Step.PAUSE or one.asked.instance.spec.priority is not Priority.LOW
            ):
                one.hold_still("")
                self._paused.remove(one.id)
        if self.step < Step.PAUSE:
            self._paused = []
        elif time.monotonic() - self._acted >= PAUSE:
            await self._next(alive, left)
        if self._file is not None and self._paused != paused:
            draft = self._file.with_suffix(".new")
            draft.write_bytes(msgspec.json.encode(self._paused))
            draft.replace(self._file)

    async def _next(self, alive: dict[str, Kept], left: str) -> None:
        self._acted = time.monotonic()
        low = [one for one in alive.values() if one.asked.instance.spec.priority is Priority.LOW]
        # Who was told once and runs on cannot be paused: it is the next one's turn.
        running = [one for one in low if one.phase is Phase.RUNNING and one.id not in self._paused]
        chosen = ladder.next_to_pause(await asyncio.to_thread(self._candidates, running))
        if chosen is not None:
            alive[chosen].hold_still(f"{left}: its priority is low, and it is paused until there is more")
            self._paused.append(chosen)
            return
        if self.step is not Step.KILL:
            return
        chosen = ladder.next_to_kill(await asyncio.to_thread(self._candidates, low))
        if chosen is not None:
            one = alive[chosen]
            one.remark("memory.killed", f"{left}: its priority is low, and it is ended before the kernel chooses whom")
            with suppress(LamellaError, OSError):
                await one.driver.kill(chosen, _SIGKILL)

    def _candidates(self, several: Sequence[Kept]) -> list[Candidate]:
        found: list[Candidate] = []
        for one in several:
            resident = 0
            with suppress(LamellaError, OSError):
                resident = self._taken(one.id)
            found.append(
                Candidate(
                    id=one.id,
                    priority=one.asked.instance.spec.priority,
                    resident=resident,
                    paused=one.phase is Phase.PAUSED,
                )
            )
        return found


def _read(file: Path | None) -> list[str]:
    if file is not None:
        with suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode(file.read_bytes(), type=list[str])
    return []
