"""Backups as directories of the host, to take single files out: the engine's own mount, for a block volume its pieces joined to one file,
and its filesystem over that. Nothing is written to the repository: what the filesystem's journal has to write goes to a file of ours.

    run/backup/mounts/<id>/repository   restic's mount
    run/backup/mounts/<id>/disk         the volume as one file, and disk.scratch beside it
    run/backup/mounts/<id>/files        what the person sees

The processes outlive the daemon; state/backup/mounts/<id>.json tells the next one of them.
"""

import asyncio
import os
import signal
import stat
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.linux import mounts, syscalls
from lamella.host.linux.blocking import blocking
from lamella.host.linux.processes import Child, bears_mark, spawn, start_time
from lamella.host.linux.room import Room
from lamella.host.storage import ext4, loop
from lamella.host.storage.backup import view
from lamella.host.storage.backup.child import SECRET_FD
from lamella.host.storage.backup.engine import Engine
from lamella.host.storage.backup.repositories import Repositories
from lamella.host.storage.blocks import Stack
from lamella.host.storage.parts import Parts
from lamella.host.storage.requests import Tell
from lamella.model.backup import BackupNote, BackupSource
from lamella.model.backup_requests import MountBackup, UnmountBackup
from lamella.model.errors import Conflict, Corrupt, Unavailable

# How long the engine may take to show its repository, in seconds.
_BEGIN = 120.0
_END = 10.0


class Mounted(msgspec.Struct, kw_only=True):
    """The processes behind one mount: pid and start time."""

    processes: list[tuple[int, int]] = []
    stack: str = ""


class Mounting:
    """Answers MountBackup and UnmountBackup."""

    def __init__(self, parts: Parts, repositories: Repositories) -> None:
        self._parts, self._repositories = parts, repositories
        self._place = parts.home.run / "backup" / "mounts"
        self._records = parts.home.state / "backup" / "mounts"
        self._tools = ext4.Ext4(parts.home.mark)
        parts.shown.append(self._stacks)

    async def mount(self, request: MountBackup, tell: Tell) -> str:
        """:class:`MountBackup`."""
        backup = request.backup
        note = backup.status.note
        if note is None or not backup.status.engine_id or note.of is not BackupSource.VOLUME:
            raise Conflict(f"backup {backup.name} has no files to show", hint="lamella backup ls tells which have")
        async with self._parts.locks.of([backup.id]):
            files = self._place / backup.id / "files"
            if await blocking(_alive, files):
                return self._seen(files)
            await self._release(backup.id)
            engine = await self._repositories.engine(request.repository)
            try:
                tell("mount", 0, 0, "")
                await self._mount(backup.id, engine, backup.status.engine_id, note)
            except BaseException:
                await asyncio.shield(self._release(backup.id))
                raise
            return self._seen(files)

    def _seen(self, files: Path) -> str:
        """The way to *files* for somebody who is not in the layer's room."""
        holder = Room(self._parts.home).holder()
        return f"/proc/{holder}/root{files}" if holder is not None else str(files)

    async def _mount(self, id: str, engine: Engine, engine_id: str, note: BackupNote) -> None:
        home, place = self._parts.home, self._place / id
        record = Mounted()
        repository = place / "repository"
        await blocking(_directories, repository, place / "files", self._records)
        argv, environment, secret = engine.mounting(repository)
        child = await blocking(_start, argv, environment, secret, place / "engine.log")
        record.processes.append((child.pid, start_time(child.pid) or 0))
        await blocking(self._write, id, record)
        root = repository / "ids" / engine_id[:8]
        for _ in range(int(_BEGIN / 0.1)):
            if child.poll() is not None:
                raise Unavailable("the repository cannot be mounted", hint=await blocking(_last, place / "engine.log"))
            if await blocking(root.is_dir):
                break
            await asyncio.sleep(0.1)
        else:
            raise Unavailable("the repository was not mounted in time", hint="see the host's load, and try again")
        child.release()
        if not note.piece:
            await blocking(_bind, root, place / "files")
            return
        disk = place / "disk"
        joined = await view.join(note.piece, note.size, root, place / "disk.scratch", disk, home.mark)
        record.processes.append((joined.pid, start_time(joined.pid) or 0))
        joined.release()
        if note.key:
            # Not the backup's own id: under that it is restored, also while somebody looks at it.
            record.stack = f"{id}+files"
            key = await self._parts.stacks.keys.unwrap(note.volume, note.key)
            node = {"driver": "raw", "file": {"driver": "file", "filename": str(disk), "locking": "off"}}
            await blocking(self._write, id, record)
            await self._parts.daemon.add(Stack(id=record.stack, node=node, key=key))
            ways = await self._parts.daemon.export(record.stack)
            disk = ways.file or disk
        await blocking(self._write, id, record)
        await self._check(disk)
        await blocking(_mount_disk, disk, place / "files")

    async def _check(self, disk: Path) -> None:
        """A guest wrote the filesystem, and the host's kernel is to read it: all of it is looked at first. What is mended goes to the
        scratch file.

        :raise Corrupt: when there is none, or one that cannot be mended without asking.
        """
        hint = "restore it to a new volume, and attach that to a machine"
        if await blocking(ext4.read, disk) is None:
            raise Corrupt("the volume in the backup holds no ext4 filesystem", hint=hint)
        try:
            await self._tools.check(disk, fully=True)
        except Corrupt as error:
            raise Corrupt(f"in the backup {error.message}", hint=hint) from error

    async def unmount(self, request: UnmountBackup, tell: Tell) -> None:
        """:class:`UnmountBackup`."""
        async with self._parts.locks.of([request.backup.id]):
            await self._release(request.backup.id)

    async def sweep(self) -> None:
        """After a start: what still works stays, what is dead goes."""
        for id in await blocking(lambda: [path.stem for path in _all(self._records)]):
            if not await blocking(_alive, self._place / id / "files"):
                await self._release(id)

    async def live(self) -> set[int]:
        """Pids of what shows backups."""
        records = await blocking(lambda: [self._read(path.stem) for path in _all(self._records)])
        return {pid for record in records for pid, began in record.processes if start_time(pid) == began}

    def _stacks(self) -> set[str]:
        return {stack for path in _all(self._records) if (stack := self._read(path.stem).stack)}

    async def _release(self, id: str) -> None:
        record = await blocking(self._read, id)
        place = self._place / id
        await blocking(mounts.release, place / "files")
        if record.stack:
            with suppress(Unavailable):
                await self._parts.daemon.remove(record.stack)
        # The newest first: each stands on the one before.
        for pid, began in reversed(record.processes):
            await self._end(pid, began)
        await blocking(_swept, place, self._records / f"{id}.json")

    async def _end(self, pid: int, began: int) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if start_time(pid) != began or not bears_mark(pid, self._parts.home.mark):
                break
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            for _ in range(int(_END / 0.05)):
                if start_time(pid) != began:
                    break
                await asyncio.sleep(0.05)
        _reap(pid)

    def _write(self, id: str, record: Mounted) -> None:
        draft = self._records / f".{id}.new"
        draft.write_bytes(msgspec.json.encode(record))
        draft.rename(self._records / f"{id}.json")

    def _read(self, id: str) -> Mounted:
        try:
            return msgspec.json.decode((self._records / f"{id}.json").read_bytes(), type=Mounted)
        except (OSError, msgspec.DecodeError):
            return Mounted()


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _all(place: Path) -> list[Path]:
    return list(place.glob("*.json")) if place.exists() else []


