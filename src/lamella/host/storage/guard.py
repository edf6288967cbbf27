"""The room that a pool really has: a warning well before it is full, and writers that wait rather than fail when it is.

Thin volumes promise more than there is. While something of a pool is open its free space is read every few seconds, more often when it
is short. Below ``PoolSpec.warn_below`` an event says so once; below a floor the writers of the pool are held (their requests wait in the
storage process) until there is room for twice the floor again.
"""

import asyncio
import logging

from lamella.host.storage.attaching import TREE
from lamella.host.storage.parts import Parts
from lamella.model.errors import LamellaError
from lamella.model.resource import Condition, now
from lamella.model.storage import PoolSpec, PoolStatus

log = logging.getLogger("lamella.host.storage")

CALM, ALERT = 5.0, 0.25
# Below this writers are held: what may be written between two looks, and what metadata needs to be finished.
FLOOR_SHARE = 0.005
FLOOR_LEAST, FLOOR_MOST = 16 << 20, 4 << 30


def floor_of(status: PoolStatus) -> int:
    """Free bytes below which nothing of a pool is written any more."""
    return min(max(FLOOR_LEAST, int(status.capacity * FLOOR_SHARE)), FLOOR_MOST, max(1, status.capacity // 4))


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
    """Watches the pools of what is open. What it holds after a crash of the daemon it releases or holds again at its first look."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._task: asyncio.Task[None] | None = None
        self._low: set[str] = set()
        self._full: dict[str, set[str]] = {}
        self._wake = asyncio.Event()

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._watch(), name="pool guard")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

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
            if record.way != TREE:
                open.setdefault(record.volume.spec.pool, set()).add(id)
        short = False
        for name in set(open) | set(self._full):
            try:
                status = await self._parts.pools.get(name).status()
            except LamellaError as error:
                log.warning("pool %s: %s", name, error)
                continue
            short |= await self._judge(name, status, open.get(name, set()))
        return short

    async def _judge(self, name: str, status: PoolStatus, ids: set[str]) -> bool:
        spec, floor = self._parts.pools.spec(name), floor_of(status)
        held = self._full.get(name)
        if status.capacity and status.free < floor:
            if held is None:
                self._parts.tell(
                    "pool.full", name, f"pool {name} has {status.free} bytes left: its writers wait until there is room"
                )
            if ids - (held or set()):
                await self._parts.daemon.hold(sorted(ids))
            self._full[name] = ids
        elif held is not None and status.free >= 2 * floor:
            await self._parts.daemon.release(sorted(held))
            del self._full[name]
            self._parts.tell("pool.room", name, f"pool {name} has room again: its writers go on")
        low = is_low(status, spec)
        if low and name not in self._low:
            share = 100 * status.free / status.capacity
            self._parts.tell("pool.low", name, f"pool {name} has {share:.1f} % of its space left ({status.free} bytes)")
            self._low.add(name)
        elif not low:
            self._low.discard(name)
        # Half of the free space may be written before the next look.
        return name in self._full or low or status.free < 16 * floor
