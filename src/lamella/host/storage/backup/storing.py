"""Backups made: of a volume's snapshot, reading only what changed since the one before, and, as one file each, of how an instance was
asked for and of the layer's own state."""

import io
import tarfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import msgspec

from lamella.host.linux.blocking import blocking
from lamella.host.storage.backup import samples, view
from lamella.host.storage.backup import table as tables
from lamella.host.storage.backup.content import Content, block, tree
from lamella.host.storage.backup.engine import Engine, Summary, Told
from lamella.host.storage.backup.repositories import Repositories
from lamella.host.storage.backup.restic import encode_note
from lamella.host.storage.backup.table import Table
from lamella.host.storage.parts import Parts
from lamella.host.storage.requests import Tell
from lamella.model.backup import Backup, BackupNote, BackupSource, BackupStatus, InstanceRecord, Repository
from lamella.model.backup_requests import BackUp, BackUpInstance, BackUpLayer, ReadInstance
from lamella.model.errors import Corrupt, NotFound
from lamella.model.resource import now
from lamella.model.storage import StoragePhase, Volume, VolumeForm

LAYER_FILE = "layer.tar"
STORE_FILE = "store.db.zst"
INSTANCE_FILE = "instance.json"


class Storing:
    """Answers BackUp, BackUpLayer, BackUpInstance and ReadInstance. What a host remembers of a backup is its table: which piece changed
    when. Lost, the next backup reads everything and stores nothing twice."""

    def __init__(self, parts: Parts, repositories: Repositories) -> None:
        self._parts, self._repositories = parts, repositories
        self._tables = parts.home.state / "backup" / "tables"

    async def back_up(self, request: BackUp, tell: Tell) -> BackupStatus:
        """:class:`BackUp`. What is cut off leaves nothing that counts."""
        volume, began = request.volume, time.monotonic()
        engine = await self._repositories.engine(request.repository)
        note = self._note(request.backup, volume)
        async with self._repositories.lock(request.repository).with_others():
            if volume.spec.form is VolumeForm.BLOCK:
                status = await self._block(request, engine, note, tell)
            else:
                status = await self._tree(request, engine, note, tell)
        status.took = round(time.monotonic() - began, 3)
        return status

    def _note(self, backup: Backup, volume: Volume) -> BackupNote:
        return BackupNote(
            backup=backup.id,
            name=backup.name,
            project=backup.project,
            volume=volume.id,
            volume_name=volume.name,
            instance=backup.spec.instance,
            spec=volume.spec,
            size=volume.status.size or volume.spec.size,
            key=self._parts.stacks.wrapped(volume),
            taken_at=now(),
        )

    async def _block(self, request: BackUp, engine: Engine, note: BackupNote, tell: Tell) -> BackupStatus:
        parts, volume, backup = self._parts, request.volume, request.backup
        async with block(parts, volume, request.snapshot, backup.id) as content:
            tell("compare", 0, 0, "")
            former, parent = await self._former(request), ""
            table, stamp = await self._table(request, content, former)
            if former is not None and request.base is not None:
                parent = request.base.status.engine_id
            note.size, note.piece = content.size, table.piece
            changed = [index for index, seen in enumerate(table.stamps) if seen == stamp]
            note.samples = await blocking(samples.of_pieces, content.path, table, changed)
            place = self._tables / f"{backup.id}.table"
            await blocking(_write, place, table.encoded())
            point = parts.home.run / "backup" / backup.id
            async with view.split(place, content.path, point, parts.home.mark):
                summary, parent = await _store(engine, point, note, parent, _telling(tell))
        read = sum(table.length(index) for index in changed) if parent else table_bytes(table)
        return self._status(request, note, summary, read=read, incremental=bool(parent))

    async def _former(self, request: BackUp) -> Table | None:
        base = request.base
        if base is None or not base.status.engine_id or not base.status.snapshot:
            return None
        return await blocking(_read, self._tables / f"{base.id}.table")

    async def _table(self, request: BackUp, content: Content, former: Table | None) -> tuple[Table, int]:
        stamp = int(time.time())
        if former is not None and request.base is not None:
            pool = self._parts.pools.get(request.volume.spec.pool)
            try:
                changed = await pool.delta(request.volume.id, request.base.status.snapshot, request.snapshot)
            except NotFound:
                # Somebody has removed the snapshot that the last backup was made of.
                changed = None
            if changed is not None:
                return tables.since(former, content.size, content.extents, changed, stamp)
            # The driver cannot tell: the engine reads everything and finds out.
            stamp = max(stamp, max(former.stamps, default=0) + 1)
        return tables.everything(content.size, content.extents, stamp), stamp

    async def _tree(self, request: BackUp, engine: Engine, note: BackupNote, tell: Tell) -> BackupStatus:
        async with tree(self._parts, request.volume, request.snapshot) as directory:
            note.samples = await blocking(samples.of_files, directory)
            # Every file is read: those of a clone have new inodes and times of their status whatever is in them, and a size and
            # a time of change that are the former ones prove nothing (rsync -t, touch -r, a writable mapping).
            summary = await engine.store(directory, encode_note(note), told=_telling(tell))
        note.size = summary.read
        return self._status(request, note, summary, read=summary.read, incremental=False)

    def _status(
        self, request: BackUp, note: BackupNote, summary: Summary, *, read: int, incremental: bool
    ) -> BackupStatus:
        return BackupStatus(
            phase=StoragePhase.READY,
            host=request.backup.status.host,
            engine_id=summary.engine_id,
            note=note,
            snapshot=request.snapshot,
            taken_at=note.taken_at,
            incremental=incremental,
            size=note.size,
            read=read,
            added=summary.added,
        )

    async def forget(self, backup: Backup) -> None:
        """Its table is of no use any more."""
        await blocking((self._tables / f"{backup.id}.table").unlink, missing_ok=True)

    async def back_up_layer(self, request: BackUpLayer, tell: Tell) -> BackupStatus:
        """:class:`BackUpLayer`: one tar of the store and the key files of this host."""
        tell("read", 0, 0, "")
        content = await blocking(_layer, request.store, self._parts.home.state / "keys")
        note = BackupNote(
            backup=request.backup.id, name=request.backup.name, project=request.backup.project, of=BackupSource.LAYER
        )
        return await self._one_file(request.backup, request.repository, LAYER_FILE, content, note)

    async def back_up_instance(self, request: BackUpInstance, tell: Tell) -> BackupStatus:
        """:class:`BackUpInstance`."""
        tell("read", 0, 0, "")
        note = BackupNote(
            backup=request.backup.id,
            name=request.backup.name,
            project=request.backup.project,
            of=BackupSource.INSTANCE,
            instance=request.record.name,
        )
        content = msgspec.json.encode(request.record)
        return await self._one_file(request.backup, request.repository, INSTANCE_FILE, content, note)

    async def read_instance(self, request: ReadInstance, tell: Tell) -> InstanceRecord:
        """:class:`ReadInstance`."""
        tell("read", 0, 0, "")
        note = request.backup.status.note
        engine = await self._repositories.engine(request.repository)
        async with self._repositories.lock(request.repository).with_others():
            content = await engine.read(request.backup.status.engine_id, INSTANCE_FILE)
        try:
            if note is None or note.samples.get(INSTANCE_FILE) == sha256(content).hexdigest():
                return msgspec.json.decode(content, type=InstanceRecord)
        except msgspec.DecodeError:
            pass
        raise Corrupt(f"{request.backup.name} came back other than it was backed up", hint="lamella backup verify")

    async def _one_file(
        self, backup: Backup, repository: Repository, name: str, content: bytes, note: BackupNote
    ) -> BackupStatus:
        began = time.monotonic()
        note.size, note.taken_at, note.samples = len(content), now(), {name: sha256(content).hexdigest()}
        engine = await self._repositories.engine(repository)
        async with self._repositories.lock(repository).with_others():
            summary = await engine.store_bytes(name, content, encode_note(note))
        return BackupStatus(
            phase=StoragePhase.READY,
            host=backup.status.host,
            engine_id=summary.engine_id,
            note=note,
            taken_at=note.taken_at,
            size=len(content),
            read=len(content),
            added=summary.added,
            took=round(time.monotonic() - began, 3),
        )


async def _store(engine: Engine, directory: Path, note: BackupNote, parent: str, told: Told) -> tuple[Summary, str]:
    """With *parent* when it is still in the repository; which it was."""
    text = encode_note(note)
    if parent:
        try:
            return await engine.store(directory, text, parent=parent, told=told), parent
        except NotFound:
            pass
    return await engine.store(directory, text, told=told), ""


def table_bytes(table: Table) -> int:
    """Bytes in pieces that are not zeros."""
    return sum(table.length(index) for index, stamp in enumerate(table.stamps) if stamp)


def _telling(tell: Tell) -> Callable[[int, int], None]:
    return lambda done, total: tell("back up", done, total, "bytes")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_bytes(data)
    draft.rename(path)


def _read(path: Path) -> Table | None:
    try:
        return tables.decoded(path.read_bytes())
    except OSError:
        return None


def _layer(store: bytes, keys: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        files = {STORE_FILE: store}
        if keys.exists():
            files |= {f"keys/{path.name}": path.read_bytes() for path in sorted(keys.iterdir()) if path.is_file()}
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o600, int(time.time())
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
