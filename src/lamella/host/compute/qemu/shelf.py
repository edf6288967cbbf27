"""Memories that are kept on this host, by id: on disk for as long as somebody may begin with them, in sealed files while somebody does.

<state>/memory/<id>/memory     pages, sparse
                    state      processors and devices
                    disk       what its writable disk held, where copies of it begin with a copy of that, sparse
                    made.json  what it is, and the digests of both; written last: without it there is nothing
"""

import asyncio
import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Self

import msgspec

from lamella.host.compute.qemu import memory_file
from lamella.host.compute.qemu.places import sync_directory, write_durably
from lamella.model.errors import Corrupt, NoRoom, NotFound

_MADE = "made.json"
_FILES = ("memory", "state")
_DISK = "disk"


class Part(msgspec.Struct, kw_only=True, frozen=True):
    """One file: its length in bytes, where in it there is data (offsets and sizes), and the digest of that."""

    length: int
    extents: list[tuple[int, int]]
    digest: str


class Made(msgspec.Struct, kw_only=True, frozen=True):
    """What is known of a memory. ``about`` says in words what it was made of, and is what a machine must agree with that begins with it."""

    about: dict[str, str]
    parts: dict[str, Part]

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return sum(size for part in self.parts.values() for _, size in part.extents)


class Frozen:
    """A memory that can be begun with: two sealed files, and maybe a disk that is read. Who begins has them open by itself."""

    def __init__(self, made: Made, memory: int, state: int, disk: int | None) -> None:
        self.made = made
        self.memory = memory
        self.state = state
        self._disk = disk
        self.used = time.monotonic()
        self._users = 0
        self._dropped = False

    @contextlib.contextmanager
    def held(self) -> Generator[Self]:
        """Inside, its files stay open whatever becomes of it."""
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1
            self.used = time.monotonic()
            if self._dropped:
                self.close()

    def copy_disk(self, path: Path, *, first: int) -> None:
        """Write the disk into *path*, which reads as zeros, its *first* bytes last and only when everything else is there. Blocks.

        :raise NotFound: when there is none.
        """
        if self._disk is None:
            raise NotFound("this memory has no disk")
        target = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for at, piece in memory_file.pieces(self._disk, self.made.parts[_DISK].extents):
                skipped = max(0, first - at)
                _write_all(target, piece[skipped:], at + skipped)
            os.fdatasync(target)
            _write_all(target, os.pread(self._disk, first, 0), 0)
            os.fdatasync(target)
        finally:
            os.close(target)

    def close(self) -> None:
        """Now, or when nobody begins with it any more."""
        self._dropped = True
        if self._users:
            return
        for fd in (self.memory, self.state, self._disk):
            if fd is not None:
                os.close(fd)


