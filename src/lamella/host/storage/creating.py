"""Volumes made, measured and removed. Each step is written down when it is done, so that whoever asks again goes on where it ended."""

import msgspec

from lamella.host.linux.blocking import blocking
from lamella.host.storage.blocks import OVERHEAD
from lamella.host.storage.driver import Source, StorageDriver
from lamella.host.storage.ext4 import Ext4
from lamella.host.storage.keys import new_key
from lamella.host.storage.parts import Parts
from lamella.host.storage.records import BegunSnapshot, MadeVolume
from lamella.host.storage.requests import Tell
from lamella.model.errors import Invalid, LamellaError, Unavailable, Unsupported
from lamella.model.storage import Feature, Snapshot, StoragePhase, Volume, VolumeForm, VolumeStatus
from lamella.model.storage_requests import CreateVolume, DeleteVolume, MeasureVolumes


class Creating:
    """Answers CreateVolume, DeleteVolume and MeasureVolumes."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._tools = Ext4(parts.home.mark)
        parts.requests.serve(CreateVolume, self.create)
        parts.requests.serve(DeleteVolume, self.delete)
        parts.requests.serve(MeasureVolumes, self.measure)

    async def create(self, request: CreateVolume, tell: Tell) -> VolumeStatus:
        """:class:`CreateVolume`.

        :raise Unsupported: when the pool or the form cannot do what the spec asks.
        """
        volume, source, snapshot = request.volume, request.source, request.snapshot
        check(volume, source, snapshot)
        parts = self._parts
        async with parts.locks.of([volume.id, *([source.id] if source is not None else [])]):
            pool = parts.pools.get(volume.spec.pool)
            made = parts.stacks.made(volume.id)
            native = source is not None and snapshot is not None and self._native(pool, volume, source, snapshot)
            if volume.spec.encryption is not None and not made.key:
                key = await self._key_of(source, request.passphrase) if native and source is not None else new_key()
                made.key = await parts.stacks.keys.wrap(volume.id, key, volume.spec.encryption, request.passphrase)
                await blocking(parts.records.made.write, volume.id, made)
            await self._make(request, pool, made, native, tell)
            if made.key:
                await blocking(parts.records.made.write, volume.id, made)
            return await self.status(volume)

    async def _make(
        self, request: CreateVolume, pool: StorageDriver, made: MadeVolume, native: bool, tell: Tell
    ) -> None:
        volume, source, snapshot = request.volume, request.source, request.snapshot
        daemon, stacks = self._parts.daemon, self._parts.stacks
        tell("create", 0, 0, "")
        size = volume.spec.size
        if source is not None and snapshot is not None:
            size = size or snapshot.status.sizes.get(source.id, 0)
        if made.key and size:
            size += OVERHEAD
        begins = Source(volume=source.id, snapshot=snapshot.id) if native and source and snapshot else None
        handle = await pool.create(volume.id, volume.spec.form, size, source=begins)
        if native or handle.form is not VolumeForm.BLOCK:
            return
        if made.key and not made.encrypted:
            tell("encrypt", 0, 0, "")
            await daemon.make_luks(await stacks.of(volume, passphrase=request.passphrase))
            await self._done(volume, made, encrypted=True)
        if source is not None and snapshot is not None and not made.filled:
            await self._fill(request, source, snapshot, tell)
            await self._done(volume, made, filled=True)
        elif volume.spec.filesystem and not made.formatted and source is None:
            tell("format", 0, 0, "")
            async with self._parts.disk(volume, passphrase=request.passphrase) as file:
                # A new volume reads as zeros (StorageDriver.create), an encrypted one as what zeros decrypt to.
                await self._tools.make(file, volume.name, zeros=not made.key)
            await self._done(volume, made, formatted=True)

    async def _fill(self, request: CreateVolume, source: Volume, snapshot: Snapshot, tell: Tell) -> None:
        """Copy the snapshot's content: another pool, or one that cannot clone."""
        stacks = self._parts.stacks
        target = await stacks.of(request.volume, passphrase=request.passphrase)
        try:
            origin = await stacks.of(source, snapshot.id)
        except Unavailable:
            origin = await stacks.of(source, snapshot.id, passphrase=request.passphrase)
        await self._parts.daemon.copy(origin, target, lambda done, total: tell("copy", done, total, "bytes"))

    def _native(self, pool: StorageDriver, volume: Volume, source: Volume, snapshot: Snapshot) -> bool:
        stacks = self._parts.stacks
        return (
            source.spec.pool == volume.spec.pool
            and Feature.CLONE in pool.features
            and snapshot.id not in stacks.made(source.id).copies
            and stacks.encrypted(source) == (volume.spec.encryption is not None)
        )

    async def _key_of(self, source: Volume | None, passphrase: str) -> bytes:
        assert source is not None
        try:
            return await self._parts.stacks.key(source)
        except Unavailable:
            return await self._parts.stacks.key(source, passphrase)

    async def _done(
        self,
        volume: Volume,
        made: MadeVolume,
        *,
        encrypted: bool = False,
        filled: bool = False,
        formatted: bool = False,
    ) -> None:
        made.encrypted |= encrypted
        made.filled |= filled
        made.formatted |= formatted
        await blocking(self._parts.records.made.write, volume.id, made)

    async def delete(self, request: DeleteVolume, tell: Tell) -> None:
        """:class:`DeleteVolume`."""
        volume, parts = request.volume, self._parts
        async with parts.locks.of([volume.id]):
            await parts.require_closed(volume, "removed")
            tell("shred" if volume.spec.shred else "remove", 0, 0, "")
            pool = parts.pools.get(volume.spec.pool)
            for hidden in parts.stacks.made(volume.id).copies.values():
                await pool.delete(hidden, shred=volume.spec.shred)
            await pool.delete(volume.id, shred=volume.spec.shred)
            await self._forget_snapshots(volume.id)
            # Last: while the volume is there, so is its key.
            await blocking(parts.records.made.forget, volume.id)
            parts.stacks.keys.forget(volume.id)

    async def _forget_snapshots(self, id: str) -> None:
        """What was written down of snapshots of which no volume is left."""
        parts = self._parts
        for snapshot, begun in (await blocking(parts.records.snapshots.all, BegunSnapshot)).items():
            of = {volume.id: volume.spec.pool for volume in begun.volumes}
            if id not in of or any([other in await parts.pools.get(pool).inventory() for other, pool in of.items()]):
                continue
            await blocking(parts.records.snapshots.forget, snapshot)

    async def measure(self, request: MeasureVolumes, tell: Tell) -> dict[str, VolumeStatus]:
        """:class:`MeasureVolumes`. One that cannot be measured is left out."""
        found: dict[str, VolumeStatus] = {}
        for number, volume in enumerate(request.volumes):
            tell("measure", number, len(request.volumes), "volumes")
            try:
                found[volume.id] = await self._parts.stalls.bounded([volume.spec.pool], self.status(volume))
            except LamellaError:
                continue
        return found

    async def status(self, volume: Volume) -> VolumeStatus:
        """What control writes down of it."""
        parts = self._parts
        used = await parts.pools.get(volume.spec.pool).used(volume.id)
        for hidden in parts.stacks.made(volume.id).copies.values():
            used += await parts.pools.get(volume.spec.pool).used(hidden)
        return msgspec.structs.replace(
            volume.status,
            phase=StoragePhase.READY,
            size=await parts.size(volume),
            used=used,
            key=parts.stacks.wrapped(volume),
        )


def check(volume: Volume, source: Volume | None, snapshot: Snapshot | None) -> None:
    """What no pool could do.

    :raise Unsupported: of a directory. :raise Invalid: when source and snapshot do not go together.
    """
    spec = volume.spec
    if (source is None) != (snapshot is None):
        raise Invalid("a volume begins as a snapshot of a volume: both are needed", field="source")
    if source is not None and source.spec.form is not spec.form:
        raise Invalid(f"a {spec.form} volume cannot begin as a {source.spec.form} one", field="form")
    if spec.form is VolumeForm.BLOCK:
        return
    asked = {
        "encrypted": spec.encryption is not None,
        "limited": spec.limits.limited,
        "formatted": bool(spec.filesystem),
    }
    for what, wanted in asked.items():
        if wanted:
            raise Unsupported(
                f"a volume of form filesystem cannot be {what}", hint="--form block --filesystem ext4 can", field="form"
            )
    if source is not None and source.spec.pool != spec.pool:
        raise Unsupported(
            "a directory can be cloned in its own pool only", hint=f"create it in pool {source.spec.pool}", field="pool"
        )
