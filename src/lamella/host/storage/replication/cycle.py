"""Asynchronous replication of one volume: one step of :mod:`.plan` after the other, each safe to be cut off at any line.

What travels is what lies in the pool: of an encrypted volume, ciphertext and the header that its key opens.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from lamella.host.linux.blocking import blocking
from lamella.host.storage.blocks import Stack
from lamella.host.storage.driver import Extent
from lamella.host.storage.parts import Parts
from lamella.host.storage.records import BegunSnapshot
from lamella.host.storage.replication.journal import Journal, Journals
from lamella.host.storage.replication.plan import Step, due_in, joined, next_step
from lamella.host.storage.snapshots import Snapshots
from lamella.host.storage.stacks import opened_as
from lamella.model.errors import LamellaError, NotFound, Unsupported
from lamella.model.ids import new_id
from lamella.model.resource import new_resource, now
from lamella.model.storage import Feature, Snapshot, SnapshotSpec, SnapshotStatus, StoragePhase, Volume, VolumeForm
from lamella.model.storage_requests import DropSnapshot, TakeSnapshot

log = logging.getLogger("lamella.host.storage")

# Seconds after something that failed.
_PATIENCE = 5.0
_LONG = 3600.0


class Cycles:
    """One asynchronous replication. ``journal`` is what is on the disk; ``failing`` says why the last step was not done."""

    def __init__(self, parts: Parts, snapshots: Snapshots, journals: Journals, journal: Journal) -> None:
        self._parts = parts
        self._snapshots = snapshots
        self._journals = journals
        self.journal = journal
        self.failing = ""
        self.hint = ""
        self._copied = ""
        self._once = asyncio.Lock()

    @property
    def id(self) -> str:
        return self.journal.replication.id

    async def run(self) -> None:
        """Until cancelled: whenever a cycle is due."""
        while True:
            paused = self.journal.replication.spec.paused
            try:
                if self.journal.next or self.journal.stale:
                    await self.finish()
                if not paused and due_in(self.journal, now()) <= 0:
                    await self.cycle()
                wait = _LONG if paused else due_in(self.journal, now())
            except LamellaError as error:
                if self.failing != error.message:
                    log.warning("replication %s: %s", self.journal.replication.name, error)
                    self._parts.tell("replication.late", self.journal.source.id, error.message)
                self.failing, self.hint = error.message, error.hint
                wait = min(_PATIENCE, self.journal.replication.spec.every)
            except Exception as error:
                # Whatever it is, a replica that nobody brings forward any more is worse.
                log.exception("replication %s", self.journal.replication.name)
                self.failing, self.hint = f"{type(error).__name__}: {error}", "the host's log says more"
                wait = _PATIENCE
            await asyncio.sleep(wait)

    async def cycle(self) -> None:
        """One whole cycle, after what was begun before is finished.

        :raise LamellaError: what stands in the way; the next call goes on there.
        """
        async with self._once:
            await self._finish()
            await self._take()
            await self._finish()
            self.failing = self.hint = ""

    async def finish(self) -> None:
        """End what was begun."""
        async with self._once:
            await self._finish()

    async def _finish(self) -> None:
        while True:
            step = await self.plan()
            if step is Step.REST or (step is Step.TAKE and not self.journal.next):
                return
            await self._steps[step](self)

    async def plan(self) -> Step:
        """What comes next, by what is written down and what there is."""
        journal = self.journal
        taken = sealed = False
        if journal.next:
            # A layer that was made and not gone over to is in the pool, and is still written.
            record = await blocking(self._parts.records.snapshots.read, journal.next, BegunSnapshot)
            whole = record is not None and record.done is not None
            taken = whole and journal.next in await self._kept(journal.source)
            sealed = journal.next in await self._kept(journal.target)
        copied = bool(journal.next) and self._copied == journal.next
        return next_step(journal, taken=taken, sealed=sealed, copied=copied, now=now())

    async def _kept(self, volume: Volume) -> list[str]:
        pool = self._parts.pools.get(volume.spec.pool)
        kept = await pool.snapshots(volume.id) if Feature.SNAPSHOT in pool.features else []
        return [*kept, *self._parts.stacks.made(volume.id).copies]

    # --- the steps

    async def _make(self) -> None:
        """The target, empty and as large as the source."""
        journal, pools = self.journal, self._parts.pools
        pool = pools.get(journal.target.spec.pool)
        if Feature.SNAPSHOT not in pool.features:
            raise Unsupported(
                f"pool {journal.target.spec.pool} keeps no snapshots: a replica there would be half-written during each cycle",
                hint="choose a directory, btrfs, zfs or rbd pool",
            )
        size = (await pools.get(journal.source.spec.pool).handle(journal.source.id)).size
        await pool.create(journal.target.id, VolumeForm.BLOCK, size)
        journal.made = True
        await self._write()

    async def _take(self) -> None:
        journal = self.journal
        if not journal.next:
            journal.next, journal.next_at = new_id("snapshot"), now()
            await self._write()
        # Asked again after a crash it may be taken only now: then it is of now, and not of what was written down.
        record = self._parts.records.snapshots.read(journal.next, BegunSnapshot)
        if record is None or record.done is None:
            journal.next_at = now()
            await self._write()
        await self._snapshots.take(
            TakeSnapshot(snapshot=self._snapshot(journal.next, journal.source), volumes=[journal.source]), _unheard
        )

    async def _rewind(self) -> None:
        """Whatever a copy that was cut off has left in the target goes."""
        journal = self.journal
        pool = self._parts.pools.get(journal.target.spec.pool)
        if journal.base:
            await pool.restore(journal.target.id, journal.base)
        else:
            await pool.delete(journal.target.id)
            size = (await self._parts.pools.get(journal.source.spec.pool).handle(journal.source.id)).size
            await pool.create(journal.target.id, VolumeForm.BLOCK, size)
        journal.dirty = False
        await self._write()

    async def _copy(self) -> None:
        journal, parts = self.journal, self._parts
        began = time.monotonic()
        source, target = parts.pools.get(journal.source.spec.pool), parts.pools.get(journal.target.spec.pool)
        journal.dirty = True
        await self._write()
        size = (await source.handle(journal.source.id)).size
        if (await target.handle(journal.target.id)).size < size:
            await target.resize(journal.target.id, size)
        made = parts.stacks.made(journal.source.id)
        extents: list[Extent] | None = None
        origin = await self._origin()
        if journal.base:
            if journal.next not in made.copies and journal.base not in made.copies:
                extents = await source.delta(journal.source.id, journal.base, journal.next)
            if extents is None:
                # What is a hole by now may have held data before: it is written as zeros.
                extents = await parts.daemon.map(origin)
        goal = Stack(id=journal.target.id, node=await target.node(journal.target.id))
        if extents is None or extents:
            pieces = joined(extents) if extents is not None else None
            journal.moved = await parts.daemon.copy(origin, goal, None, extents=pieces)
        else:
            journal.moved = 0
        journal.took = time.monotonic() - began
        self._copied = journal.next

    async def _origin(self) -> Stack:
        """The source's snapshot as it lies in its pool."""
        journal = self.journal
        pool, made = self._parts.pools.get(journal.source.spec.pool), self._parts.stacks.made(journal.source.id)
        hidden = made.copies.get(journal.next)
        node = await (pool.node(hidden) if hidden is not None else pool.node(journal.source.id, journal.next))
        return Stack(id=opened_as(journal.source.id, journal.next), node=node, read_only=True)

    async def _seal(self) -> None:
        """From here on the target is the new base: first its snapshot, then the journal, then the old ones go."""
        journal = self.journal
        await self._parts.pools.get(journal.target.spec.pool).snapshot(journal.target.id, journal.next)
        at = now()
        if journal.base_at is not None:
            journal.remember(at, (at - journal.base_at).total_seconds())
        if journal.base:
            journal.stale = [*journal.stale, journal.base]
        journal.base, journal.base_at = journal.next, journal.next_at
        journal.next, journal.next_at, journal.dirty = "", None, False
        journal.cycles += 1
        await self._write()

    async def _drop(self) -> None:
        journal = self.journal
        for id in tuple(journal.stale):
            await self.drop(id)
            journal.stale = [one for one in journal.stale if one != id]
            await self._write()

    async def drop(self, id: str) -> None:
        """Let the snapshot *id* go at both ends."""
        for volume in (self.journal.source, self.journal.target):
            try:
                request = DropSnapshot(snapshot=self._snapshot(id, volume), volumes=[volume])
                await self._snapshots.drop(request, _unheard)
            except NotFound:
                continue

    _steps: dict[Step, Callable[["Cycles"], Awaitable[None]]] = {
        Step.MAKE: _make,
        Step.TAKE: _take,
        Step.REWIND: _rewind,
        Step.COPY: _copy,
        Step.SEAL: _seal,
        Step.DROP: _drop,
    }

    # --- for a promotion

    async def settle(self) -> None:
        """The target is what ``base`` is, with nothing half-written above it."""
        if self.journal.dirty and self.journal.base:
            await self._rewind()

    async def newer(self) -> bool | None:
        """Whether the source was written to since ``base``; ``None`` when that cannot be told without reading it all."""
        journal = self.journal
        pool = self._parts.pools.get(journal.source.spec.pool)
        if not journal.base or journal.base in self._parts.stacks.made(journal.source.id).copies:
            return None
        changed = await pool.delta(journal.source.id, journal.base)
        return None if changed is None else bool(changed)

    def _snapshot(self, id: str, volume: Volume) -> Snapshot:
        spec, status = SnapshotSpec(volume=volume.id), SnapshotStatus(phase=StoragePhase.PENDING)
        snapshot: Snapshot = new_resource("snapshot", f"{volume.name}@replica", spec, status, project=volume.project)
        snapshot.id = id
        return snapshot

    async def _write(self) -> None:
        await blocking(self._journals.of.write, self.id, self.journal)


def _unheard(step: str, done: int, total: int, unit: str) -> None:
    """For steps that nobody needs to hear of."""
