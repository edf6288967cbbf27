"""The balloon of a machine under QEMU: what the guest says of its memory, and asking it to do with less.

Sources: the virtio specification 1.2, section 5.5, and QEMU's ``docs/interop/virtio-balloon-stats.rst``. A guest may say anything, and
need not follow: what it holds is counted by QEMU, page by page.
"""

import asyncio
import time
from typing import TypeVar

import msgspec

from lamella.host.compute.driver import Limits
from lamella.host.compute.qemu.driver import QemuDriver
from lamella.host.compute.qemu.monitor import Monitor, Refused
from lamella.host.compute.qemu.process import QemuProcess
from lamella.host.compute.qemu.size import MIB, Size
from lamella.host.memory.driver import Held

PATH = "/machine/peripheral/balloon"
GROWTH = "/machine/peripheral/growth"
# What no guest is asked to go below, whatever its floor is.
LEAST = 64 * MIB
# What a guest last said so many seconds ago is not what it says now.
STALE = 10
_UNKNOWN = 1 << 63
_EVERY = 1

S = TypeVar("S", bound=QemuProcess)


class _Stats(msgspec.Struct, rename="kebab"):
    stat_available_memory: int = -1
    stat_free_memory: int = -1
    stat_major_faults: int = -1


class Statistics(msgspec.Struct, kw_only=True, frozen=True):
    """What a guest said ``at`` (seconds since 1970; 0: never): bytes that it could give up, and how often it had to read memory back."""

    at: int = 0
    available: int | None = None
    faults: int = 0


class _Answer(msgspec.Struct, rename="kebab"):
    stats: _Stats
    last_update: int = 0


def statistics(answer: object) -> Statistics:
    """From QMP's answer. A guest sends what it likes: what it leaves out, and what no machine could have, is unknown."""
    try:
        told = msgspec.convert(answer, _Answer)
    except msgspec.ValidationError:
        return Statistics()
    available = _known(told.stats.stat_available_memory)
    if available is None:
        available = _known(told.stats.stat_free_memory)
    return Statistics(at=told.last_update, available=available, faults=_known(told.stats.stat_major_faults) or 0)


def _known(value: int) -> int | None:
    return value if 0 <= value < _UNKNOWN else None


def held_of(said: Statistics, *, held: int, ceiling: int, resident: int, paused: bool, now: float) -> Held:
    """What is known of a guest at *now*. Pure."""
    silent = ""
    if paused:
        silent = "it is paused"
    elif said.at == 0:
        silent = "the guest has no driver of virtio-balloon that tells"
    elif abs(now - said.at) > STALE:
        silent = f"the guest has told nothing for {now - said.at:.0f} s"
    elif said.available is None:
        silent = "the guest does not tell how much it could give up"
    used = None if silent or said.available is None else max(0, held - said.available)
    return Held(
        held=held,
        ceiling=ceiling,
        resident=resident,
        used=used,
        silent=silent,
        said=said.at,
        waited=float(said.faults),
        unit="faults",
        balloon=True,
        means="its balloon (virtio)",
        evidence="QMP query-balloon, guest-stats",
    )


class BalloonVerbs(QemuDriver[S]):
    """:class:`GivesMemory` for machines with a balloon."""

    async def memory_held(self, id: str) -> Held | None:
        session = await self._session(id)
        if session is None or not session.process.ready:
            return None
        return await look(session)

    async def hold_memory(self, id: str, target: int, floor: int) -> bool:
        """See ``GivesMemory``. The kernel takes nothing from QEMU where there is no swap: *floor* is kept by asking for no less."""
        lock = self._lock(id)
        if lock.locked():
            return False
        async with lock:
            session = await self._session(id)
            if session is None or session.paused or session.process.started_at is None:
                return False
            await ask(session, max(target, floor))
            return True


async def look(session: QemuProcess) -> Held | None:
    """The memory of the machine of *session*; ``None`` when it has no balloon.

    :raise Unavailable: when QEMU is gone.
    """
    monitor = await session.monitor()
    record = session.process
    try:
        grown = await _grown(monitor, record.size, record.largest)
        held = await monitor.memory() + grown
        said = await _said(monitor)
    except Refused:
        return None
    return held_of(
        said,
        held=held,
        ceiling=ceiling_of(record.limits, record.size, grown),
        resident=(await asyncio.to_thread(session.group.usage)).memory,
        paused=session.paused or record.started_at is None,
        now=time.time(),
    )


async def ask(session: QemuProcess, target: int) -> None:
    """Ask the guest to keep *target* bytes of what it was given, at most all of it.

    :raise Unavailable: when QEMU is gone.
    """
    monitor = await session.monitor()
    record = session.process
    grown = await _grown(monitor, record.size, record.largest)
    most = ceiling_of(record.limits, record.size, grown)
    await monitor.set_memory(max(min(LEAST, record.size.memory), min(target, most) - grown))


def ceiling_of(limits: Limits, size: Size, grown: int) -> int:
    """What a machine was given: the memory that it was started with, less what a person took back, more what was plugged in. Pure."""
    whole = size.memory + grown
    return whole if limits.memory is None else min(whole, limits.memory // MIB * MIB)


async def _said(monitor: Monitor) -> Statistics:
    every = await monitor.execute("qom-get", {"path": PATH, "property": "guest-stats-polling-interval"})
    if every != _EVERY:
        await monitor.execute("qom-set", {"path": PATH, "property": "guest-stats-polling-interval", "value": _EVERY})
    return statistics(await monitor.execute("qom-get", {"path": PATH, "property": "guest-stats"}))


async def _grown(monitor: Monitor, size: Size, largest: Size | None) -> int:
    if largest is None or largest.memory <= size.memory:
        return 0
    return await monitor.ask(int, "qom-get", {"path": GROWTH, "property": "size"})
