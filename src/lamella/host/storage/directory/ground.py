"""The directories of a pool, and how something appears and disappears in them: by one rename, after it is on the disk."""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Generator
from pathlib import Path

import msgspec

from lamella.host.linux import mounts
from lamella.host.linux.files import write_all
from lamella.host.storage import tree
from lamella.host.storage.directory import record as records
from lamella.host.storage.directory.record import Record
from lamella.model.errors import Conflict, Corrupt, Invalid, NoRoom, NotFound, Unavailable
from lamella.model.ids import is_id
from lamella.model.resource import Condition

_FULL = (errno.ENOSPC, errno.EDQUOT)
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
# Seconds: a daemon that was killed may have a child that has not let go of its descriptors yet.
_PATIENCE = 10.0
RECORD = "volume.json"
IDENTITY = ".identity"
DRAFT = f".{RECORD}.new"

_libc = ctypes.CDLL(None, use_errno=True)
# The lock files that this process holds, by the directory's device and inode, and how often: a process is one user of a pool.
_held: dict[tuple[int, int], tuple[int, int]] = {}


class Ground:
    """``<path>/volumes``, ``.staging`` (half-made), ``.trash`` (half-deleted) and ``.shred`` (half-shredded). *release* takes away what
    removing files below a directory would not."""

    def __init__(self, path: Path, release: Callable[[Path], None]) -> None:
        self.path = path
        self.volumes = path / "volumes"
        self.staging = path / ".staging"
        self.trash = path / ".trash"
        self.shred = path / ".shred"
        self._release = release
        self._locked: tuple[int, int] | None = None
        self._identity = ""
        # One remover at a time: they share the trash's name space.
        self._removing = asyncio.Lock()

    def prepare(self) -> None:
        """Make the directories, and keep other daemons out.

        :raise Unavailable: when that cannot be.
        """
        try:
            # Mode 0700: a container's files may be set-user-ID programs, which no user of the host shall reach.
            for directory in (self.path, self.volumes, self.staging, self.trash, self.shred):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock()
            (self.staging / f"{secrets.token_hex(4)}.probe").mkdir()
            self._identity = self.identity() or self._begin()
        except OSError as error:
            raise Unavailable(
                f"pool directory {self.path} cannot be used: {error.strerror}",
                hint="make it a writable directory of a local filesystem",
            ) from error

    def identity(self) -> str:
        """What is written in the pool at this path; empty where no pool is."""
        try:
            return (self.path / IDENTITY).read_text(errors="replace").strip()
        except OSError:
            return ""

    def _begin(self) -> str:
        made, draft = secrets.token_hex(16), self.path / f"{IDENTITY}.new"
        draft.unlink(missing_ok=True)
        write(draft, f"{made}\n".encode())
        draft.rename(self.path / IDENTITY)
        sync_directory(self.path)
        return made

    def require(self) -> None:
        """See that the pool is at its place still. One that came back as another device is locked anew.

        :raise Unavailable: when it is not: its filesystem was unmounted, or its directory moved or removed.
        """
        if self._locked is None:
            return
        with contextlib.suppress(OSError):
            told = self.path.stat()
            if (told.st_dev, told.st_ino) == self._locked and self.volumes.is_dir():
                return
            if self.volumes.is_dir() and self._identity and self.identity() == self._identity:
                self.release()
                self._lock()
                return
        raise Unavailable(
            f"pool directory {self.path} is not what it was: its filesystem is not mounted, or it was moved or removed",
            hint="put it back: nothing of it is lost by waiting",
        )

    def _lock(self) -> None:
        if self._locked is not None:
            return
        told = self.path.stat()
        key = told.st_dev, told.st_ino
        if key in _held:
            descriptor, count = _held[key]
            _held[key], self._locked = (descriptor, count + 1), key
            return
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                os.close(descriptor)
                raise Unavailable(
                    f"pool directory {self.path} is open in another daemon",
                    hint="stop it, or give this one a pool of its own",
                ) from None
        _held[key], self._locked = (descriptor, 1), key

    def release(self) -> None:
        """Let other daemons in."""
        if self._locked is None:
            return
        descriptor, count = _held.pop(self._locked)
        if count > 1:
            _held[self._locked] = descriptor, count - 1
        else:
            os.close(descriptor)
        self._locked = None

    def sweep(self) -> list[Condition]:
        """Take away what is half made and half deleted; what cannot be is told."""
        found: list[Condition] = []
        for place in (self.staging, self.trash, self.shred):
            try:
                self._clear(place)
            except (OSError, tree.Occupied) as error:
                found.append(
                    Condition(
                        type="Clean",
                        status=False,
                        reason="LeftoversStay",
                        message=f"{place} holds remains of deleted volumes that cannot be removed: {error}",
                        hint=f"unmount what is mounted below {place}, then restart the daemon",
                    )
                )
        return found

    def _clear(self, place: Path) -> None:
        for entry in list(place.iterdir()):
            self._release(entry)
        if place == self.shred:
            mounted = mounted_below(place)
            if mounted is not None:
                raise tree.Occupied(mounted.name)
            tree.clear(place, overwrite)
        else:
            tree.clear(place)

    async def empty_trash(self) -> None:
        """:raise Conflict: when something is mounted in it."""
        async with self._removing:
            try:
                for place in (self.shred, self.trash):
                    await asyncio.to_thread(self._clear, place)
            except tree.Occupied as error:
                raise Conflict(
                    f"it is gone, but something is mounted at {error.name!r} inside its remains in {self.trash}",
                    hint="unmount it; the remains go when the daemon starts",
                ) from error

    def try_out(self) -> None:
        """Write a file, and wait until it is on the disk."""
        file = self.staging / f"{secrets.token_hex(4)}.trial"
        try:
            write(file, b"answers")
        finally:
            file.unlink(missing_ok=True)

    def ids(self) -> set[str]:
        """:raise Unavailable: when the pool is not at its place."""
        self.require()
        return {entry.name for entry in self.volumes.iterdir() if is_id(entry.name)}

    def place(self, id: str) -> Path:
        """:raise Invalid: when *id* is no id."""
        if not is_id(id):
            raise Invalid(f"{id!r} is not an id", hint="ids look like vol_ and 26 characters", field="id")
        return self.volumes / id

    def read(self, id: str) -> Record:
        """:raise NotFound: when there is no such volume here. :raise Corrupt: when what is written of it cannot be read.
        :raise Unavailable: when the pool is not at its place.
        """
        try:
            return records.decoded((self.place(id) / RECORD).read_bytes())
        except FileNotFoundError as error:
            self.require()
            if (self.place(id) / "data").exists() or self.place(id).exists():
                raise Corrupt(
                    f"{RECORD} of volume {id} in pool {self.path} is gone", hint="restore it from a backup"
                ) from error
            raise self.missing(id) from error
        except (OSError, msgspec.DecodeError) as error:
            raise Corrupt(
                f"volume {id} in pool {self.path} cannot be read: {error}", hint="restore it from a backup"
            ) from error

    def missing(self, id: str) -> NotFound:
        return NotFound(f"pool {self.path} has no volume {id}", hint="ask the pool's inventory for what there is")

    def write(self, id: str, record: Record) -> None:
        """From the moment that this returns *record* is what is true, and till then what was before."""
        place = self.place(id)
        fresh = place / DRAFT
        fresh.unlink(missing_ok=True)
        write(fresh, records.encoded(record))
        # Layers that the record names have to be found after a power cut: their names are in the same directory.
        sync_directory(place)
        fresh.rename(place / RECORD)
        sync_directory(place)

    def stage(self, id: str) -> Path:
        """A new directory for what is to become *id*.

        :raise Unavailable: when the pool is not at its place.
        """
        self.require()
        staged = self.staging / f"{id}.{secrets.token_hex(4)}"
        staged.mkdir(mode=0o700)
        return staged

    def publish(self, staged: Path, target: Path) -> None:
        sync_directory(staged)
        staged.rename(target)
        sync_directory(target.parent)

    def discard(self, path: Path, *, shred: bool = False) -> None:
        """Into the trash with it, durably; gone already is fine."""
        with contextlib.suppress(FileNotFoundError):
            place = self.shred if shred else self.trash
            path.rename(place / f"{path.name}.{secrets.token_hex(4)}")
            sync_directory(path.parent)
            sync_directory(place)

    def forget(self, staged: Path) -> None:
        """Take away what was half made; the rest of a failure goes when the pool is opened."""
        with contextlib.suppress(OSError, tree.Occupied):
            self._release(staged)
            tree.clear(staged)
            staged.rmdir()

    @contextlib.contextmanager
    def room(self, what: str) -> Generator[None]:
        """What the filesystem refuses is told as an error of ours."""
        try:
            yield
        except NoRoom as error:
            raise NoRoom(f"cannot {what}: {error.message}", hint=error.hint) from error
        except OSError as error:
            if error.errno in _FULL:
                raise NoRoom(
                    f"cannot {what}: the filesystem of pool {self.path} is full", hint="delete volumes or images"
                ) from error
            if error.errno == errno.EFBIG:
                raise NoRoom(
                    f"cannot {what}: the filesystem of pool {self.path} does not hold files of that size",
                    hint="ask for a smaller one",
                    field="size",
                ) from error
            raise Unavailable(f"cannot {what} in pool {self.path}: {error.strerror}") from error


