"""Snapshots that were taken for copies, and go when nothing needs them: the memory when each copy has begun, the disks when no volume
stands on them any more. Level-triggered: what is due is read from the rows, at the start and whenever one of them has changed.
"""

import asyncio
import logging
import time
from collections.abc import Container
from contextlib import suppress

from lamella.control.bulletin import Bulletin
from lamella.control.storage.holding import COPYING, awaiting, inherit, standing
from lamella.control.storage.keeper import Keeper
from lamella.model.errors import LamellaError
from lamella.model.resource import now
from lamella.model.storage import Snapshot, StoragePhase, Volume
from lamella.store.store import Change, Store, Transaction

log = logging.getLogger("lamella.control")

# What could not be let go of is tried again after so many seconds.
AGAIN = 30.0


class Passing:
    """Lets go of snapshots that nobody needs."""

    def __init__(self, store: Store, bulletin: Bulletin, keeper: Keeper) -> None:
        self._store = store
        self._bulletin = bulletin
        self._keeper = keeper
        self._changed = asyncio.Event()
        # When each was let go of last: one that is still there was refused, and has time.
        self._tried: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._changed.set()
        stop = self._bulletin.listen(self._hear)
        self._task = asyncio.create_task(self._run(), name="passing snapshots")
        self._task.add_done_callback(lambda _: stop())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def _hear(self, change: Change) -> None:
        if _matters(change):
            self._changed.set()

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(AGAIN if self._tried else None):
                    await self._changed.wait()
            self._changed.clear()
            at = time.monotonic()
            self._tried = {id: when for id, when in self._tried.items() if at - when < AGAIN}
            try:
                due, going = await self._store.write(lambda tx: sweep(tx, self._tried))
                self._tried |= dict.fromkeys(going, at)
                for id in due:
                    self._keeper.drive(id)
            except LamellaError:
                log.exception("letting go of snapshots")


def _matters(change: Change) -> bool:
    row = change.resource
    if change.kind == "instance":
        return row.status.beginning is not None
    if change.kind == "volume":
        return change.action == "deleted" and row.spec.source is not None
    if change.kind == "snapshot":
        return row.spec.passing or row.status.phase is StoragePhase.DELETING
    return change.kind == "operation" and row.spec.verb == "fork"


def sweep(tx: Transaction, tried: Container[str] = ()) -> tuple[list[str], list[str]]:
    """Write what can be let go of, but for those that were *tried* a moment ago; ids of the rows that are to be brought there, and of the
    snapshots among them that go as a whole."""
    due: list[str] = []
    going: list[str] = []
    copying = tx.claims(COPYING)
    for row in tx.list("snapshot"):
        snapshot: Snapshot = row
        if snapshot.status.phase is StoragePhase.DELETING:
            due.append(snapshot.id)
        elif snapshot.spec.passing and snapshot.status.phase is not StoragePhase.PENDING and snapshot.id not in copying:
            if _unneeded(tx, snapshot):
                going += [] if snapshot.id in tried else [_condemn(tx, snapshot)]
            elif snapshot.status.memory and not awaiting(tx, snapshot):
                snapshot.spec.memory = False
                due.append(tx.update(snapshot).id)
    known = {row.id for row in tx.list("snapshot")}
    orphaned: list[Volume] = [item for item in tx.list("volume") if (item.spec.owner or "").startswith("snap_")]
    for owner in {item.spec.owner or "" for item in orphaned} - known:
        due += inherit(tx, owner)
    return [*due, *going], going


def _unneeded(tx: Transaction, snapshot: Snapshot) -> bool:
    return not standing(tx, snapshot) and not awaiting(tx, snapshot)


def _condemn(tx: Transaction, snapshot: Snapshot) -> str:
    snapshot.status.phase, snapshot.deleted_at = StoragePhase.DELETING, now()
    return tx.update(snapshot).id
