"""A layer brought back on a bare machine from a repository alone (``lamella recover``).

The repository's newest whole copy of the layer's state gives the store and the host's key files. What the machine no longer has (content
of volumes, snapshots, images, instances that run) is settled in the store: each volume that was backed up gets an operation that restores
it, which the daemon carries out when it starts.
"""

import asyncio
import io
import os
import sys
import tarfile
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import msgspec
import zstandard

from lamella.control.backup.restoring import VERB
from lamella.control.events import record
from lamella.control.storage.attaching import BUSY
from lamella.host.compute.driver import Home
from lamella.host.storage.backup import recovery_key, sealed
from lamella.host.storage.backup.engine import Engine
from lamella.host.storage.backup.repositories import Repositories, make_engine
from lamella.host.storage.backup.storing import LAYER_FILE, STORE_FILE
from lamella.host.storage.keys import KeyRing
from lamella.model.backup import (
    Backup,
    BackupSource,
    BackupSpec,
    BackupStatus,
    Credentials,
    Repository,
    RepositorySpec,
    RepositoryStatus,
)
from lamella.model.backup_requests import Stored
from lamella.model.errors import Conflict, Corrupt, Internal, NotFound
from lamella.model.instance import Power
from lamella.model.operation import Operation, OperationPhase, OperationSpec, OperationStatus
from lamella.model.resource import Condition, new_resource, now
from lamella.model.storage import KeyWrap, StoragePhase, Volume
from lamella.store.database import open_store
from lamella.store.store import Store, Transaction

# Copies of the layer's state that are tried, the newest first.
_TRIES = 5
_LARGEST_STORE = 8 << 30


class Recovered(msgspec.Struct, kw_only=True):
    """What came back, and what did not."""

    taken_at: str = ""
    restoring: list[str] = []
    lost: list[str] = []
    images: list[str] = []
    skipped: list[str] = []


async def recover(home: Home, url: str, key: bytes, credentials: Credentials, host_name: str) -> Recovered:
    """Bring the layer's state from the repository at *url* into the empty *home*.

    :raise Conflict: when there is a layer in *home*. :raise NotFound: when the repository holds no layer's state.
    :raise Forbidden: when *key* is not its.
    """
    database = home.state / "lamella.db"
    if database.exists():
        raise Conflict(f"there is a layer in {home.path} already", hint="choose an empty directory: --home DIR")
    keys = KeyRing(home)
    repository: Repository = new_resource(
        "repository", "recovered", RepositorySpec(url=url), RepositoryStatus(phase=StoragePhase.READY)
    )
    engine = make_engine(home, Repositories(home, keys).places, repository, key, credentials)
    result = Recovered()
    repository.status.engine_id = await engine.identify()
    stored = await engine.stored()
    content = await _newest_state(engine, stored, result)
    await asyncio.to_thread(_unpack, content, home)
    # Wrapped by the key file that has just come back.
    repository.status.key = await keys.wrap(repository.id, key, KeyWrap.KEY_FILE)
    repository.status.credentials = sealed.seal(repository.id, key, credentials)
    store = open_store(f"sqlite:///{database}")
    try:
        await store.open()
        await _settle(store, repository, stored, host_name, keys, key, credentials, result)
    except BaseException:
        await store.close()
        database.unlink(missing_ok=True)
        raise
    await store.close()
    return result


async def _newest_state(engine: Engine, stored: list[Stored], result: Recovered) -> bytes:
    states = [item for item in stored if item.note.of is BackupSource.LAYER]
    if not states:
        raise NotFound(
            "the repository holds no layer's state",
            hint="open it in a new layer: lamella backup repository create --key-file",
        )
    states.sort(key=lambda item: item.note.taken_at.timestamp() if item.note.taken_at else 0.0, reverse=True)
    for item in states[:_TRIES]:
        try:
            content = await engine.read(item.engine_id, LAYER_FILE)
        except (Corrupt, NotFound, Internal) as error:
            result.skipped.append(f"{item.note.name}: {error.message}")
            continue
        if item.note.samples.get(LAYER_FILE) != sha256(content).hexdigest():
            result.skipped.append(f"{item.note.name}: it is not what was backed up")
            continue
        result.taken_at = f"{item.note.taken_at:%Y-%m-%d %H:%M:%S}" if item.note.taken_at else ""
        return content
    raise Corrupt("no copy of the layer's state in the repository is whole", hint="; ".join(result.skipped)[:500])


def _unpack(content: bytes, home: Home) -> None:
    """The store last: a home that has one is a layer."""
    store = b""
    place = home.state / "keys"
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is None:
                continue
            name = Path(member.name)
            if member.name == STORE_FILE:
                store = zstandard.decompress(file.read(), max_output_size=_LARGEST_STORE)
            elif name.parent == Path("keys") and name.suffix == ".key":
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
                _write(place / name.name, file.read())
    if not store:
        raise Corrupt("the copy of the layer's state holds no store")
    _write(home.state / "lamella.db", store)


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


