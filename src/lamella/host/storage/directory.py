"""A pool that is a directory of any filesystem: a volume is a directory tree, a sparse raw file, or a clone of an image's disk.

    <path>/volumes/<id>/volume.json     what it is
    <path>/volumes/<id>/data/           a filesystem volume
    <path>/volumes/<id>/disk.raw        a block volume
    <path>/volumes/<id>/disk.qcow2      a block volume that began as the disk of an image: what differs from it
    <path>/.staging, <path>/.trash      half-made and half-deleted ones, cleared when the pool is opened

A volume appears and disappears by one rename, so that whatever is under ``volumes`` is whole.
"""

import asyncio
import contextlib
import errno
import os
import secrets
import subprocess
from collections.abc import Generator
from pathlib import Path

import msgspec

from lamella.host.linux import binaries
from lamella.host.storage import tree
from lamella.host.storage.driver import Base, VolumeHandle
from lamella.model.errors import Conflict, Internal, Invalid, NoRoom, NotFound, Unavailable
from lamella.model.ids import is_id
from lamella.model.resource import Condition
from lamella.model.storage import Feature, PoolStatus, VolumeForm

DEFAULT_BLOCK_SIZE = 8 << 30
_GRAIN = 4096
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Sixteen times fewer copied bytes for a small write than without subclusters, and half the tables (qemu docs/interop/qcow2.txt,
# "Extended L2 Entries").
_CLONE = "cluster_size=128k,extended_l2=on,compat=1.1"
_CLONE_DEADLINE = 60.0


class BaseRecord(msgspec.Struct, kw_only=True, frozen=True):
    """:class:`~lamella.host.storage.driver.Base` as it is written down."""

    path: str
    size: int


class Record(msgspec.Struct, kw_only=True, frozen=True):
    """The content of ``volume.json``. ``size`` is the bytes that were asked for, 0 for no bound."""

    form: VolumeForm
    size: int
    base: BaseRecord | None = None


class DirectoryDriver:
    """The built-in driver of the pool ``default``; *path* is on a filesystem that takes an overlay's upper directory."""

    name = "directory"
    features = frozenset({Feature.BLOCK, Feature.FILESYSTEM, Feature.THIN})

    def __init__(self, path: Path, options: dict[str, str] | None = None) -> None:
        self.path = path
        self._volumes = path / "volumes"
        self._staging = path / ".staging"
        self._trash = path / ".trash"
        # One remover at a time: they share the trash's name space.
        self._removing = asyncio.Lock()

    async def open(self) -> PoolStatus:
        """Make the pool's directories, drop what a crash left half done, and say what room there is.

        :raise Unavailable: when *path* cannot be made or written.
        """
        leftovers = await asyncio.to_thread(self._open)
        status = await self.status()
        status.conditions.extend(leftovers)
        return status

    def _open(self) -> list[Condition]:
        try:
            # Mode 0700: a container's files may be set-user-ID programs, which no user of the host shall reach.
            for directory in (self.path, self._volumes, self._staging, self._trash):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._staging / f"{secrets.token_hex(4)}.probe").mkdir()
        except OSError as error:
            raise Unavailable(
                f"pool directory {self.path} cannot be used: {error.strerror}",
                hint="make it a writable directory of a local filesystem",
            ) from error
        return [condition for place in (self._staging, self._trash) if (condition := self._sweep(place)) is not None]

    def _sweep(self, place: Path) -> Condition | None:
        try:
            tree.clear(place)
        except (OSError, tree.Occupied) as error:
            return Condition(
                type="Clean",
                status=False,
                reason="LeftoversStay",
                message=f"{place} holds remains of deleted volumes that cannot be removed: {error}",
                hint=f"unmount what is mounted below {place}, then restart the daemon",
            )
        return None

    async def status(self) -> PoolStatus:
        """Capacity and free bytes as an unprivileged user would find them (statvfs(3): f_bavail).

        :raise Unavailable: when the directory does not answer.
        """
        try:
            room = await asyncio.to_thread(os.statvfs, self.path)
        except OSError as error:
            raise Unavailable(f"pool directory {self.path} cannot be read: {error.strerror}") from error
        return PoolStatus(
            capacity=room.f_blocks * room.f_frsize,
            free=room.f_bavail * room.f_frsize,
            conditions=[
                Condition(
                    type="SizeEnforced",
                    status=False,
                    reason="NoQuota",
                    message="the directory driver bounds block volumes only; a filesystem volume may fill the pool",
                )
            ],
        )

    async def inventory(self) -> set[str]:
        return {name for name in await asyncio.to_thread(os.listdir, self._volumes) if is_id(name)}

    async def create(self, id: str, form: VolumeForm, size: int, *, base: Base | None = None) -> VolumeHandle:
        """Make it, or return the one there is. A block volume of size 0 gets the size of *base*, or 8 GiB; sizes grow to a multiple of
        4 KiB.

        :raise NoRoom: when the filesystem is full.
        :raise Conflict: when a volume of that id has another form.
        :raise Invalid: when *id* is no id, *size* is negative or smaller than *base*, or *base* is given for a filesystem.
        :raise Unavailable: when *base* cannot be read, or qemu-img is not installed.
        """
        self._place(id)
        handle = await asyncio.to_thread(self._create, id, record_for(form, size, base))
        if handle.form is not form:
            raise Conflict(
                f"volume {id} exists and is a {handle.form} volume, not a {form} one",
                hint="delete it first",
                field="form",
            )
        return handle

    def _create(self, id: str, record: Record) -> VolumeHandle:
        place = self._place(id)
        if place.exists():
            return self._handle(id)
        staged = self._staging / f"{id}.{secrets.token_hex(4)}"
        with self._room(f"create volume {id}"):
            try:
                staged.mkdir(mode=0o700)
                if record.form is VolumeForm.FILESYSTEM:
                    data = staged / "data"
                    data.mkdir()
                    data.chmod(0o755)
                elif record.base is not None:
                    _clone(staged / "disk.qcow2", record.base, record.size)
                else:
                    _write(staged / "disk.raw", b"", size=record.size)
                _write(staged / "volume.json", msgspec.json.encode(record))
                _sync_directory(staged)
                staged.rename(place)
                _sync_directory(self._volumes)
            except OSError as error:
                _discard(staged)
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return self._handle(id)  # somebody else made it meanwhile
                raise
            except BaseException:
                _discard(staged)
                raise
        return _located(id, place, record)

    async def handle(self, id: str) -> VolumeHandle:
        """:raise NotFound: when there is no such volume here. :raise Invalid: when *id* is no id."""
        self._place(id)
        return await asyncio.to_thread(self._handle, id)

    def _handle(self, id: str) -> VolumeHandle:
        place = self._place(id)
        try:
            record = msgspec.json.decode((place / "volume.json").read_bytes(), type=Record)
        except FileNotFoundError as error:
            raise NotFound(
                f"pool {self.path} has no volume {id}", hint="ask the pool's inventory for what there is"
            ) from error
        except (OSError, msgspec.DecodeError) as error:
            raise Internal(f"volume {id} in pool {self.path} cannot be read: {error}") from error
        return _located(id, place, record)

    async def used(self, id: str) -> int:
        """Bytes allocated to it in the filesystem: what a sparse file really takes, a hard link once.

        :raise NotFound: when there is no such volume here.
        """
        place = self._place(id)
        try:
            return await asyncio.to_thread(tree.allocated, place)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"pool {self.path} has no volume {id}") from error

    async def delete(self, id: str) -> None:
        """Rename it into the trash, then remove it there. What is left after a crash goes when the pool is opened.

        :raise Conflict: when something is mounted inside; then nothing is changed.
        """
        place = self._place(id)
        if await asyncio.to_thread(self._discard, id, place):
            async with self._removing:
                await asyncio.to_thread(self._empty_trash, id)

    def _discard(self, id: str, place: Path) -> bool:
        mounted = _mount_below(place)
        if mounted is not None:
            raise Conflict(f"volume {id} is in use: {mounted} is mounted", hint="stop the instance that uses it")
        try:
            place.rename(self._trash / f"{id}.{secrets.token_hex(4)}")
        except FileNotFoundError:
            return False
        return True

    def _empty_trash(self, id: str) -> None:
        try:
            tree.clear(self._trash)
        except tree.Occupied as error:
            raise Conflict(
                f"volume {id} is gone, but something is mounted at {error.name!r} inside its remains in {self._trash}",
                hint="unmount it; the remains go when the daemon starts",
            ) from error

    def _place(self, id: str) -> Path:
        if not is_id(id):
            raise Invalid(f"{id!r} is not the id of a volume", hint="ids look like vol_ and 26 characters", field="id")
        return self._volumes / id

    @contextlib.contextmanager
    def _room(self, what: str) -> Generator[None]:
        try:
            yield
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


