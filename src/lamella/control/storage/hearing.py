"""What hosts tell of their storage: written as events, and as conditions of the pools and volumes that it befell."""

from lamella.control.events import record
from lamella.control.storage.conditions import HEALTHY, READY, SPACE, drop, put
from lamella.model.resource import Condition
from lamella.model.storage import Pool, PoolStatus, StorageEvent, StoragePhase, Volume
from lamella.store.store import Transaction

# Type of the event: type of the condition that it makes false, or true again.
_TROUBLE = {"pool.low": SPACE, "pool.full": SPACE, "volume.error": HEALTHY}
_WELL = {"pool.ok": SPACE, "pool.room": SPACE, "volume.ok": HEALTHY}
_HINTS = {
    "pool.low": "remove volumes or snapshots, move some to another pool, or enlarge it",
    "pool.full": "writers wait until there is room: remove snapshots, or enlarge it",
    "volume.error": "lamella fsck",
}


def hear(tx: Transaction, host: str, event: StorageEvent) -> None:
    """Write *event* of *host* down. What it befell may be gone by now: then it befell the host."""
    row: Pool | Volume | None = None
    if event.pool:
        row = tx.get("pool", "default", event.pool)
    if event.volume:
        row = tx.by_id(event.volume)
    if row is None or row.kind not in ("pool", "volume"):
        about = tx.by_id(host)
        if about is not None:
            record(tx, about, event.type, event.message, **event.facts)
        return
    conditions = row.status.conditions
    if event.type in _TROUBLE:
        condition = Condition(
            type=_TROUBLE[event.type],
            status=False,
            reason=event.type.rpartition(".")[2],
            message=event.message,
            hint=_HINTS[event.type],
        )
        row.status.conditions = put(conditions, condition)
    elif event.type in _WELL:
        row.status.conditions = drop(conditions, _WELL[event.type])
    tx.update(row)
    record(tx, row, event.type, event.message, **event.facts)


def measured(pool: Pool, seen: PoolStatus) -> PoolStatus:
    """What *pool*'s status is when its host has measured *seen*: what control has heard of it stays, but for a want of room that is over.

    One that did not answer is ready again when it does; one that is being made or removed stays in that phase.
    """
    if pool.status.phase not in (StoragePhase.READY, StoragePhase.FAILED):
        return PoolStatus(
            phase=pool.status.phase,
            capacity=seen.capacity,
            free=seen.free,
            features=seen.features,
            conditions=pool.status.conditions,
        )
    told = {item.type for item in seen.conditions} | {READY}
    if seen.capacity and seen.free >= pool.spec.warn_below * seen.capacity:
        told.add(SPACE)
    kept = [item for item in pool.status.conditions if item.type not in told]
    return PoolStatus(
        phase=seen.phase,
        capacity=seen.capacity,
        free=seen.free,
        features=seen.features or pool.status.features,
        conditions=[*seen.conditions, *kept],
    )
