"""Block volumes as layers: the files of one pool, and the record of each volume that says how they hang together.

A layer is on the disk before the record names it, and the record forgets it before it is unlinked; what no record names is removed
when the pool is opened. So a crash at any line leaves what was before or what is after.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from lamella.host.storage import qemu_img, reflink
from lamella.host.storage.directory import extents, scrubbing
from lamella.host.storage.directory import ground as grounds
from lamella.host.storage.directory import record as records
from lamella.host.storage.directory.ground import Ground
from lamella.host.storage.directory.record import LayerRecord, Record, SnapshotRecord
from lamella.host.storage.driver import Base, Extent, Layer
from lamella.model.errors import Conflict, Corrupt, LamellaError, NotFound, Unavailable


class Blocks:
    """*clones* tells, by name, which layers of a volume others stand on. Callers hold the volume's lock."""

    def __init__(self, ground: Ground, clones: Callable[[str], dict[str, list[str]]]) -> None:
        self._ground = ground
        self._clones = clones
        # Whether files of this pool can share blocks; found out when it is opened.
        self.shares = False

    def layers(self, id: str, record: Record, name: str | None = None) -> tuple[list[Layer], Base | None]:
        """All layers from *name* (or the one that is written) down, through the volumes that it was cloned from, and the image below.

        :raise Corrupt: when the chain is broken.
        """
        found: list[Layer] = []
        name = name or record.top
        seen: set[str] = set()
        while True:
            line = records.line(record, name)
            if not line or id in seen:
                raise Corrupt(
                    f"volume {id} stands on a layer {name!r} that is not there", hint="restore it from a backup"
                )
            seen.add(id)
            found += [Layer(path=self._ground.place(id) / layer.name, format=layer.format) for layer in line]
            below, _, name = line[-1].parent.partition("/")
            if not below:
                standing = line[-1].format == "qcow2"
                return found, records.base_of(record) if standing else None
            id = below
            try:
                record = self._ground.read(below)
            except NotFound as error:
                raise Corrupt(
                    f"a layer of volume {below}, which is gone, is missing", hint="restore a backup"
                ) from error

    async def empty(self, staged: Path, record: Record) -> Record:
        """The first layer of a new volume, in the directory *staged*; the record as it is then.

        :raise Unavailable: when the image's disk is not what it was.
        """
        base = records.base_of(record)
        if base is None:
            await asyncio.to_thread(grounds.write, staged / record.top, b"", size=record.size)
            return record
        await asyncio.to_thread(_same, base)
        raw = LayerRecord(name="disk.raw")
        if self.shares and await asyncio.to_thread(reflink.clone, base.path, staged / raw.name):
            await self._fit([Layer(path=staged / raw.name, format="raw")], None, record.size)
            return replace(record, base=None, layers=[raw], top=raw.name)
        await qemu_img.overlay(staged / record.top, record.size, Layer(path=base.path, format="raw"))
        return record

    async def cloned(self, staged: Path, source: str, snapshot: str, size: int) -> Record:
        """The first layer of a volume of *size* bytes (0: the snapshot's) that begins as *snapshot* of *source*, and its record.

        :raise NotFound: when there is no such snapshot. :raise Invalid: when it is larger than *size*.
        """
        origin = self._ground.read(source)
        taken = self.taken(source, origin, snapshot)
        if 0 < size < taken.size:
            raise records.too_small(size, taken.size, "the snapshot")
        size = records.rounded(size or taken.size)
        layer = await self._above(source, origin, taken.layer, staged, "disk", size)
        if layer.parent and "/" not in layer.parent:
            layer = replace(layer, parent=f"{source}/{layer.parent}")
        base = None if layer.parent else origin.base
        return replace(_BLANK, size=size, base=base, layers=[layer], top=layer.name)

    async def _above(self, id: str, record: Record, name: str, place: Path, stem: str, size: int) -> LayerRecord:
        """A new layer *stem* in the directory *place* with the content of the sealed layer *name*: the same blocks, or one over it."""
        chain, base = await asyncio.to_thread(self.layers, id, record, name)
        sealed = record.layer(name)
        assert sealed is not None
        if self.shares:
            made = LayerRecord(name=f"{stem}.{sealed.format}", parent=sealed.parent)
            if await asyncio.to_thread(reflink.clone, chain[0].path, place / made.name):
                await self._fit([Layer(path=place / made.name, format=made.format), *chain[1:]], base, size)
                return made
        made = LayerRecord(name=f"{stem}.qcow2", parent=name)
        await qemu_img.overlay(place / made.name, size, chain[0])
        return made

    async def _fit(self, chain: list[Layer], base: Base | None, size: int) -> None:
        if qemu_img.virtual_size(chain[0]) != size:
            await qemu_img.resize(chain, base.path if base else None, size)

    def taken(self, id: str, record: Record, snapshot: str) -> SnapshotRecord:
        found = record.snapshot(snapshot)
        if found is None:
            raise NotFound(f"volume {id} has no snapshot {snapshot}", hint="ask for its snapshots")
        return found

    async def snapshot(self, id: str, snapshot: str) -> None:
        """Of a closed volume: a file of the same blocks where that can be, else a layer."""
        record = self._ground.read(id)
        if record.snapshot(snapshot) is not None:
            return
        top = record.layer(record.top)
        assert top is not None
        if self.shares:
            kept = LayerRecord(name=f"{_fresh()}.{top.format}", parent=top.parent)
            place = self._ground.place(id)
            if await asyncio.to_thread(reflink.clone, place / top.name, place / kept.name):
                taken = SnapshotRecord(id=snapshot, layer=kept.name, size=record.size)
                made = replace(record, layers=[kept, *record.layers], snapshots=[*record.snapshots, taken])
                await self._write(id, record, made)
                return
        await self.closed(id, record)
        await self.begin(id, snapshot)

    async def begin(self, id: str, snapshot: str) -> Layer:
        """An empty layer on top; what is below is *snapshot* (empty: nothing)."""
        record = self._ground.read(id)
        place = self._ground.place(id)
        if snapshot and (taken := record.snapshot(snapshot)) is not None:
            chain = [layer.name for layer in records.line(record, record.top)]
            if taken.layer in chain[1:]:
                name = chain[chain.index(taken.layer) - 1]
                return Layer(path=place / name, format=name.rpartition(".")[2])
            raise Conflict(f"snapshot {snapshot} of volume {id} is there, and the volume stands on another one")
        layer = LayerRecord(name=f"{_fresh()}.qcow2", parent=record.top)
        await qemu_img.overlay(place / layer.name, record.size, self._layer(id, record.top))
        kept = [SnapshotRecord(id=snapshot, layer=record.top, size=record.size)] if snapshot else []
        made = replace(record, layers=[layer, *record.layers], top=layer.name, snapshots=[*record.snapshots, *kept])
        await self._write(id, record, made)
        return Layer(path=place / layer.name, format="qcow2")

    async def restore(self, id: str, snapshot: str) -> None:
        record = self._ground.read(id)
        taken = self.taken(id, record, snapshot)
        await self.closed(id, record)
        fresh = await self._above(id, record, taken.layer, self._ground.place(id), _fresh(), taken.size)
        made = replace(record, layers=[fresh, *record.layers], top=fresh.name, size=taken.size, resizing=False)
        await self._write(id, record, records.pruned(made, self._clones(id)))

    async def resize(self, id: str, size: int) -> None:
        """What is to be is written down first: a crash in between is made good when the pool is opened."""
        record = self._ground.read(id)
        await self.closed(id, record)
        size = records.rounded(size)
        if size != record.size or record.resizing:
            await self._write(id, record, replace(record, size=size, resizing=True))
            try:
                await self.finish_resize(id)
            except LamellaError:
                await self._write(id, record, record)
                raise

    async def finish_resize(self, id: str, *, again: bool = False) -> None:
        """Make the top layer what the record says; *again* when whoever was at it may have been killed, and left clusters to nothing."""
        record = self._ground.read(id)
        layers, base = await asyncio.to_thread(self.layers, id, record)
        await self._fit(layers, base, record.size)
        if again and layers[0].format == "qcow2":
            await qemu_img.check(layers[0], repair="leaks")
        await self._write(id, record, replace(record, resizing=False))

    async def resized(self, id: str, size: int) -> None:
        record = self._ground.read(id)
        if size != record.size:
            await self._write(id, record, replace(record, size=size))

    async def let_go(self, id: str, snapshot: str) -> None:
        """*snapshot* is one no more; its layer stays as long as something stands on it.

        :raise Conflict: when a clone does; it is named.
        """
        record = self._ground.read(id)
        taken = record.snapshot(snapshot)
        if taken is None:
            return
        on = self._clones(id).get(taken.layer, [])
        if on and sum(other.layer == taken.layer for other in record.snapshots) == 1:
            raise Conflict(
                f"snapshot {snapshot} of volume {id} is what {', '.join(sorted(on))} began as",
                hint="delete what stands on it first",
            )
        made = replace(record, snapshots=[other for other in record.snapshots if other.id != snapshot])
        await self._write(id, record, records.pruned(made, self._clones(id)))

    async def mergeable(self, id: str) -> tuple[Layer, Layer] | None:
        """Two layers of an open volume that can become one: never the one that is written, and none that would have to shrink."""
        record = self._ground.read(id)
        for upper, lower in records.mergeable(record, self._clones(id), with_top=False):
            above, below = (self._layer(id, name) for name in (upper, lower))
            if qemu_img.virtual_size(above) >= qemu_img.virtual_size(below):
                return above, below
        return None

    async def merged(self, id: str, pair: tuple[str, str]) -> None:
        record = self._ground.read(id)
        upper, lower = pair
        if record.layer(upper) is None or record.layer(lower) is None:
            return
        made = records.merged(record, upper, lower)
        await self._write(id, record, records.pruned(made, self._clones(id)))

    async def tidy(self, id: str) -> bool:
        """Merge all that can be while nobody has the volume open; ``False`` when somebody has."""
        while True:
            record = self._ground.read(id)
            pairs = records.mergeable(record, self._clones(id), with_top=True)
            if not pairs:
                return True
            upper, lower = pairs[0]
            chain, base = await asyncio.to_thread(self.layers, id, record, upper)
            size, below = (qemu_img.virtual_size(layer) for layer in chain[:2])
            try:
                await self.closed(id, record)
                await qemu_img.commit(chain, base.path if base else None)
                if below > size:
                    await qemu_img.resize(chain[1:], base.path if base else None, size)
            except Conflict:
                return False
            await self.merged(id, (upper, lower))

    async def reclaim(self, id: str) -> None:
        """Give back clusters that a merge which was killed in the middle left allocated to nothing: of layers that wait to be merged into.

        :raise Conflict: when somebody has one of them open.
        """
        record = self._ground.read(id)
        for _, lower in records.mergeable(record, self._clones(id), with_top=True):
            layer = self._layer(id, lower)
            if layer.format == "qcow2":
                await qemu_img.check(layer, repair="leaks")

    async def delta(self, id: str, since: str, until: str | None) -> list[Extent] | None:
        """``None`` when what is now does not stand on *since*."""
        record = self._ground.read(id)
        start = self.taken(id, record, since)
        end = self.taken(id, record, until).layer if until else record.top
        layers, base = await asyncio.to_thread(self.layers, id, record, end)
        names = [layer.name for layer in records.line(record, end)]
        if start.layer not in names:
            return await self._unshared(id, record, start, layers, record.snapshot(until or ""))
        newer = names.index(start.layer)
        if not newer:
            return []
        found: list[Extent] = []
        for extent in await qemu_img.mapped(qemu_img.node(layers, base.path if base else None, read_only=True)):
            changed = extent.present and extent.depth < newer
            # What lies beyond the old end is new, whether it was written or not.
            first = extent.start if changed else max(extent.start, start.size)
            if first < extent.start + extent.length:
                found.append(Extent(offset=first, length=extent.start + extent.length - first, zero=extent.zero))
        return found

    async def _unshared(
        self, id: str, record: Record, start: SnapshotRecord, layers: list[Layer], end: SnapshotRecord | None
    ) -> list[Extent] | None:
        """Of two raw files that share blocks."""
        older, _ = await asyncio.to_thread(self.layers, id, record, start.layer)
        if not self.shares or [layer.format for layer in (*older, *layers)] != ["raw", "raw"]:
            return None
        before, now = [await asyncio.to_thread(extents.runs, layer.path) for layer in (*older, *layers)]
        return extents.changed(before, now, start.size, end.size if end else record.size)

    async def closed(self, id: str, record: Record) -> None:
        """Who wrote it a moment ago may keep its lock for a moment more: what was under way in the kernel has to end first.

        :raise Conflict: when somebody writes it.
        """
        end = time.monotonic() + _LOCKS
        while qemu_img.written_by_somebody(self._ground.place(id) / record.top):
            if time.monotonic() > end:
                raise Conflict(f"volume {id} is open", hint="stop or detach what uses it, then try again")
            await asyncio.sleep(0.02)

    def unnamed(self, id: str, record: Record) -> list[Path]:
        """Layers that lie there and that the record does not name."""
        names = {layer.name for layer in record.layers}
        place = self._ground.place(id)
        return [path for path in place.iterdir() if path.suffix in (".raw", ".qcow2") and path.name not in names]

    def _layer(self, id: str, name: str) -> Layer:
        return Layer(path=self._ground.place(id) / name, format=name.rpartition(".")[2])

    async def _write(self, id: str, old: Record, new: Record) -> None:
        """Write *new* down, then remove the files that only *old* names. What may be written from now on has no digest any more."""
        fixed = scrubbing.sealed(new, self._clones(id))
        await asyncio.to_thread(scrubbing.keep_only, id, self._ground, fixed)
        await asyncio.to_thread(self._ground.write, id, new)
        for layer in old.layers:
            if new.layer(layer.name) is None:
                with suppress(OSError):
                    (self._ground.place(id) / layer.name).unlink(missing_ok=True)


# Seconds for which the lock of one that has closed a file may outlive it.
_LOCKS = 5.0
_BLANK = Record(form=records.VolumeForm.BLOCK, size=0)


def _fresh() -> str:
    return f"layer-{secrets.token_hex(5)}"


def _same(base: Base) -> None:
    try:
        found = base.path.stat().st_size
    except OSError as error:
        raise Unavailable(
            f"the image's disk {base.path} cannot be read: {error.strerror}", hint="fetch or build the image again"
        ) from error
    if found != base.size:
        raise Unavailable(
            f"the image's disk {base.path} has {found} bytes, not {base.size}", hint="fetch or build the image again"
        )