async def _settle(
    store: Store,
    repository: Repository,
    stored: list[Stored],
    host_name: str,
    keys: KeyRing,
    key: bytes,
    credentials: Credentials,
    result: Recovered,
) -> None:
    def known(tx: Transaction) -> Repository | None:
        return next(
            (item for item in tx.list("repository") if item.status.engine_id == repository.status.engine_id), None
        )

    before = await store.read(known)
    if before is not None:
        # It may lie elsewhere now, and be come to with other credentials.
        before.spec.url = repository.spec.url
        before.status.key = await keys.wrap(before.id, key, KeyWrap.KEY_FILE)
        before.status.credentials = sealed.seal(before.id, key, credentials)
        before.status.phase = StoragePhase.READY

    def write(tx: Transaction) -> None:
        result.restoring, result.lost, result.images = [], [], []
        _host(tx, host_name)
        ours = tx.update(before) if before is not None else tx.insert(repository)
        _end_what_went_on(tx)
        newest = _rows(tx, ours, stored)
        for instance in tx.list("instance"):
            instance.spec.power = Power.STOPPED
            tx.update(instance)
        for snapshot in tx.list("snapshot"):
            tx.delete(snapshot.id)
        for image in tx.list("image"):
            result.images.append(image.name)
            tx.delete(image.id)
        for volume in tx.list("volume"):
            _volume(tx, volume, newest.get(volume.id), result)
        record(tx, ours, "layer.recovered", f"the layer is what it was at {result.taken_at}")

    await store.write(write)


def _host(tx: Transaction, name: str) -> None:
    """The one host of a layer in one process is this machine now, whatever it is called."""
    hosts = tx.list("host")
    if len(hosts) == 1 and hosts[0].name != name:
        tx.rename(hosts[0].id, name)


def _end_what_went_on(tx: Transaction) -> None:
    for operation in tx.list("operation"):
        if operation.status.phase is OperationPhase.RUNNING:
            operation.status.phase, operation.status.finished_at = OperationPhase.FAILED, now()
            operation.status.error_code, operation.status.error = "unavailable", "the machine was lost meanwhile"
            tx.update(operation)
    for volume, owner in tx.claims(BUSY).items():
        tx.release(BUSY, volume, owner)


def _rows(tx: Transaction, repository: Repository, stored: Iterable[Stored]) -> dict[str, Backup]:
    """A row for all that is in the repository, and none that says otherwise; the newest of each volume."""
    present = {item.note.backup: item for item in stored}
    newest: dict[str, Backup] = {}
    for row in tx.list("backup"):
        if row.spec.repository == repository.id and row.id not in present:
            tx.delete(row.id)
            continue
        row.status.snapshot = row.status.mounted = ""
        tx.update(row)
    for item in sorted(present.values(), key=lambda one: one.note.taken_at.timestamp() if one.note.taken_at else 0.0):
        note = item.note
        row: Backup | None = tx.by_id(note.backup)
        if row is None:
            spec = BackupSpec(
                repository=repository.id,
                repository_name=repository.name,
                of=note.of,
                volume=note.volume,
                volume_name=note.volume_name,
                instance=note.instance,
            )
            row = new_resource("backup", note.name, spec, BackupStatus(), project=note.project)
            row.id = note.backup
            row = tx.insert(row)
        row.status.phase, row.status.engine_id, row.status.note = StoragePhase.READY, item.engine_id, note
        row.status.taken_at, row.status.size = note.taken_at, note.size
        row = tx.update(row)
        if note.volume:
            newest[note.volume] = row
    return newest


def _volume(tx: Transaction, volume: Volume, backup: Backup | None, result: Recovered) -> None:
    if volume.deleted_at is not None:
        tx.delete(volume.id)
        return
    if backup is None:
        result.lost.append(volume.name)
        volume.status.phase = StoragePhase.FAILED
        volume.status.conditions = [
            Condition(
                type="Ready",
                status=False,
                reason="lost",
                message="it was lost with its machine, and there is no backup of it in the repository",
                hint="remove it, or restore it from another repository",
                since=now(),
            )
        ]
        tx.update(volume)
        return
    result.restoring.append(volume.name)
    volume.status.phase, volume.spec.source = StoragePhase.READY, None
    tx.update(volume)
    spec = OperationSpec(
        verb=VERB,
        subject=f"volume/{volume.name}",
        principal="recover",
        arguments={"backup": backup.id, "volume": volume.id, "new": "", "lost": "yes"},
    )
    operation: Operation = new_resource(
        "operation", "pending", spec, OperationStatus(step="waiting"), project=volume.project
    )
    operation.name = operation.id.replace("_", "-")
    tx.insert(operation)
    tx.claim(BUSY, volume.id, operation.id)


def read_key(path: str | None) -> bytes:
    """The recovery key: from the file *path*, standard input (``-``), or whoever sits at the terminal."""
    if path == "-":
        text = sys.stdin.read()
    elif path is not None:
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise NotFound(f"the recovery key cannot be read from {path}: {error}", field="key-file") from None
    else:
        from getpass import getpass

        text = getpass("recovery key: ")
    return recovery_key.read(text)


def run(home: Home, url: str, key: bytes, credentials: Credentials, host_name: str) -> None:
    """Recover, and say what came back.

    :raise LamellaError: when nothing did; the home is as empty as before.
    """
    found = asyncio.run(recover(home, url, key, credentials, host_name))
    print(f"the layer in {home.path} is what it was at {found.taken_at} (UTC)")
    for said in found.skipped:
        print(f"  passed over a damaged copy: {said}")
    if found.restoring:
        print(f"  {len(found.restoring)} volumes are restored when lamellad starts: {', '.join(found.restoring)}")
    if found.lost:
        print(f"  no backup here of: {', '.join(found.lost)}")
    if found.images:
        print(f"  images to be brought in again: {', '.join(found.images)}")
    print("  instances are stopped; start lamellad, wait for `lamella operation ls`, then start them")
