"""The writable layer of a microVM: an ext4 on its volume, made once."""

import ctypes
import os
from pathlib import Path

from lamella.host.linux import binaries
from lamella.host.linux.processes import run
from lamella.host.storage.driver import VolumeHandle
from lamella.model.errors import Internal, Invalid
from lamella.model.storage import VolumeForm

# ext4 leaves the first 1024 bytes alone. This is written there last: what has it was formatted to the end.
MADE = b"lamella data ext4 1\n"
# Nothing is zeroed, now or by the guest later: the volume reads as zeros, punched below to be sure of it.
OPTIONS = [
    *("-q", "-F", "-m", "0", "-O", "^resize_inode"),
    *("-E", "nodiscard,packed_meta_blocks=1,assume_storage_prezeroed=1,root_owner=0:0"),
]
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


async def format_once(volume: VolumeHandle, environment: dict[str, str]) -> None:
    """Make the filesystem unless it is there. Interrupted at any point, the next call does it whole.

    :raise Invalid: when the volume is not a raw disk.
    :raise Internal: when ``mkfs.ext4`` fails; its words are in the error.
    """
    if volume.form is not VolumeForm.BLOCK or volume.format != "raw":
        raise Invalid(f"volume {volume.id} is not a raw disk", hint="a microVM wants a volume of the form block")
    if is_made(volume.path):
        return
    _zero(volume.path)
    argv = [str(binaries.tool("mkfs.ext4")), *OPTIONS, str(volume.path)]
    code, said = await run(argv, environment=environment)
    if code:
        raise Internal(f"mkfs.ext4 could not format volume {volume.id}: {said}", hint="see whether the pool has room")
    fd = os.open(volume.path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)
        os.pwrite(fd, MADE, 0)
        os.fdatasync(fd)
    finally:
        os.close(fd)


def is_made(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, len(MADE), 0) == MADE
    finally:
        os.close(fd)


def _zero(path: Path) -> None:
    """Make a raw file read as zeros, by giving its blocks back (fallocate(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        mode = _KEEP_SIZE | _PUNCH_HOLE
        if libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(size)):
            number = ctypes.get_errno()
            raise Internal(f"the disk {path.name} cannot be emptied: {os.strerror(number)}")
    finally:
        os.close(fd)
