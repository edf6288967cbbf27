"""Backups put back: the engine writes its pieces straight to their places in the volume, so that nothing is stored twice. A volume that
held something is what it was until all of them are there."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.linux.blocking import blocking
from lamella.host.storage import tree as trees
from lamella.host.storage.backup import view
from lamella.host.storage.backup.content import block
from lamella.host.storage.backup.engine import Engine
from lamella.host.storage.backup.keeping import Keeping
from lamella.host.storage.backup.repositories import Repositories
from lamella.host.storage.backup.samples import piece_digest
from lamella.host.storage.directory.ground import sync_filesystem
from lamella.host.storage.keys import method_of
from lamella.host.storage.parts import Parts
from lamella.host.storage.requests import Tell
from lamella.model.backup import BackupNote, BackupSource
from lamella.model.backup_requests import RestoreBackup
from lamella.model.errors import Conflict, Corrupt, Invalid, NoRoom, NotFound, Unsupported
from lamella.model.quantity import format_size
from lamella.model.storage import Feature, StoragePhase, Volume, VolumeForm, VolumeStatus

_PUNCH = 1 << 30
# What a pool should have beside the content, for what keeps track of it.
_MARGIN = 8 << 20
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
_libc = ctypes.CDLL(None, use_errno=True)


class Restoring:
    """Answers RestoreBackup. Asked again after it was cut off, it begins anew."""

    def __init__(self, parts: Parts, repositories: Repositories, keeping: Keeping) -> None:
        self._parts, self._repositories, self._keeping = parts, repositories, keeping

    async def restore(self, request: RestoreBackup, tell: Tell) -> VolumeStatus:
        """:class:`RestoreBackup`."""
        volume, note, parts = request.volume, note_of(request), self._parts
        if volume.spec.form is not note.form:
            raise Invalid(f"the backup is of form {note.form}, the volume of form {volume.spec.form}", field="form")
        if bool(note.key) != (volume.spec.encryption is not None):
            raise Conflict(
                f"of backup {request.backup.name} and volume {volume.name} one is encrypted, and the other is not",
                hint="restore it to a new volume: --as NAME",
            )
        engine = await self._repositories.engine(request.repository)
        key = await self._key(volume, note, request.passphrase)
        async with self._repositories.lock(request.repository).with_others():
            # Before anything changes: whatever cannot be brought leaves the volume alone.
            tell("look", 0, 0, "")
            await self._check_room(volume, await engine.size(request.backup.status.engine_id))
            if request.fresh or not await self._there(volume):
                return await self._put_back(engine, request, note, key, tell)
            await parts.require_closed(volume, "restored")
            async with self._keeping.kept(volume, tell):
                return await self._put_back(engine, request, note, key, tell)

    async def _check_room(self, volume: Volume, size: int) -> None:
        """:raise NoRoom: when *size* bytes more have none in the pool of *volume*."""
        pool = self._parts.pools.get(volume.spec.pool)
        if Feature.THIN not in pool.features:
            return
        free = (await pool.status()).free
        if free < size + _MARGIN:
            raise NoRoom(
                f"the backup holds {format_size(size)}, and pool {volume.spec.pool} has {format_size(free)} free",
                hint="make room, or restore to another pool: --as NAME --pool POOL",
            )

    async def _there(self, volume: Volume) -> bool:
        try:
            await self._parts.pools.get(volume.spec.pool).handle(volume.id)
        except NotFound:
            return False
        return True

    async def _put_back(
        self, engine: Engine, request: RestoreBackup, note: BackupNote, key: str, tell: Tell
    ) -> VolumeStatus:
        volume, parts = request.volume, self._parts
        async with parts.locks.of([volume.id]):
            await parts.require_closed(volume, "restored")
            if note.form is VolumeForm.BLOCK:
                await self._block(engine, request, note, tell)
            else:
                await self._tree(engine, request, note, tell)
            made = parts.stacks.made(volume.id)
            made.key, made.encrypted, made.formatted, made.filled, made.strange = key, bool(key), True, True, True
            await blocking(parts.records.made.write, volume.id, made)
            return await self._status(volume, key)

    async def _key(self, volume: Volume, note: BackupNote, passphrase: str) -> str:
        """Its key, wrapped for this volume; empty when it is not encrypted."""
        if not note.key or note.volume == volume.id:
            return note.key
        keys = self._parts.stacks.keys
        key = await keys.unwrap(note.volume, note.key, passphrase)
        return await keys.wrap(volume.id, key, method_of(note.key), passphrase)

    async def _status(self, volume: Volume, key: str) -> VolumeStatus:
        parts = self._parts
        used = await parts.pools.get(volume.spec.pool).used(volume.id)
        size = await parts.size(volume)
        return msgspec.structs.replace(volume.status, phase=StoragePhase.READY, size=size, used=used, key=key)

    async def _block(self, engine: Engine, request: RestoreBackup, note: BackupNote, tell: Tell) -> None:
        parts, volume = self._parts, request.volume
        pool = parts.pools.get(volume.spec.pool)
        if request.fresh and volume.spec.owner is None:
            # Made anew it is all holes; cleared, it would take its whole size in pools that punch none.
            await pool.delete(volume.id)
        fresh = True
        with suppress(NotFound):
            handle = await pool.handle(volume.id)
            fresh = False
            if handle.size != note.size:
                await self._fit(volume, note.size)
        await pool.create(volume.id, VolumeForm.BLOCK, note.size)
        async with block(parts, volume, None, request.backup.id) as content:
            if content.size != note.size:
                raise Conflict(f"volume {volume.name} is {content.size} bytes large, its backup {note.size}")
            if not fresh:
                await blocking(clear, content.path, note.size)
            point = parts.home.run / "backup" / request.backup.id
            async with view.fill(note.piece, note.size, content.path, point, parts.home.mark):
                await engine.restore(
                    request.backup.status.engine_id, point, told=lambda done, _: tell("restore", done, 0, "bytes")
                )
            await blocking(_check_samples, content.path, note)
            await parts.daemon.flush([request.backup.id])

    async def _fit(self, volume: Volume, size: int) -> None:
        pool = self._parts.pools.get(volume.spec.pool)
        try:
            await pool.resize(volume.id, size)
        except Unsupported:
            raise Conflict(
                f"volume {volume.name} has another size than the backup, and cannot shrink to it",
                hint="restore to a new volume: --as NAME",
            ) from None

    async def _tree(self, engine: Engine, request: RestoreBackup, note: BackupNote, tell: Tell) -> None:
        pool = self._parts.pools.get(request.volume.spec.pool)
        handle = await pool.create(request.volume.id, VolumeForm.FILESYSTEM, request.volume.spec.size)
        await blocking(trees.clear, handle.path)
        await engine.restore(
            request.backup.status.engine_id, handle.path, told=lambda done, _: tell("restore", done, note.size, "bytes")
        )
        # The engine does not wait for the disk.
        await blocking(sync_filesystem, handle.path)


def note_of(request: RestoreBackup) -> BackupNote:
    """:raise Conflict: when the backup was never finished, or is none of a volume."""
    note = request.backup.status.note
    if note is None or not request.backup.status.engine_id:
        raise Conflict(f"backup {request.backup.name} was not finished", hint="lamella backup ls tells which were")
    if note.of is not BackupSource.VOLUME:
        raise Conflict(f"backup {request.backup.name} is of no volume, but of {note.of}", hint="lamella backup ls")
    return note


def clear(path: Path, size: int) -> None:
    """All of the file reads as zeros, and takes no room where that can be had (fallocate(2))."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for start in range(0, size, _PUNCH):
            length = min(_PUNCH, size - start)
            for mode in (_PUNCH_HOLE, _ZERO_RANGE):
                if not _libc.fallocate(descriptor, _KEEP_SIZE | mode, ctypes.c_long(start), ctypes.c_long(length)):
                    break
            else:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def _check_samples(path: Path, note: BackupNote) -> None:
    """What was written is what was read once.

    :raise Corrupt: when it is not.
    """
    for name, digest in note.samples.items():
        if piece_digest(path, note, name) != digest:
            raise Corrupt(f"piece {name} came back other than it was backed up", hint="lamella backup verify")
