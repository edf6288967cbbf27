"""The room that a pool really has: a warning well before it is full, and writers that wait rather than fail when it is.

Thin volumes promise more than there is. While something of a pool is open its free space is read every few seconds, more often when it
is short. Below ``PoolSpec.warn_below`` an event says so once. When what is left could be written between two looks, writers are slowed so
that it cannot: the less is left, the slower, down to a floor at which they are held (their requests wait in the storage process) until
there is room for twice the floor again. What an instance opens by itself, its own disks, can be neither slowed nor held: QEMU holds a
write back that finds no room, and is told when there is some.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

import msgspec

from lamella.host.storage.parts import Parts
from lamella.host.storage.stacks import group_of
from lamella.host.storage.ways import TREE
from lamella.host.storage.wishes import Wishes
from lamella.model.errors import LamellaError
from lamella.model.resource import Condition, now
from lamella.model.storage import IoLimits, PoolSpec, PoolStatus

log = logging.getLogger("lamella.host.storage")

CALM, ALERT = 5.0, 0.25
# Seconds that one look waits for volumes that do not answer; what was wished of them is done when they do.
PATIENCE = 2.0
# Faster than this nothing writes, in bytes a second; with less left than that for one calm interval, it is looked at often.
FASTEST = 4 << 30
# What may be written in this many seconds is all that is left above the floor.
HORIZON = 4 * ALERT
SLOWEST = 256 << 10
# Below this writers are held: it is for metadata, and for what is written out when a volume is closed.
FLOOR_SHARE = 0.005
FLOOR_LEAST, FLOOR_MOST = 16 << 20, 4 << 30


def floor_of(status: PoolStatus) -> int:
    """Free bytes below which nothing of a pool is written any more."""
    return min(max(FLOOR_LEAST, int(status.capacity * FLOOR_SHARE)), FLOOR_MOST, max(1, status.capacity // 4))


def allowed(status: PoolStatus, volumes: int) -> int | None:
    """How many bytes a second each of so many volumes may write, so that the next look comes in time; ``None``: as fast as it can."""
    rate = int((status.free - floor_of(status)) / HORIZON)
    return max(SLOWEST, rate // max(1, volumes)) if rate < FASTEST else None


def is_low(status: PoolStatus, spec: PoolSpec) -> bool:
    return status.capacity > 0 and status.free < status.capacity * spec.warn_below


def overcommitted(status: PoolStatus, promised: int) -> Condition | None:
    """A warning when the volumes of a pool were promised more than it holds."""
    if not status.capacity or promised <= status.capacity:
        return None
    return Condition(
        type="Overcommitted",
        status=True,
        reason="ThinVolumes",
        message=f"volumes were promised {promised} bytes, and the pool holds {status.capacity}",
        hint="writers are held when it is full; watch its free space",
        since=now(),
    )


class Guard:
    """Watches the pools of what is open. What it holds after a crash of the daemon it releases or holds again at its first look.

    *roomy* is told of a pool that was full and has room.
    """

    def __init__(self, parts: Parts, roomy: Callable[[str], None]) -> None:
        self._parts = parts
        self._roomy = roomy
        self._task: asyncio.Task[None] | None = None
        self._low: set[str] = set()
        self._full: dict[str, set[str]] = {}
        self._slowed: set[str] = set()
        self._wake = asyncio.Event()
        # Why a pool could not be looked at, while it cannot.
        self._said: dict[str, str] = {}
        self._seen: set[str] = set()
        self._wishes = Wishes()

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._watch(), name="pool guard")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._wishes.close()

    def look_now(self) -> None:
        """Something was opened, or the storage process said that there is no room."""
        self._wake.set()

    async def _watch(self) -> None:
        while True:
            short = False
            try:
                short = await self.look()
            except Exception:
                log.exception("the guard of pools")
            try:
                async with asyncio.timeout(ALERT if short else CALM):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def look(self) -> bool:
        """Look once, and act. Whether a pool is short of room."""
        open: dict[str, set[str]] = {}
        for id, record in self._parts.opened.all.items():
            if record.way != TREE and id not in self._parts.closing:
                open.setdefault(record.volume.spec.pool, set()).add(id)
        short = False
        own = self._parts.writers.own_disks().values() if self._parts.writers is not None else ()
        for name in set(open).union(self._full, *own):
            try:
                status = await self._parts.stalls.bounded([name], self._parts.pools.get(name).status())
            except LamellaError as error:
                if self._said.get(name) != error.message:
                    log.warning("pool %s: %s", name, error)
                self._said[name] = error.message
                continue
            self._said.pop(name, None)
            short |= await self._judge(name, status, open.get(name, set()))
        return short

    async def _judge(self, name: str, status: PoolStatus, ids: set[str]) -> bool:
        if not status.capacity:
            return False
        self._warn(name, status)
        floor, held = floor_of(status), self._full.get(name)
        if status.free < floor + floor // 8:
            if held is None:
                self._parts.tell(
                    "pool.full", name, f"pool {name} has {status.free} bytes left: its writers wait until there is room"
                )
            self._hold(ids - (held or set()), held=True)
            self._full[name] = ids
            self._seen.add(name)
            await self._wishes.settled(ids, PATIENCE)
            return True
        if held is not None and status.free < 2 * floor:
            return True
        if held is not None:
            self._hold(held & ids, held=False)
            del self._full[name]
            # Whether it is low still is told anew.
            self._low.discard(name)
            self._parts.tell("pool.room", name, f"pool {name} has room again: its writers go on")
            self._roomy(name)
        elif name not in self._seen:
            # What a former daemon held or slowed here is so still.
            self._hold(ids, held=False)
            self._slowed |= ids
        self._seen.add(name)
        self._slow(ids, allowed(status, len(ids)))
        await self._wishes.settled(ids, PATIENCE)
        return status.free < floor + (FASTEST * CALM if ids else floor)

    def _hold(self, ids: set[str], *, held: bool) -> None:
        daemon = self._parts.daemon
        for id in ids:
            self._wishes.set(id, "held", partial(daemon.hold if held else daemon.release, [id]))

    def _limit(self, id: str, limits: IoLimits, group: str = "") -> None:
        self._wishes.set(id, "limits", partial(self._parts.daemon.limit, id, limits, group))

    def _slow(self, ids: set[str], rate: int | None) -> None:
        """Hold these to *rate* bytes a second, below what a person set; or to what a person set alone."""
        for id in ids:
            record = self._parts.opened.get(id)
            if record is None or (rate is None and id not in self._slowed):
                continue
            limits, group = record.volume.spec.limits, "" if record.machine else group_of(record.volume)
            if rate is None or (limits.bandwidth is not None and limits.bandwidth <= rate):
                if id in self._slowed:
                    self._limit(id, limits, group)
                    self._slowed.discard(id)
                continue
            # By itself: a limit that is shared would be everybody's.
            capped = msgspec.structs.replace(limits, bandwidth=rate, bandwidth_burst=None, group="")
            self._limit(id, capped)
            self._slowed.add(id)
        self._slowed &= set(self._parts.opened.all)

    def _warn(self, name: str, status: PoolStatus) -> None:
        low = is_low(status, self._parts.pools.spec(name))
        if low and name not in self._low:
            share = 100 * status.free / status.capacity
            self._parts.tell("pool.low", name, f"pool {name} has {share:.1f} % of its space left ({status.free} bytes)")
            self._low.add(name)
        elif not low and name in self._low:
            self._low.discard(name)
            self._parts.tell("pool.ok", name, f"pool {name} has {status.free} bytes free")