def record_for(form: VolumeForm, size: int, base: Base | None) -> Record:
    """What a volume of *size* bytes over *base* becomes.

    :raise Invalid: when that cannot be.
    """
    if size < 0:
        raise Invalid(f"a volume cannot have {size} bytes", hint="use 0 or more", field="size")
    if form is VolumeForm.FILESYSTEM:
        if base is not None:
            raise Invalid("a filesystem volume cannot begin as a disk", hint="ask for a block volume", field="form")
        return Record(form=form, size=size)
    if base is not None and 0 < size < base.size:
        raise Invalid(
            f"a volume of {size} bytes cannot hold the image's disk of {base.size}",
            hint=f"ask for {-(-base.size // (1 << 20))}MiB or more, or for 0 to take the disk's own size",
            field="size",
        )
    wanted = size or (base.size if base is not None else DEFAULT_BLOCK_SIZE)
    return Record(
        form=form,
        size=-(-wanted // _GRAIN) * _GRAIN,
        base=None if base is None else BaseRecord(path=str(base.path), size=base.size),
    )


def _located(id: str, place: Path, record: Record) -> VolumeHandle:
    if record.form is VolumeForm.FILESYSTEM:
        return VolumeHandle(id=id, form=record.form, path=place / "data", size=record.size)
    if record.base is None:
        return VolumeHandle(id=id, form=record.form, path=place / "disk.raw", size=record.size)
    base = Base(path=Path(record.base.path), size=record.base.size)
    return VolumeHandle(id=id, form=record.form, path=place / "disk.qcow2", size=record.size, format="qcow2", base=base)


def _clone(path: Path, base: BaseRecord, size: int) -> None:
    """A new qcow2 of *size* bytes over *base*, mode 0600, durable; *base* is named with its format and opened only to be read.

    :raise Unavailable: when *base* is not there or not what it was, or qemu-img cannot do it.
    """
    try:
        found = Path(base.path).stat().st_size
    except OSError as error:
        raise Unavailable(
            f"the image's disk {base.path} cannot be read: {error.strerror}", hint="fetch or build the image again"
        ) from error
    if found != base.size:
        raise Unavailable(
            f"the image's disk {base.path} has {found} bytes, not {base.size}", hint="fetch or build the image again"
        )
    command = [str(binaries.tool("qemu-img")), "create", "-q", "-f", "qcow2", "-o", _CLONE, "-F", "raw"]
    try:
        done = subprocess.run(
            [*command, "-b", base.path, str(path), str(size)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CLONE_DEADLINE,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(
            f"qemu-img made no clone in {_CLONE_DEADLINE:g} s", hint="see the disk and its load"
        ) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        for code in _FULL:
            if os.strerror(code) in said:
                raise OSError(code, os.strerror(code))
        raise Unavailable(f"qemu-img made no clone of {base.path}: {said[-400:]}")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, content: bytes, *, size: int | None = None) -> None:
    """A new file of mode 0600, durable; *size* makes it a sparse one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, content)
        if size is not None:
            os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(staged: Path) -> None:
    """Drop what _create had made; the rest of a failure goes when the pool is opened."""
    with contextlib.suppress(OSError, tree.Occupied):
        tree.clear(staged)
        staged.rmdir()


def _mount_below(place: Path) -> Path | None:
    """A mount point at or below *place* in this mount namespace (proc(5), mountinfo, field 5)."""
    prefix = os.path.realpath(place)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split(" ", 5)[4].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n")
        point = point.replace("\\134", "\\")
        if point == prefix or point.startswith(prefix + "/"):
            return Path(point)
    return None
