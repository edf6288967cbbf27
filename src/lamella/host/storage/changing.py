"""Volumes changed: their size, their limits, their key. Open ones while they are used, as far as that can be."""

import contextlib

from lamella.host.linux.blocking import blocking
from lamella.host.storage import ext4
from lamella.host.storage.attaching import Attaching
from lamella.host.storage.creating import Creating
from lamella.host.storage.keys import method_of, new_key
from lamella.host.storage.parts import Parts
from lamella.host.storage.requests import Tell
from lamella.host.storage.stacks import group_of
from lamella.host.storage.ways import FILE, MOUNT, SERVED, TREE
from lamella.model.errors import Conflict, Invalid, LamellaError, Unavailable, Unsupported
from lamella.model.storage import KeyWrap, Volume, VolumeForm, VolumeStatus
from lamella.model.storage_requests import LimitVolume, RekeyVolume, ResizeVolume, UnlockVolume

_GRAIN = 4096


class Changing:
    """Answers ResizeVolume, LimitVolume, RekeyVolume and UnlockVolume."""

    def __init__(self, parts: Parts, attaching: Attaching, creating: Creating) -> None:
        self._parts = parts
        self._attaching = attaching
        self._creating = creating
        parts.requests.serve(ResizeVolume, self.resize)
        parts.requests.serve(LimitVolume, self.limit)
        parts.requests.serve(RekeyVolume, self.rekey)
        parts.requests.serve(UnlockVolume, self.unlock)

    # --- size

    async def resize(self, request: ResizeVolume, tell: Tell) -> VolumeStatus:
        """:class:`ResizeVolume`."""
        volume, parts = request.volume, self._parts
        size = -(-request.size // _GRAIN) * _GRAIN
        async with parts.locks.of([volume.id]):
            tell("resize", 0, 0, "")
            record = parts.opened.get(volume.id)
            if volume.spec.form is VolumeForm.FILESYSTEM:
                await parts.pools.get(volume.spec.pool).resize(volume.id, request.size)
            elif await parts.runs(volume):
                raise Conflict(f"volume {volume.name} cannot be resized while its instance runs", hint="stop it first")
            elif record is not None and record.way != TREE:
                await self._resize_open(volume, size, record.way, record.users)
            else:
                await self._resize_closed(volume, size, tell)
            return await self._creating.status(volume)

    async def _resize_open(self, volume: Volume, size: int, way: str, users: dict[str, bool]) -> None:
        parts = self._parts
        now = await parts.daemon.size(volume.id)
        if size < now:
            raise Unsupported(
                f"volume {volume.name} cannot shrink while it is attached to {', '.join(sorted(users))}",
                hint="detach it first",
            )
        if size > now:
            if await parts.paired(volume.id):
                # Two that are written as one are made larger while nobody writes; the replica follows before it is opened again.
                async with parts.still(volume):
                    await parts.pools.get(volume.spec.pool).resize(volume.id, size + parts.stacks.overhead(volume))
            await parts.daemon.resize(volume.id, size)
        # Also after a crash between the two.
        await parts.pools.get(volume.spec.pool).resized(volume.id, size + parts.stacks.overhead(volume))
        if way == MOUNT:
            try:
                await self._attaching.mounts.grow(volume.id, await self._attaching.door(volume.id))
            except Unavailable as error:
                later = f"volume {volume.name} has {size} bytes now; its filesystem grows when it is attached next"
                parts.tell("volume.grows-later", volume.id, f"{later}: {error.message}")
        if way in (FILE, SERVED) and parts.writers is not None:
            for user in users:
                with contextlib.suppress(Unsupported):
                    await parts.writers.resized(user, volume.id, size)

    async def _resize_closed(self, volume: Volume, size: int, tell: Tell) -> None:
        parts = self._parts
        parts.require_unread(volume, "resized")
        if size < await parts.size(volume):
            await self._make_small(volume, size, tell)
        # A filesystem grows when it is attached next.
        await parts.pools.get(volume.spec.pool).resize(volume.id, size + parts.stacks.overhead(volume))

    async def _make_small(self, volume: Volume, size: int, tell: Tell) -> None:
        """Nothing that anybody wrote lies beyond *size* any more, or it is refused."""
        if volume.spec.filesystem:
            async with self._parts.disk(volume) as file:
                seen = await blocking(ext4.read, file)
                if seen is not None:
                    if seen.size > size:
                        tell("shrink the filesystem", 0, 0, "")
                        await self._attaching.mounts.tools.shrink(file, size)
                    return
        for extent in await self._parts.daemon.map(await self._parts.stacks.of(volume)):
            if not extent.zero and extent.offset + extent.length > size:
                raise Unsupported(
                    f"volume {volume.name} holds data beyond {size} bytes, which would be lost",
                    hint="only a volume with a filesystem that Lamella made can be shrunk with data in it",
                )

    # --- limits

    async def limit(self, request: LimitVolume, tell: Tell) -> None:
        """:class:`LimitVolume`.

        :raise Unsupported: of a directory, or of a disk that its instance opens by itself.
        """
        volume, parts = request.volume, self._parts
        if volume.spec.form is not VolumeForm.BLOCK and volume.spec.limits.limited:
            raise Unsupported(
                "a volume of form filesystem cannot be limited", hint="--form block --filesystem ext4 can"
            )
        async with parts.locks.of([volume.id]):
            if volume.id in parts.opened and volume.spec.form is VolumeForm.BLOCK:
                await parts.daemon.limit(volume.id, volume.spec.limits, group_of(volume))
                await blocking(parts.opened.update, volume)
            elif volume.spec.limits.limited and await parts.runs(volume):
                raise Unsupported(
                    f"the own disk of an instance cannot be limited ({volume.name})", hint="attach a volume"
                )

    # --- keys

    async def unlock(self, request: UnlockVolume, tell: Tell) -> None:
        """:class:`UnlockVolume`."""
        stacks = self._parts.stacks
        wrapped = stacks.wrapped(request.volume)
        if not wrapped:
            raise Invalid(f"volume {request.volume.name} is not encrypted")
        if method_of(wrapped) is KeyWrap.PASSPHRASE:
            await stacks.keys.unlock(request.volume.id, wrapped, request.passphrase)
            await self._attaching.adopt_more()

    async def rekey(self, request: RekeyVolume, tell: Tell) -> VolumeStatus:
        """:class:`RekeyVolume`.

        :raise Conflict: when it is open, or has snapshots, which would keep the old key.
        """
        volume, parts = request.volume, self._parts
        keys, records = parts.stacks.keys, parts.records.made
        method = volume.spec.encryption
        wrapped = parts.stacks.wrapped(volume)
        if not wrapped or method is None:
            raise Invalid(f"volume {volume.name} is not encrypted", hint="create an encrypted one and copy into it")
        async with parts.locks.of([volume.id]):
            await parts.require_closed(volume, "given another key")
            made = parts.stacks.made(volume.id)
            made.key = made.key or wrapped
            if made.copies or await parts.pools.get(volume.spec.pool).snapshots(volume.id):
                raise Conflict(
                    f"volume {volume.name} has snapshots, which the old key would still open", hint="remove them first"
                )
            new = None
            if made.next_key:
                with contextlib.suppress(LamellaError):
                    new = await keys.unwrap(volume.id, made.next_key, request.new_passphrase)
            if new is None:
                new = new_key()
                made.next_key = await keys.wrap(volume.id, new, method, request.new_passphrase)
                # Before the volume knows it: whatever opens it from now on is written down.
                await blocking(records.write, volume.id, made)
            tell("rekey", 0, 0, "")
            stack = await parts.stacks.of(volume, passphrase=request.passphrase)
            await parts.daemon.rekey(stack, new)
            made.key, made.next_key = made.next_key, ""
            await blocking(records.write, volume.id, made)
            return await self._creating.status(volume)
