"""Snapshots taken, merged away and restored: of closed volumes by their driver, of open ones by whoever has them open.

Who has a volume open decides how: the storage process goes over to a new layer, an instance's own QEMU does the same for its own disks,
a pool that snapshots below its users is told when nothing is in flight. Several at once are taken while all of their writers stand
still. What is begun is written down first: whatever was not finished is undone before it is tried again.
"""

import asyncio
import hashlib
import logging
import time

import msgspec

from lamella.host.compute.driver import Remembered
from lamella.host.linux.blocking import blocking
from lamella.host.storage.blocks import Stack
from lamella.host.storage.driver import Layer, Layered, StorageDriver
from lamella.host.storage.instant import Instant
from lamella.host.storage.mounting import Mounts
from lamella.host.storage.parts import Parts
from lamella.host.storage.records import BegunSnapshot
from lamella.host.storage.requests import Tell
from lamella.host.storage.ways import MOUNT, TREE
from lamella.model.errors import Conflict, LamellaError, NotFound, Unsupported
from lamella.model.ids import ALPHABET
from lamella.model.instance import Phase
from lamella.model.resource import now
from lamella.model.storage import Feature, SnapshotStatus, StoragePhase, Volume, VolumeForm
from lamella.model.storage_requests import DropSnapshot, ForgetMemory, RestoreSnapshot, TakeSnapshot

log = logging.getLogger("lamella.host.storage")

# In these a machine has a memory that can be kept: it runs, or waits for its command.
_LIVES = (Phase.RUNNING, Phase.STARTING)


class Taking:
    """The volumes of one snapshot, by who has them open. ``own`` are instances' own disks: volume to instance."""

    def __init__(self) -> None:
        self.process: list[Volume] = []
        # Open with a replica: QEMU puts no layer below a quorum, so their files are closed for a moment.
        self.paired: list[Volume] = []
        self.live: list[Volume] = []
        self.own: dict[str, str] = {}
        self.rest: list[Volume] = []
        self.copied: list[Volume] = []
        self.mounted: list[str] = []
        self.users: set[str] = set()
        self.guests: set[str] = set()

    @property
    def acts(self) -> int:
        """How many separate acts take it: with more than one, writers have to stand still in between."""
        return (
            bool(self.process)
            + len(self.paired)
            + len(set(self.own.values()))
            + len(self.live)
            + len(self.rest) * bool(self.users)
        )