def write(path: Path, content: bytes, *, size: int | None = None) -> None:
    """A new file of mode 0600, durable; *size* makes it a sparse one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, content)
        if size is not None:
            os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_filesystem(path: Path) -> None:
    """Everything that was written below *path* is on the disk (syncfs(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> None:
    """The two trade places at one instant (renameat2(2)).

    Where the filesystem cannot (GlusterFS, NFS), or a crash between the two renames that it takes there left no *other*, *one* takes its
    place and what was there lies beside *one*.
    """
    if _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOENT, errno.ENOTSUP) or not one.exists():
            raise OSError(code, os.strerror(code), str(one))
        with contextlib.suppress(FileNotFoundError):
            other.rename(one.with_name(f"replaced.{secrets.token_hex(4)}"))
        one.rename(other)
    sync_directory(one.parent)
    sync_directory(other.parent)


def overwrite(descriptor: int) -> None:
    """Zeros over every byte that a file has allocated, on the disk before this returns."""
    position, end = 0, os.fstat(descriptor).st_size
    zeros = bytes(1 << 20)
    while position < end:
        try:
            position = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        hole = os.lseek(descriptor, position, os.SEEK_HOLE)
        while position < hole:
            position += os.pwrite(descriptor, zeros[: min(len(zeros), hole - position)], position)
    os.fsync(descriptor)


def mounted_below(place: Path) -> Path | None:
    """A mount point at or below *place* in this mount namespace."""
    entry = next(iter(mounts.below(Path(os.path.realpath(place)))), None)
    return None if entry is None else Path(entry.point)