def end_leftovers(home: Home, spare: set[int], found: set[int]) -> None:
    """Runs of the engine and its views that a former daemon began, and that nobody waits for any more."""
    for pid in found - spare:
        if bears_mark(pid, home.mark) and _name(pid) in ("restic", "lamella-pieces"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _directories(*paths: Path) -> None:
    for path in paths:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)


def _start(argv: list[str], environment: dict[str, str], secret: bytes, log: Path) -> Child:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.write(write_end, secret)
    os.close(write_end)
    errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        return spawn(argv, environment=environment, files={1: errors, 2: errors, SECRET_FD: read_end}, session=True)
    finally:
        os.close(read_end)
        os.close(errors)


def _alive(files: Path) -> bool:
    try:
        return bool(mounts.below(files)) and next(os.scandir(files), None) is not None
    except OSError:
        return False


def _bind(root: Path, files: Path) -> None:
    syscalls.mount(str(root), str(files), None, syscalls.MS_BIND)
    flags = syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY | syscalls.MS_NODEV | syscalls.MS_NOSUID
    syscalls.mount(str(root), str(files), None, flags)


def _mount_disk(disk: Path, files: Path) -> None:
    device, keeper = loop.attach(disk)
    try:
        flags = syscalls.MS_RDONLY | syscalls.MS_NODEV | syscalls.MS_NOSUID | syscalls.MS_NOEXEC
        syscalls.mount(str(device), str(files), "ext4", flags)
    except OSError as error:
        raise Corrupt(
            f"the volume in the backup holds no filesystem that can be mounted: {error.strerror}",
            hint="restore it to a new volume, and attach that to a machine",
        ) from error
    finally:
        os.close(keeper)


def _last(log: Path) -> str:
    return log.read_text(errors="replace").strip()[-300:]


def _swept(place: Path, record: Path) -> None:
    mounts.release(place)
    if place.exists():
        for entry in place.iterdir():
            if stat.S_ISDIR(entry.lstat().st_mode):
                with suppress(OSError):
                    entry.rmdir()
            else:
                entry.unlink(missing_ok=True)
        with suppress(OSError):
            place.rmdir()
    record.unlink(missing_ok=True)