class Shelf:
    """The memories below *directory*."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: dict[str, Frozen] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    def ids(self) -> set[str]:
        """Of all that are whole."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self._directory) as entries:
            return {entry.name for entry in entries if (Path(entry.path) / _MADE).exists()}
        return set()

    def about(self, id: str) -> Made | None:
        """What is known of *id* without opening it."""
        try:
            return msgspec.json.decode((self._directory / id / _MADE).read_bytes(), type=Made)
        except (OSError, msgspec.MsgspecError):
            return None

    @contextlib.asynccontextmanager
    async def using(self, id: str) -> AsyncGenerator[Frozen]:
        """The memory *id*, in files that stay open for the next one.

        :raise NotFound: when there is none. :raise Corrupt: when it is not what was written.
        """
        async with self._turns.setdefault(id, asyncio.Lock()):
            frozen = self._open.get(id)
            if frozen is None:
                frozen = self._open[id] = await asyncio.to_thread(_load, self._directory / id)
            held = contextlib.ExitStack()
            held.enter_context(frozen.held())
        with held:
            # When it was used last, for who looks for what nobody needs.
            with contextlib.suppress(OSError):
                os.utime(self._directory / id / _MADE)
            yield frozen

    def unused(self) -> list[tuple[str, int]]:
        """Ids and sizes in bytes of all that are whole, the one that was used longest ago first."""
        found: list[tuple[float, str, int]] = []
        for id in self.ids():
            made = self.about(id)
            with contextlib.suppress(OSError):
                if made is not None:
                    found.append(((self._directory / id / _MADE).stat().st_mtime, id, made.size))
        return [(id, size) for _, id, size in sorted(found)]

    async def keep(self, id: str, memory: int, state: int, about: dict[str, str], *, disk: int | None = None) -> Made:
        """Seal *memory* and *state* and write them down, and the file *disk*; the caller closes them. What was there of that id is
        replaced.

        :raise NoRoom: when the disk is full; nothing is left then.
        """
        async with self._turns.setdefault(id, asyncio.Lock()):
            for fd in (memory, state):
                memory_file.seal(fd)
            place = self._directory / id
            former = self._open.pop(id, None)
            if former is not None:
                former.close()
            files = {
                name: fd for name, fd in zip((*_FILES, _DISK), (memory, state, disk), strict=True) if fd is not None
            }
            made = await asyncio.to_thread(_write, place, files, about)
            held = None if disk is None else os.open(place / _DISK, os.O_RDONLY | os.O_CLOEXEC)
            self._open[id] = Frozen(made, os.dup(memory), os.dup(state), held)
            return made

    async def remove(self, id: str) -> None:
        """Those that began with it go on; none of that id is fine."""
        async with self._turns.setdefault(id, asyncio.Lock()):
            frozen = self._open.pop(id, None)
            if frozen is not None:
                frozen.close()
            await asyncio.to_thread(_remove, self._directory / id)
        self._turns.pop(id, None)

    async def clear(self) -> None:
        """Remove what a crash left half written."""
        await asyncio.to_thread(self._clear)

    def rest(self, id: str) -> None:
        """Close the files of *id*: its pages are read again from disk when somebody begins with it."""
        frozen = self._open.pop(id, None)
        if frozen is not None:
            frozen.close()

    def let_go(self, unused: float = 0.0) -> int:
        """Close the files of those that nobody began with for *unused* seconds; their pages go when the last copy does. Returns how many
        they were."""
        before = time.monotonic() - unused
        idle = [id for id, frozen in self._open.items() if frozen.used <= before and not self._busy(id)]
        for id in idle:
            self._open.pop(id).close()
        return len(idle)

    def close(self) -> None:
        for frozen in self._open.values():
            frozen.close()
        self._open.clear()

    def _busy(self, id: str) -> bool:
        turn = self._turns.get(id)
        return turn is not None and turn.locked()

    def _clear(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            for entry in list(os.scandir(self._directory)):
                if not (Path(entry.path) / _MADE).exists() and not self._busy(entry.name):
                    shutil.rmtree(entry.path, ignore_errors=True)


def _write(place: Path, files: dict[str, int], about: dict[str, str]) -> Made:
    _remove(place)
    place.mkdir(mode=0o700, parents=True)
    try:
        parts = {name: _copy_out(fd, place / name) for name, fd in files.items()}
        made = Made(about=about, parts=parts)
        write_durably(place / _MADE, msgspec.json.encode(made))
        sync_directory(place.parent)
    except BaseException as error:
        _remove(place)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoom("the memory of a machine has no room on this host's disk", hint="free some") from error
        raise
    return made


def _copy_out(fd: int, path: Path) -> Part:
    digest, extents = _digest(), list(memory_file.extents(fd))
    with path.open("xb") as file:
        path.chmod(0o400)
        os.ftruncate(file.fileno(), os.fstat(fd).st_size)
        for at, piece in memory_file.pieces(fd, extents):
            digest.update(piece)
            _write_all(file.fileno(), piece, at)
        os.fsync(file.fileno())
    return Part(length=os.fstat(fd).st_size, extents=extents, digest=digest.hexdigest())


def _load(place: Path) -> Frozen:
    try:
        made = msgspec.json.decode((place / _MADE).read_bytes(), type=Made)
    except OSError:
        raise NotFound(f"there is no memory {place.name} on this host") from None
    except msgspec.MsgspecError as error:
        raise Corrupt(f"what is written down of the memory {place.name} makes no sense: {error}") from error
    fds: list[int] = []
    try:
        for name in _FILES:
            fds.append(_copy_in(place / name, made.parts[name]))
        if _DISK in made.parts:
            fds.append(_checked(place / _DISK, made.parts[_DISK]))
    except KeyError as error:
        raise Corrupt(f"what is written down of the memory {place.name} lacks {error}") from error
    finally:
        if len(fds) < len(made.parts):
            for fd in fds:
                os.close(fd)
    memory, state, *disk = fds
    return Frozen(made, memory, state, disk[0] if disk else None)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Corrupt(f"{path.name} of the memory {path.parent.name} cannot be read: {error.strerror}") from error


def _checked(path: Path, part: Part) -> int:
    fd, digest = _opened(path), _digest()
    for _, piece in memory_file.pieces(fd, part.extents):
        digest.update(piece)
    if digest.hexdigest() != part.digest:
        os.close(fd)
        raise Corrupt(f"{path.name} of the memory {path.parent.name} is not what was written", hint="make it anew")
    return fd


def _copy_in(path: Path, part: Part) -> int:
    source = _opened(path)
    fd, digest = memory_file.make(path.name, part.length), _digest()
    try:
        for at, piece in memory_file.pieces(source, part.extents):
            digest.update(piece)
            _write_all(fd, piece, at)
        if digest.hexdigest() != part.digest:
            raise Corrupt(f"{path.name} of the memory {path.parent.name} is not what was written", hint="make it anew")
        memory_file.seal(fd)
    except BaseException:
        os.close(fd)
        raise
    finally:
        os.close(source)
    return fd


def _write_all(fd: int, data: bytes, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:] if done else data, at + done)


def _digest() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=16)


def _remove(place: Path) -> None:
    # First that it is there, then the rest.
    (place / _MADE).unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)
