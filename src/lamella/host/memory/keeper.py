"""Keeping the memory of a host's instances: look at all, decide (controller.py), ask each; and again, sooner while something moves.

What it knows is lost with the daemon, but who stands still, and nothing is missed by that: the next one sees what each instance has.
Instances without a guarantee keep what they have; one that has none any more gets back what was taken.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.linux.cgroup_files import read_text
from lamella.host.memory.controller import GRAIN, MIB, Memory, Share, decide
from lamella.host.memory.driver import GivesMemory, Held
from lamella.host.memory.giving_way import GivingWay, Kept
from lamella.host.memory.ladder import HostMemory, Step
from lamella.host.memory.lines import with_memory
from lamella.model.contract import Mechanism
from lamella.model.errors import Internal, LamellaError, Unsupported
from lamella.model.instance import Phase
from lamella.model.quantity import format_size

log = logging.getLogger("lamella.host.memory")

# Seconds from one round to the next: while all have enough, and while something moves.
CALM = 1.0
QUICK = 0.25
# Who does not answer for so many seconds holds up nobody else.
LATEST = 3.0
# Of the host's memory, what is never shared out when nobody said how much.
RESERVE = 0.05
# A balloon that is so close to what was asked is where it should be; one that is not for so many seconds does not follow.
TOLERANCE = 16 * MIB
PATIENCE = 10.0
# Major faults a second in a guest, and seconds stood still in a second, from which it waits.
_WAITS = {"faults": 200.0, "s": 0.1}
_ALL = 1 << 62


class _Known(msgspec.Struct, kw_only=True):
    """What is remembered of one instance. ``at`` is when it had news last, and how long it had ``waited`` by then; ``news``: it has said
    something since the round before. ``astray`` is since when its guest holds ``kept`` bytes, more than it was asked for, and gives none
    back; ``told`` whether that was said."""

    held: Held
    at: float
    waited: float
    waits: bool = False
    news: bool = True
    memory: Memory | None = None
    astray: float | None = None
    kept: int = 0
    told: bool = False

    @property
    def target(self) -> int:
        return self.held.held if self.memory is None else self.memory.target

    def loses(self, seen: Held, at: float) -> float:
        """What it waited a second since its news before, when it is *seen* *at* that time."""
        return (seen.waited - self.waited) / max(at - self.at, QUICK)

    @property
    def moves(self) -> bool:
        """Its balloon is on its way."""
        return self.held.balloon and not self.told and abs(self.held.held - self.target) > TOLERANCE


class MemoryKeeper:
    """One a host. *instances* are all that are assigned to it; *look* says what the host has, and *taken* what an instance takes of it, in
    bytes. When it runs short, *spare* gives back what no instance needs. Who stands still for the host's sake is written to *still*.
    ``reserve`` bytes stay the host's own."""

    def __init__(
        self,
        instances: Callable[[], Sequence[Kept]],
        look: Callable[[], HostMemory] = lambda: host_memory(),
        spare: Callable[[], None] = lambda: None,
        taken: Callable[[str], int] = lambda id: 0,
        still: Path | None = None,
    ) -> None:
        self.reserve: int | None = None
        self.giving_way = GivingWay(taken, still)
        self._instances = instances
        self._look = look
        self._spare = spare
        self._known: dict[str, _Known] = {}
        self._let_be: set[str] = set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            again = CALM
            try:
                again = await self.round()
            except Exception:
                log.exception("keeping memory")
            await asyncio.sleep(again)

    async def round(self) -> float:
        """Look, decide and ask once. Returns in how many seconds the next round is due."""
        instances = self._instances()
        able = {one.id: one for one in instances if isinstance(one.driver, GivesMemory)}
        kept = {id: one for id, one in able.items() if one.asked.instance.spec.memory_guarantee}
        await asyncio.gather(*(self._see(one) for one in kept.values()))
        await asyncio.gather(*(self._let_go(one) for id, one in able.items() if id not in kept))
        self._let_be &= able.keys() - kept.keys()
        for id in self._known.keys() - kept.keys():
            del self._known[id]
        host = self._look()
        await self.giving_way.climb(host, instances)
        if self.giving_way.step > Step.CALM:
            self._spare()
        chosen = self._decide(kept, host)
        await asyncio.gather(*(self._ask(kept[id], memory) for id, memory in chosen.items()))
        busy = any(known.moves for known in self._known.values())
        return QUICK if busy else CALM

    def held(self, id: str) -> Held | None:
        """What *id* had when it was seen last; ``None`` for one without a guarantee."""
        known = self._known.get(id)
        return None if known is None else known.held

    def mechanisms(self, id: str, found: list[Mechanism]) -> list[Mechanism]:
        """*found*, what is in force around a running instance, with what is known of its memory."""
        known = self._known.get(id)
        if known is None or not found:
            return found
        floor = next((one.asked.instance.spec.memory_guarantee or 0 for one in self._instances() if one.id == id), 0)
        return with_memory(found, known.held, known.target, floor=floor, follows=not known.told)

    async def _see(self, one: Kept) -> None:
        driver = one.driver
        assert isinstance(driver, GivesMemory)
        known = self._known.get(one.id)
        try:
            async with asyncio.timeout(LATEST):
                held = await driver.memory_held(one.id)
        except Exception as error:
            # Whatever is wrong with one, the others are looked after.
            log.debug("%s: %s", one.id, error)
            if known is not None:
                known.held = msgspec.structs.replace(known.held, used=None, silent="it cannot be asked")
            return
        at = time.monotonic()
        if held is None:
            self._known.pop(one.id, None)
        elif known is None:
            self._known[one.id] = _Known(held=held, at=at, waited=held.waited)
        else:
            known.news = not held.balloon or held.said != known.held.said
            if not known.news and held.used is not None and known.held.used is not None:
                # What it said was of what it had then.
                held = msgspec.structs.replace(held, used=known.held.used)
            known.waits = known.news and known.loses(held, at) > _WAITS[held.unit]
            if known.news:
                known.at, known.waited = at, held.waited
            known.held = held

    async def _let_go(self, one: Kept) -> None:
        """Give back what was taken from one that has no guarantee any more, by this daemon or by one before it."""
        driver = one.driver
        assert isinstance(driver, GivesMemory)
        if one.id not in self._let_be and one.phase is Phase.RUNNING:
            try:
                async with asyncio.timeout(LATEST):
                    done = await driver.hold_memory(one.id, _ALL, 0)
            except (Internal, Unsupported):
                # It refuses: nothing can be taken from it, nor was.
                done = True
            except (LamellaError, OSError, TimeoutError):
                return
            if done:
                self._let_be.add(one.id)

    def _decide(self, kept: dict[str, Kept], host: HostMemory) -> dict[str, Memory]:
        shares = [_share(kept[id], known) for id, known in self._known.items()]
        reserve = int(host.total * RESERVE) if self.reserve is None else self.reserve
        budget = host.available - reserve + sum(known.held.resident for known in self._known.values())
        before = {
            # A container has what it took meanwhile: nobody asked it.
            id: known.memory if known.held.balloon else msgspec.structs.replace(known.memory, target=known.held.held)
            for id, known in self._known.items()
            if known.memory is not None
        }
        press = self.giving_way.step > Step.CALM
        return decide(shares, max(0, budget), before, time.monotonic(), press=press)

    async def _ask(self, one: Kept, memory: Memory) -> None:
        known = self._known[one.id]
        known.memory = memory
        self._judge(one, known)
        driver = one.driver
        assert isinstance(driver, GivesMemory)
        # Guests give whole pages: none has what it was asked for to the byte.
        target = memory.target // MIB * MIB
        if not known.held.balloon or known.held.held // MIB * MIB != target:
            with suppress(LamellaError, OSError, TimeoutError):
                async with asyncio.timeout(LATEST):
                    await driver.hold_memory(one.id, target, one.asked.instance.spec.memory_guarantee or 0)

    def _judge(self, one: Kept, known: _Known) -> None:
        """A guest that does not do what it was asked is told of, once, and once more when it does."""
        if not known.held.balloon or known.held.held <= known.target + TOLERANCE:
            if known.told:
                one.remark("memory.follows", f"the guest holds {format_size(known.held.held)}, as it was asked")
            known.astray, known.told = None, False
            return
        at = time.monotonic()
        if one.phase is Phase.PAUSED:
            # Its guest cannot do anything.
            known.astray = None
            return
        if known.astray is None or known.held.held <= known.kept - GRAIN:
            known.astray, known.kept = at, known.held.held
        if not known.told and at - known.astray > PATIENCE:
            known.told = True
            why = known.held.silent or "it needs it, or its driver does not listen"
            one.remark(
                "memory.ignored",
                f"the guest was asked to do with {format_size(known.target)} and holds {format_size(known.held.held)}: {why}",
            )


def _share(one: Kept, known: _Known) -> Share:
    spec, held = one.asked.instance.spec, known.held
    return Share(
        id=one.id,
        floor=spec.memory_guarantee or 0,
        ceiling=held.ceiling,
        held=held.held,
        used=held.used,
        waits=known.waits,
        eager=known.news,
        balloon=held.balloon,
        priority=spec.priority,
    )


def host_memory(path: Path = Path("/proc/meminfo")) -> HostMemory:
    """What the kernel says that there is, huge pages that are set apart not counted: nothing else can have them."""
    rows = dict(line.split(":", 1) for line in read_text(path).splitlines() if ":" in line)
    total, available = (int(rows[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    apart = int(rows.get("Hugetlb", "0").split()[0]) << 10
    return HostMemory(total=total - apart, available=available)
