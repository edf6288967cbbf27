"""Measure and remove directory trees that somebody else filled, to any depth, with links that point anywhere.

Nothing here follows a symbolic link, leaves the filesystem that it began on, recurses, or holds more than four
descriptors.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

# ioctl_iflags(2): the immutable and append-only attributes forbid unlinking to root too.
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_APPEND_OR_IMMUTABLE = 0x20 | 0x10


class Occupied(Exception):
    """Something is mounted inside a tree that was to be removed; ``name`` is the entry where."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def allocated(root: Path) -> int:
    """Bytes that the filesystem has allocated for the tree at *root*: a hard link once, a mount inside not at all.

    Entries that vanish meanwhile are skipped. A directory that is moved while it is measured ends the count early.

    :raise OSError: when *root* cannot be opened.
    """
    here = os.open(root, _DIRECTORY)
    try:
        start = os.fstat(here)
        total = start.st_blocks
        seen: set[int] = set()
        added, names = _scan(here, start.st_dev, seen)
        total += added
        # One level a pair: the directory's inode and the names in it still to be visited. The way back is "..".
        levels = [(start.st_ino, names)]
        while levels:
            _, names = levels[-1]
            if names:
                name = names.pop()
                try:
                    below = os.open(name, _DIRECTORY, dir_fd=here)
                except OSError as error:
                    if error.errno in _GONE:
                        continue
                    raise
                os.close(here)
                here = below
                added, inner = _scan(here, start.st_dev, seen)
                total += added
                levels.append((os.fstat(here).st_ino, inner))
                continue
            levels.pop()
            if levels:
                above = os.open("..", _DIRECTORY, dir_fd=here)
                os.close(here)
                here = above
                if os.fstat(here).st_ino != levels[-1][0]:
                    break
        return total * 512
    finally:
        os.close(here)


def _scan(directory: int, device: int, seen: set[int]) -> tuple[int, list[str]]:
    """(512-byte blocks of the entries, names of the subdirectories) of one directory."""
    blocks = 0
    names: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                info = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if info.st_dev != device:
                continue
            if stat.S_ISDIR(info.st_mode):
                names.append(entry.name)
            elif info.st_nlink > 1:
                if info.st_ino in seen:
                    continue
                seen.add(info.st_ino)
            blocks += info.st_blocks
    return blocks, names


def clear(root: Path, wipe: Callable[[int], None] | None = None) -> None:
    """Remove everything below the directory *root*, which stays.

    Each subdirectory is first moved up into *root* itself, so that depth never matters and a crash loses nothing. *wipe* is given the
    descriptor of each regular file, open for reading and writing, before it is unlinked.

    :raise Occupied: when something is mounted inside; what lies on the mounted filesystem is not touched.
    :raise OSError: when the filesystem refuses.
    """
    top = os.open(root, _DIRECTORY)
    try:
        device = os.fstat(top).st_dev
        serial = 0
        while names := _names(top):
            for name in names:
                info = os.stat(name, dir_fd=top, follow_symlinks=False)
                if info.st_dev != device:
                    raise Occupied(name)
                if not stat.S_ISDIR(info.st_mode):
                    _wipe(name, top, info, wipe)
                    _remove_entry(name, top, is_directory=False)
                    continue
                serial = _empty(top, name, device, serial, wipe)
                _remove_entry(name, top, is_directory=True)
    finally:
        os.close(top)


def _names(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries]


def _empty(top: int, name: str, device: int, serial: int, wipe: Callable[[int], None] | None) -> int:
    """Unlink the files of directory *name* in *top*, hoist its subdirectories into *top*; returns the last serial."""
    directory = os.open(name, _DIRECTORY, dir_fd=top)
    try:
        _unprotect(directory)
        for child in _names(directory):
            info = os.stat(child, dir_fd=directory, follow_symlinks=False)
            if info.st_dev != device:
                raise Occupied(child)
            if not stat.S_ISDIR(info.st_mode):
                _wipe(child, directory, info, wipe)
                _remove_entry(child, directory, is_directory=False)
                continue
            try:
                _remove_entry(child, directory, is_directory=True)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                serial = _hoist(child, directory, top, serial)
        return serial
    finally:
        os.close(directory)


def _wipe(name: str, directory: int, info: os.stat_result, wipe: Callable[[int], None] | None) -> None:
    if wipe is None or not stat.S_ISREG(info.st_mode):
        return
    entry = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        _unprotect(entry)
    finally:
        os.close(entry)
    entry = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        wipe(entry)
    finally:
        os.close(entry)


def _hoist(child: str, directory: int, top: int, serial: int) -> int:
    inner = os.open(child, _DIRECTORY, dir_fd=directory)
    try:
        _unprotect(inner)
    finally:
        os.close(inner)
    while True:
        serial += 1
        try:
            os.rename(child, f".{serial}", src_dir_fd=directory, dst_dir_fd=top)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                continue
            if error.errno in (errno.EBUSY, errno.EXDEV):
                raise Occupied(child) from error
            raise
        return serial


def _remove_entry(name: str, directory: int, *, is_directory: bool) -> None:
    """rmdir or unlink, once more without the immutable attribute when that forbade it."""
    remove = os.rmdir if is_directory else os.unlink
    try:
        remove(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Occupied(name) from error
        if error.errno != errno.EPERM or not _protectable(name, directory):
            raise
        # O_NONBLOCK: whatever took the name meanwhile must not make us wait.
        entry = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            _unprotect(entry)
        finally:
            os.close(entry)
        remove(name, dir_fd=directory)


def _protectable(name: str, directory: int) -> bool:
    mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _unprotect(entry: int) -> None:
    """Take the immutable and append-only attributes off, on filesystems that know them."""
    with contextlib.suppress(OSError):
        flags = int.from_bytes(fcntl.ioctl(entry, _FS_IOC_GETFLAGS, bytes(8))[:4], "little")
        if flags & _APPEND_OR_IMMUTABLE:
            fcntl.ioctl(entry, _FS_IOC_SETFLAGS, (flags & ~_APPEND_OR_IMMUTABLE).to_bytes(8, "little"))
