"""What every pool does whose volumes are files of this host: the verbs of the Protocol over records, layers and trees."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from msgspec.structs import replace

from lamella.host.storage import qemu_img, reflink
from lamella.host.storage.directory import checking, scrubbing
from lamella.host.storage.directory import ground as grounds
from lamella.host.storage.directory import record as records
from lamella.host.storage.directory.blocks import Blocks
from lamella.host.storage.directory.ground import Ground
from lamella.host.storage.directory.record import Record, SnapshotRecord
from lamella.host.storage.directory.trees import Trees
from lamella.host.storage.directory.writing import written
from lamella.host.storage.driver import Base, Extent, Node, Source, VolumeHandle
from lamella.model.errors import Conflict, Corrupt, Invalid, LamellaError, NotFound, Unavailable
from lamella.model.storage import Feature, PoolStatus, VolumeForm
from lamella.model.storage_requests import StorageFinding


class FilePool:
    """What every pool does whose volumes are files of this host; :class:`StorageDriver` but for a name and features.

    *path* is on a filesystem that takes an overlay's upper directory.
    """

    name = ""
    features: frozenset[Feature] = frozenset()

    def __init__(self, path: Path, options: dict[str, str] | None = None, *, trees: Trees | None = None) -> None:
        self.path = path
        self.trees = trees or Trees()
        self.ground = Ground(path, self.trees.release)
        self.blocks = Blocks(self.ground, self.clones)
        # Which (volume, layer) the bottom of a volume stands on: of clones only.
        self._stands: dict[str, tuple[str, str]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.merging: dict[tuple[str, str], tuple[str, str]] = {}

    def clones(self, id: str) -> dict[str, list[str]]:
        """Names of layers of volume *id*, and the volumes that stand on each."""
        found: dict[str, list[str]] = {}
        for clone, (volume, layer) in self._stands.items():
            if volume == id:
                found.setdefault(layer, []).append(clone)
        return found

    async def open(self) -> PoolStatus:
        """Make the pool's directories, drop what a crash left half done, and say what room there is.

        :raise Unavailable: when *path* cannot be made or written, or another daemon has it.
        """
        await asyncio.to_thread(self._open)
        for id in await self.inventory():
            await self._finish(id)
        # Again: what volumes' own leftovers were lies in the trash now.
        leftovers = await asyncio.to_thread(self.ground.sweep)
        status = await self.status()
        status.conditions.extend(leftovers)
        return status

    def _open(self) -> None:
        self.ground.prepare()
        self.ground.sweep()
        try:
            self.blocks.shares = reflink.possible(self.ground.staging)
        except OSError:  # a full one; then its snapshots are layers until it is opened again
            self.blocks.shares = False

    async def _finish(self, id: str) -> None:
        """Finish or undo what a crash left of a volume; what is broken is left to :meth:`check`."""
        try:
            record = await asyncio.to_thread(self.ground.read, id)
        except (Corrupt, NotFound):
            return
        self._index(id, record)
        try:
            await asyncio.to_thread(self._sweep_volume, id, record)
            if record.form is VolumeForm.BLOCK:
                await self._settle_size(id, record)
                await self.blocks.reclaim(id)
        except (LamellaError, OSError):
            return

    def _index(self, id: str, record: Record) -> None:
        self._stands.pop(id, None)
        for layer in record.layers:
            volume, _, name = layer.parent.rpartition("/")
            if volume:
                self._stands[id] = (volume, name)

    def _sweep_volume(self, id: str, record: Record) -> None:
        (self.ground.place(id) / grounds.DRAFT).unlink(missing_ok=True)
        for path in self.blocks.unnamed(id, record):
            path.unlink()
        kept = {snapshot.id for snapshot in record.snapshots}
        for path in (self.ground.place(id) / "snapshots").glob("*"):
            if path.name not in kept:
                self.trees.discard(path, self.ground)

    async def _settle_size(self, id: str, record: Record) -> None:
        """A resize that was begun is finished; one that the storage process made, and that was not written down, is."""
        if record.resizing:
            await self.blocks.finish_resize(id, again=True)
            return
        layers, _ = self.blocks.layers(id, record)
        size = await asyncio.to_thread(qemu_img.virtual_size, layers[0])
        if size > record.size:
            await self.blocks.resized(id, size)

    async def close(self) -> None:
        await asyncio.to_thread(self.ground.release)

    async def status(self) -> PoolStatus:
        raise NotImplementedError

    def try_out(self) -> None:
        """:class:`~lamella.host.storage.driver.Tried`."""
        self.ground.try_out()

    async def inventory(self) -> set[str]:
        return await asyncio.to_thread(self.ground.ids)

    @asynccontextmanager
    async def held(self, *ids: str) -> AsyncGenerator[None]:
        """One verb at a time on each volume, in the order of their ids."""
        locks = [self._locks.setdefault(id, asyncio.Lock()) for id in sorted(set(ids))]
        async with AsyncExitStack() as stack:
            for lock in locks:
                await stack.enter_async_context(lock)
            yield

    async def create(
        self, id: str, form: VolumeForm, size: int, *, base: Base | None = None, source: Source | None = None
    ) -> VolumeHandle:
        """Make it, or return the one there is. A block volume of size 0 gets the size of what it begins as, or 8 GiB; sizes grow to a
        multiple of 4 KiB.

        :raise NoRoom: when the filesystem is full.
        :raise Conflict: when a volume of that id has another form.
        :raise Invalid: when *id* is no id, *size* is negative or smaller than what it begins as, or *form* is another one.
        :raise NotFound: when there is no such *source*.
        :raise Unavailable: when *base* cannot be read, or a tool is not installed.
        """
        place = self.ground.place(id)
        record = records.record_for(form, size, base)
        async with self.held(id, *([source.volume] if source else [])):
            if not await asyncio.to_thread(place.exists):
                with self.ground.room(f"create volume {id}"):
                    await self._make(id, record, size, source)
            handle = await self.handle(id)
        if handle.form is not form:
            raise Conflict(
                f"volume {id} exists and is a {handle.form} volume, not a {form} one",
                hint="delete it first",
                field="form",
            )
        return handle

    async def _make(self, id: str, record: Record, size: int, source: Source | None) -> None:
        staged = await asyncio.to_thread(self.ground.stage, id)
        try:
            await asyncio.to_thread(self.trees.prepare, staged)
            if source is not None:
                record = await self._begin_as(staged, record, source, size)
            elif record.form is VolumeForm.FILESYSTEM:
                await self.trees.make(staged / "data", record.size)
            else:
                record = await self.blocks.empty(staged, record)
            await asyncio.to_thread(grounds.write, staged / grounds.RECORD, records.encoded(record))
            # From here on nobody may take away what it stands on.
            self._index(id, record)
            await asyncio.to_thread(self.ground.publish, staged, self.ground.place(id))
        except BaseException:
            self._stands.pop(id, None)
            await asyncio.to_thread(self.ground.forget, staged)
            raise

    async def _begin_as(self, staged: Path, record: Record, source: Source, size: int) -> Record:
        origin = await asyncio.to_thread(self.ground.read, source.volume)
        if origin.form is not record.form:
            raise Invalid(
                f"a {record.form} volume cannot begin as a snapshot of a {origin.form} one",
                hint=f"ask for a {origin.form} volume",
                field="form",
            )
        if record.form is VolumeForm.BLOCK:
            return await self.blocks.cloned(staged, source.volume, source.snapshot, size)
        taken = self.blocks.taken(source.volume, origin, source.snapshot)
        await self.trees.copy(self._kept(source.volume, taken.id), staged / "data", size)
        return record

    def _kept(self, id: str, snapshot: str) -> Path:
        if not grounds.is_id(snapshot):
            raise Invalid(f"{snapshot!r} is not an id", hint="ids look like snap_ and 26 characters", field="snapshot")
        return self.ground.place(id) / "snapshots" / snapshot

    async def handle(self, id: str) -> VolumeHandle:
        """:raise NotFound: when there is no such volume here. :raise Invalid: when *id* is no id."""
        return await asyncio.to_thread(self._handle, id)

    def _handle(self, id: str) -> VolumeHandle:
        record = self.ground.read(id)
        if record.form is VolumeForm.FILESYSTEM:
            return VolumeHandle(id=id, form=record.form, path=self.ground.place(id) / "data", size=record.size)
        layers, base = self.blocks.layers(id, record)
        top, below = layers[0], layers[1:]
        return VolumeHandle(
            id=id, form=record.form, path=top.path, size=record.size, format=top.format, below=below, base=base
        )

    async def node(self, id: str, snapshot: str | None = None) -> Node:
        """:raise NotFound: when there is no such volume or snapshot here. :raise Invalid: when it is a filesystem volume."""
        return await asyncio.to_thread(self._node, id, snapshot)

    def _node(self, id: str, snapshot: str | None) -> Node:
        record = self.block(id)
        name = None if snapshot is None else self.blocks.taken(id, record, snapshot).layer
        layers, base = self.blocks.layers(id, record, name)
        return qemu_img.node(layers, base.path if base else None, read_only=snapshot is not None)

    def block(self, id: str) -> Record:
        record = self.ground.read(id)
        if record.form is not VolumeForm.BLOCK:
            raise Invalid(f"volume {id} is a directory, not a disk", hint="mount it", field="form")
        return record

    async def used(self, id: str) -> int:
        """Bytes allocated to it in the filesystem: what a sparse file really takes, a hard link once. Shared blocks count for each.

        :raise NotFound: when there is no such volume here.
        """
        try:
            return await self.trees.used(self.ground.place(id))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self.ground.missing(id) from error

    async def resize(self, id: str, size: int) -> VolumeHandle:
        """:raise Conflict: when a block volume is open. :raise NoRoom: when the pool is full."""
        if size < 0:
            raise Invalid(f"a volume cannot have {size} bytes", hint="use 0 or more", field="size")
        async with self.held(id):
            record = await asyncio.to_thread(self.ground.read, id)
            with self.ground.room(f"resize volume {id}"):
                if record.form is VolumeForm.BLOCK:
                    await self.blocks.resize(id, size or record.size)
                else:
                    await self.trees.bound(self.ground.place(id) / "data", size)
                    await asyncio.to_thread(self.ground.write, id, replace(record, size=size))
            return await self.handle(id)

    async def resized(self, id: str, size: int) -> None:
        async with self.held(id):
            await asyncio.to_thread(self.block, id)
            with self.ground.room(f"resize volume {id}"):
                await self.blocks.resized(id, size)

    async def snapshot(self, id: str, snapshot: str) -> None:
        """:raise NoRoom: when the pool is full."""
        kept = self._kept(id, snapshot)
        async with self.held(id):
            record = await asyncio.to_thread(self.ground.read, id)
            if record.snapshot(snapshot) is not None:
                return
            with self.ground.room(f"keep a snapshot of volume {id}"):
                if record.form is VolumeForm.BLOCK:
                    await self.blocks.snapshot(id, snapshot)
                    return
                await asyncio.to_thread(kept.parent.mkdir, mode=0o700, exist_ok=True)
                await asyncio.to_thread(self.trees.discard, kept, self.ground)
                staged = await asyncio.to_thread(self.ground.stage, id)
                try:
                    await self.trees.keep(self.ground.place(id) / "data", kept, staged, self.ground)
                    taken = SnapshotRecord(id=snapshot, size=record.size)
                    made = replace(record, snapshots=[*record.snapshots, taken])
                    await asyncio.to_thread(self.ground.write, id, made)
                finally:
                    await asyncio.to_thread(self.ground.forget, staged)

    async def snapshots(self, id: str) -> list[str]:
        record = await asyncio.to_thread(self.ground.read, id)
        return [snapshot.id for snapshot in record.snapshots]

    async def drop(self, id: str, snapshot: str) -> None:
        """A layer that something else still stands on, and one of a volume that is open, stays hidden until it can be merged: when
        another snapshot is dropped, or by :meth:`check`.

        :raise Conflict: when volumes stand on it; they are named.
        """
        kept = self._kept(id, snapshot)
        async with self.held(id):
            try:
                record = await asyncio.to_thread(self.ground.read, id)
            except NotFound:
                return
            with self.ground.room(f"drop a snapshot of volume {id}"):
                if record.form is VolumeForm.BLOCK:
                    await self.blocks.let_go(id, snapshot)
                    await self.blocks.tidy(id)
                    return
                if record.snapshot(snapshot) is not None:
                    others = [other for other in record.snapshots if other.id != snapshot]
                    await asyncio.to_thread(self.ground.write, id, replace(record, snapshots=others))
                await asyncio.to_thread(self.trees.discard, kept, self.ground)
        await self.ground.empty_trash()

    async def restore(self, id: str, snapshot: str) -> None:
        """:raise NotFound: when there is no such snapshot. :raise Conflict: when it is open."""
        kept = self._kept(id, snapshot)
        async with self.held(id):
            record = await asyncio.to_thread(self.ground.read, id)
            with self.ground.room(f"restore volume {id}"):
                if record.form is VolumeForm.BLOCK:
                    await self.blocks.restore(id, snapshot)
                    return
                taken = self.blocks.taken(id, record, snapshot)
                data = self.ground.place(id) / "data"
                await asyncio.to_thread(self._unmounted, id)
                staged = await asyncio.to_thread(self.ground.stage, id)
                try:
                    await self.trees.copy(kept, staged / "data", taken.size)
                    await asyncio.to_thread(grounds.exchange, staged / "data", data)
                    await asyncio.to_thread(self.ground.write, id, replace(record, size=taken.size))
                finally:
                    await asyncio.to_thread(self.ground.forget, staged)

    def _unmounted(self, id: str) -> None:
        mounted = grounds.mounted_below(self.ground.place(id))
        if mounted is not None:
            raise Conflict(f"volume {id} is in use: {mounted} is mounted", hint="stop the instance that uses it")

    async def delete(self, id: str, *, shred: bool = False) -> None:
        """Rename it into the trash, then remove it there. What is left after a crash goes when the pool is opened, shredded if it was
        to be.

        :raise Conflict: when something is mounted inside, somebody writes to it, or volumes stand on its snapshots; then nothing is
            changed.
        :raise Unavailable: when the pool is not at its place: whether the volume is gone cannot be known then.
        """
        place = self.ground.place(id)
        async with self.held(id):
            on = sorted({clone for clones in self.clones(id).values() for clone in clones})
            if on:
                raise Conflict(f"snapshots of volume {id} are what {', '.join(on)} began as", hint="delete them first")
            await asyncio.to_thread(self._unmounted, id)
            if not await asyncio.to_thread(place.exists):
                await asyncio.to_thread(self.ground.require)
                return
            if await asyncio.to_thread(written, place):
                raise Conflict(f"volume {id} is written to", hint="stop whoever has it open first")
            await asyncio.to_thread(self.ground.discard, place, shred=shred)
            self._stands.pop(id, None)
        try:
            await self.ground.empty_trash()
        except OSError as error:
            raise Unavailable(f"remains of volume {id} stay in {self.ground.trash}: {error.strerror}") from error

    async def delta(self, id: str, since: str, until: str | None = None) -> list[Extent] | None:
        """For a volume that is open, give *until*: what was written last may be unknown to its tables still."""
        record = await asyncio.to_thread(self.ground.read, id)
        if record.form is not VolumeForm.BLOCK:
            for snapshot in (since, until or since):
                self.blocks.taken(id, record, snapshot)
            return None
        return await self.blocks.delta(id, since, until)

    async def check(self, *, repair: bool) -> list[StorageFinding]:
        found: list[StorageFinding] = []
        for id in sorted(await self.inventory()):
            async with self.held(id):
                found += await checking.check(id, self.ground, self.blocks, repair=repair)
        return found

    async def scrub(self, *, repair: bool) -> tuple[int, list[StorageFinding]]:
        """Of layers that are written no more: read, and compared with what an earlier scrub has read there. Nothing can be mended here:
        there is no second copy."""
        read, found = 0, list[StorageFinding]()
        for id in sorted(await self.inventory()):
            async with self.held(id):
                amount, wrong = await scrubbing.scrub(id, self.ground, self.clones(id))
                read, found = read + amount, found + wrong
        return read, found


def room_of(path: Path) -> tuple[int, int]:
    """(capacity, free) in bytes.

    :raise Unavailable: when the directory does not answer.
    """
    try:
        room = os.statvfs(path)
    except OSError as error:
        raise Unavailable(f"pool directory {path} cannot be read: {error.strerror}") from error
    return room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