class Snapshots:
    """Answers TakeSnapshot, DropSnapshot and RestoreSnapshot."""

    def __init__(self, parts: Parts, mounts: Mounts) -> None:
        self._parts = parts
        self._mounts = mounts
        parts.requests.serve(TakeSnapshot, self.take)
        parts.requests.serve(DropSnapshot, self.drop)
        parts.requests.serve(ForgetMemory, self.forget)
        parts.requests.serve(RestoreSnapshot, self.restore)

    # --- taking

    async def take(self, request: TakeSnapshot, tell: Tell) -> SnapshotStatus:
        """:class:`TakeSnapshot`.

        :raise Unsupported: when a guest is to be frozen and cannot be, or its memory cannot be kept.
        :raise Conflict: when the memory is asked for of what does not run.
        :raise DeadlineExceeded: when it thawed too early; nothing is kept.
        """
        parts, id = self._parts, request.snapshot.id
        async with parts.locks.of(volume.id for volume in request.volumes):
            begun = await blocking(parts.records.snapshots.read, id, BegunSnapshot)
            if begun is not None and begun.done is not None:
                return begun.done
            if begun is not None:
                await self._undo(id, begun)
            instance = request.instance.id if request.instance is not None else ""
            memory = request.snapshot.spec.memory
            begun = BegunSnapshot(volumes=request.volumes, instance=instance, memory=memory)
            await blocking(parts.records.snapshots.write, id, begun)
            try:
                begun.done = await self._take(request, tell)
            except BaseException:
                await asyncio.shield(self._undo(id, begun))
                raise
            await blocking(parts.records.snapshots.write, id, begun)
            return begun.done

    async def _take(self, request: TakeSnapshot, tell: Tell) -> SnapshotStatus:
        id, consistent = request.snapshot.id, request.snapshot.spec.consistent
        tell("snapshot", 0, len(request.volumes), "volumes")
        taking = await self._sort(request)
        sizes = {volume.id: await self._parts.size(volume) for volume in request.volumes}
        # Layers are made before anybody has to wait for them.
        layers: dict[str, Layer] = {}
        for volume in (*taking.process, *(v for v in request.volumes if v.id in taking.own)):
            layers[volume.id] = await self._layered(volume).begin_layer(volume.id, id)
        several = taking.acts > 1 or bool(taking.live) or (bool(taking.rest) and bool(taking.users))
        pause, memory = 0.0, 0
        if request.snapshot.spec.memory:
            # Its disks are as its memory knows them: nobody has to freeze them, and who goes on from it is not frozen.
            kept = await self._with_memory(request, taking, layers)
            pause, memory, consistent = kept.pause, kept.size, True
        elif several or consistent:
            still = Instant(self._parts.writers, self._mounts).of(
                freeze=sorted(taking.guests) if consistent else [],
                mounted=taking.mounted,
                pause=sorted(taking.users) if several else [],
            )
            async with still as stood:
                await self._act(id, taking, layers)
            pause = stood.pause
        else:
            pause = await self._act(id, taking, layers)
        for volume in taking.copied:
            await self._copy(id, volume, tell)
        return SnapshotStatus(
            host=request.snapshot.status.host,
            phase=StoragePhase.READY,
            consistency="application" if consistent else "crash",
            taken_at=now(),
            pause=pause,
            sizes=sizes,
            memory=memory,
        )

    async def _with_memory(self, request: TakeSnapshot, taking: Taking, layers: dict[str, Layer]) -> Remembered:
        """The instant itself, while the instance whose memory is kept stands still."""
        writers, snapshot = self._parts.writers, request.snapshot
        instance = request.instance
        if writers is None or instance is None or await writers.phase(instance.id) not in _LIVES:
            raise Conflict(
                f"snapshot {snapshot.name} cannot have a memory: its instance does not run",
                hint="start it, or leave out --memory",
            )
        if others := taking.users - {instance.id}:
            raise Unsupported(
                f"{instance.name} shares volumes with {', '.join(sorted(others))}: they are of no common instant with its memory",
                hint="leave out --memory",
            )
        async with writers.remember(instance.id, snapshot.id) as kept:
            await self._act(snapshot.id, taking, layers)
        return kept

    async def _sort(self, request: TakeSnapshot) -> Taking:
        parts, taking = self._parts, Taking()
        running = ""
        if request.instance is not None and parts.writers is not None:
            phase = await parts.writers.phase(request.instance.id)
            running = request.instance.id if phase in (Phase.RUNNING, Phase.PAUSED) else ""
        for volume in request.volumes:
            pool = parts.pools.get(volume.spec.pool)
            record = parts.opened.get(volume.id)
            owner = await parts.runs(volume) if record is None else ""
            if Feature.SNAPSHOT not in pool.features:
                _copyable(volume, request, owner)
                taking.copied.append(volume)
            elif owner and isinstance(pool, Layered):
                taking.own[volume.id] = owner
                taking.users.add(owner)
                taking.guests.add(owner)
            elif owner:
                taking.live.append(volume)
                taking.users.add(owner)
                taking.guests.add(owner)
            elif record is None or record.way == TREE:
                taking.rest.append(volume)
                taking.users |= set(record.users) if record is not None else set()
                if volume.spec.form is VolumeForm.FILESYSTEM and running and volume.spec.owner == running:
                    taking.users.add(running)
            else:
                if not isinstance(pool, Layered) and Feature.LIVE_SNAPSHOT not in pool.features:
                    raise Unsupported(
                        f"pool {volume.spec.pool} takes no snapshot of a volume that is open", hint="detach it first"
                    )
                if isinstance(pool, Layered) and await parts.paired(volume.id):
                    taking.paired.append(volume)
                else:
                    (taking.process if isinstance(pool, Layered) else taking.live).append(volume)
                taking.users |= set(record.users)
                if record.way == MOUNT:
                    taking.mounted.append(volume.id)
                else:
                    taking.guests |= {user for user, reads in record.users.items() if not reads}
        return taking

    async def _act(self, id: str, taking: Taking, layers: dict[str, Layer]) -> float:
        """The instant itself. Returns for how long it made its writers wait."""
        parts = self._parts
        open = [volume.id for volume in taking.live if volume.id in parts.opened]
        if open:
            await parts.daemon.flush(open)
        pause = 0.0
        if taking.process:
            pause = await parts.daemon.switch({volume.id: layers[volume.id] for volume in taking.process})
        for volume in taking.paired:
            began = time.perf_counter()
            async with parts.still(volume):
                await parts.pools.get(volume.spec.pool).snapshot(volume.id, id)
            pause += time.perf_counter() - began
        for instance in sorted(set(taking.own.values())):
            assert parts.writers is not None
            mine = {volume: layers[volume] for volume, owner in taking.own.items() if owner == instance}
            await parts.writers.switch(instance, mine)
        for volume in (*taking.live, *taking.rest):
            await parts.pools.get(volume.spec.pool).snapshot(volume.id, id)
        return pause

    async def _copy(self, id: str, volume: Volume, tell: Tell) -> None:
        """A pool that has no snapshots keeps a copy, as it was when the copying began."""
        parts = self._parts
        pool, hidden = parts.pools.get(volume.spec.pool), hidden_id(volume.id, id)
        handle = await pool.handle(volume.id)
        made = parts.stacks.made(volume.id)
        made.copies[id] = hidden
        # Before it is made, so that nothing of it is ever unknown.
        await blocking(parts.records.made.write, volume.id, made)
        await pool.create(hidden, VolumeForm.BLOCK, handle.size)
        target = await parts.stacks.of(volume, id)
        if target.key:
            await parts.daemon.make_luks(_writable(target))
        await parts.daemon.copy(
            await parts.stacks.of(volume), _writable(target), lambda done, total: tell("copy", done, total, "bytes")
        )

    async def recover(self) -> None:
        """What a crash left half taken is undone, as far as what it needs is at hand; the rest when it is asked for again."""
        records = self._parts.records.snapshots
        for id, begun in (await blocking(records.all, BegunSnapshot)).items():
            if begun.done is not None:
                continue
            try:
                async with self._parts.locks.of(volume.id for volume in begun.volumes):
                    # It may have been asked for again meanwhile, and be taken now.
                    left = await blocking(records.read, id, BegunSnapshot)
                    if left is not None and left.done is None:
                        await self._undo(id, left)
            except LamellaError as error:
                log.warning("snapshot %s is half taken: %s", id, error)

    async def _undo(self, id: str, begun: BegunSnapshot) -> None:
        """Whatever there is of it goes, wherever it stopped."""
        for volume in begun.volumes:
            try:
                await self._finish_layer(id, volume)
                await self._drop(id, volume, None)
            except NotFound:
                continue
        if begun.memory:
            await self._forget(id)
        await blocking(self._parts.records.snapshots.forget, id)

    async def _forget(self, id: str) -> None:
        if self._parts.writers is not None:
            await self._parts.writers.forget(id)

    async def _finish_layer(self, id: str, volume: Volume) -> None:
        """A layer that was begun is gone over to, if it was not yet: then it can be merged like any other."""
        pool = self._parts.pools.get(volume.spec.pool)
        if volume.spec.form is not VolumeForm.BLOCK or not isinstance(pool, Layered):
            return
        if id not in await pool.snapshots(volume.id):
            return
        owner = await self._parts.runs(volume)
        open = volume.id in self._parts.opened and not await self._parts.paired(volume.id)
        if owner or open:
            await self._go_over(volume, owner, await pool.begin_layer(volume.id, id))

    async def _go_over(self, volume: Volume, owner: str, layer: Layer) -> None:
        if owner:
            assert self._parts.writers is not None
            await self._parts.writers.switch(owner, {volume.id: layer})
        else:
            await self._parts.daemon.switch({volume.id: layer})

    # --- letting go

    async def drop(self, request: DropSnapshot, tell: Tell) -> None:
        """:class:`DropSnapshot`.

        :raise Conflict: when a closed volume is being exported.
        """
        id = request.snapshot.id
        async with self._parts.locks.of(volume.id for volume in request.volumes):
            for volume in request.volumes:
                self._parts.require_unread(volume, "merged")
            for volume in request.volumes:
                await self._drop(id, volume, tell)
            if request.snapshot.spec.memory:
                await self._forget(id)
            await blocking(self._parts.records.snapshots.forget, id)

    async def forget(self, request: ForgetMemory, tell: Tell) -> None:
        """:class:`ForgetMemory`."""
        await self._forget(request.snapshot.id)

    async def _drop(self, id: str, volume: Volume, tell: Tell | None) -> None:
        parts = self._parts
        pool = parts.pools.get(volume.spec.pool)
        made = parts.stacks.made(volume.id)
        if id in made.copies:
            await pool.delete(made.copies.pop(id), shred=volume.spec.shred)
            await blocking(parts.records.made.write, volume.id, made)
            return
        if Feature.SNAPSHOT not in pool.features:
            return
        owner = await parts.runs(volume)
        if await parts.paired(volume.id):
            async with parts.still(volume):
                await pool.drop(volume.id, id)
        elif volume.spec.form is VolumeForm.BLOCK and isinstance(pool, Layered) and volume.id in parts.opened:
            await self._merge(id, volume, pool, tell)
        else:
            await pool.drop(volume.id, id)
            if owner and isinstance(pool, Layered):
                said = f"the snapshot's room comes back when instance {owner} has stopped"
                parts.tell("volume.merges-later", volume.id, said)

    async def _merge(self, id: str, volume: Volume, pool: StorageDriver, tell: Tell | None) -> None:
        """Of a volume that the storage process has open, while it goes on writing."""
        layered = self._layered(volume)
        kept = await pool.snapshots(volume.id)
        if id in kept and kept[-1] == id:
            # What lies above it is being written: that becomes an inner layer first.
            await self._go_over(volume, "", await layered.begin_layer(volume.id, ""))

        def told(done: int, total: int) -> None:
            if tell is not None:
                tell("merge", done, total, "bytes")

        while (pair := await layered.mergeable(volume.id, id)) is not None:
            await self._parts.daemon.merge(volume.id, *pair, told)
            await layered.merged(volume.id, id)

    # --- going back

    async def restore(self, request: RestoreSnapshot, tell: Tell) -> None:
        """:class:`RestoreSnapshot`."""
        id, parts = request.snapshot.id, self._parts
        async with parts.locks.of(volume.id for volume in request.volumes):
            for volume in request.volumes:
                await parts.require_closed(volume, "restored")
            for number, volume in enumerate(request.volumes):
                tell("restore", number, len(request.volumes), "volumes")
                pool = parts.pools.get(volume.spec.pool)
                if id not in parts.stacks.made(volume.id).copies:
                    await pool.restore(volume.id, id)
                    continue
                origin = await parts.stacks.of(volume, id)
                size = (await pool.handle(parts.stacks.made(volume.id).copies[id])).size
                if (await pool.handle(volume.id)).size != size:
                    await pool.resize(volume.id, size)
                await parts.daemon.copy(
                    origin, await parts.stacks.of(volume), lambda done, total: tell("copy", done, total, "bytes")
                )

    def _layered(self, volume: Volume) -> Layered:
        pool = self._parts.pools.get(volume.spec.pool)
        if not isinstance(pool, Layered):
            raise Unsupported(f"pool {volume.spec.pool} keeps no layers")
        return pool


def hidden_id(volume: str, snapshot: str) -> str:
    """The id of the volume that keeps a snapshot where the pool has none: always the same for the same two."""
    number = int.from_bytes(hashlib.blake2b(f"{volume}@{snapshot}".encode(), digest_size=16).digest(), "big")
    return "vol_" + "".join(ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


def _copyable(volume: Volume, request: TakeSnapshot, owner: str) -> None:
    """:raise Unsupported: of what a copy cannot be: a directory, a disk that the storage process has not open, or one of several."""
    pool = volume.spec.pool
    if volume.spec.form is not VolumeForm.BLOCK:
        raise Unsupported(f"pool {pool} has no snapshots of directories", hint="a btrfs pool has")
    if owner:
        raise Unsupported(f"pool {pool} has no snapshots of a disk that its instance has open", hint="stop it first")
    if len(request.volumes) > 1:
        raise Unsupported(
            f"pool {pool} has no snapshots: a copy of {volume.name} is of no common instant with others",
            hint="take one volume at a time, or move it to another pool",
        )


def _writable(target: Stack) -> Stack:
    return msgspec.structs.replace(target, read_only=False)
