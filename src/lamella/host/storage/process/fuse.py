"""What has to be done to a FUSE export of QEMU 7.2 so that it is safe.

Its handler reads the next request into the buffer of one that it still writes from, so two writes under way at once put one's bytes in
the other's place (fixed in QEMU 10.1, "fuse: Copy write buffer content before polling"; measured here: a third of the blocks of a
4 MiB direct write were wrong). The kernel sends several writes of one file at once only as background requests, which are direct ones;
``max_background`` of the connection (Documentation/filesystems/fuse.rst) is set to 1, and then it sends one at a time.
"""

import mmap
import os
from contextlib import suppress
from pathlib import Path

from lamella.host.linux import mounts, syscalls
from lamella.model.errors import Unavailable

_PAGE = 4096


def make_safe(file: Path) -> None:
    """One background request at a time for the export at *file*. Blocks: call it in a thread.

    :raise Unavailable: when this kernel does not let it be set; nobody may write to the file then.
    """
    try:
        control = syscalls.detached_mount("fusectl")
        try:
            # Both are there for each connection, which has the number of the mount's device.
            for name in ("congestion_threshold", "max_background"):
                path = f"{os.minor(file.stat().st_dev)}/{name}"
                fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=control)
                try:
                    os.write(fd, b"1")
                finally:
                    os.close(fd)
        finally:
            os.close(control)
    except OSError as error:
        raise Unavailable(f"the file of a volume cannot be made safe to write to: {error}") from error


def prepare(file: Path) -> None:
    """A regular file to mount over; what a crashed process left mounted there goes. Blocks."""
    release(file)
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def release(file: Path) -> None:
    """Take away what is mounted at *file*, whether it answers or not. Blocks."""
    for entry in mounts.table():
        if entry.point == str(file):
            with suppress(OSError):
                syscalls.umount(entry.point)


def touch(file: Path) -> None:
    """Read a page from below, past the page cache. Blocks, for as long as the export does not answer."""
    fd = os.open(file, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, _PAGE) as page:
            os.preadv(fd, [page], 0)
    finally:
        os.close(fd)


def mounted(file: Path) -> bool:
    return any(entry.point == str(file) for entry in mounts.table())
