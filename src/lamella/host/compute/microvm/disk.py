"""The writable layer of a microVM: an ext4 on its volume, made once."""

import asyncio
import ctypes
import json
import os
import tempfile
from pathlib import Path

from lamella.host.compute.qemu.layers import Properties, chain_node, driver_of, files_of
from lamella.host.compute.qemu.shelf import Frozen
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
_SECTOR = 512


async def format_once(volume: VolumeHandle, environment: dict[str, str], scratch: Path) -> None:
    """Make the filesystem unless it is there. Interrupted at any point, the next call does it whole. *scratch* is a directory for what is
    needed meanwhile.

    :raise Invalid: when the volume is no disk.
    :raise Internal: when ``mkfs.ext4`` or ``qemu-img`` fails; its words are in the error.
    """
    if volume.form is not VolumeForm.BLOCK or volume.format not in ("raw", "qcow2"):
        raise Invalid(f"volume {volume.id} is not a disk", hint="a microVM wants a volume of the form block")
    if volume.format == "qcow2":
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        await _format_chain(volume, environment, scratch)
    elif not await asyncio.to_thread(is_made, volume.path):
        await asyncio.to_thread(_zero, volume.path)
        await _make(volume.path, volume, environment)
        await asyncio.to_thread(_mark, volume.path)


async def _format_chain(volume: VolumeHandle, environment: dict[str, str], scratch: Path) -> None:
    """A disk of layers, as one that was cloned or snapshotted before it was ever used: what is written of it goes into the top one."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        work, chain = Path(name), f"json:{json.dumps(_opened(volume))}"
        first, made = work / "first", work / "made"
        dd = ["qemu-img", "dd", "-O", "raw", f"bs={_SECTOR}", "count=1", f"if={chain}", f"of={first}"]
        await _qemu(dd, volume, environment)
        if (await asyncio.to_thread(first.read_bytes)).startswith(MADE):
            return
        await asyncio.to_thread(_sparse, made, volume.size)
        await _make(made, volume, environment)
        await _qemu(["qemu-img", "convert", "-n", "-f", "raw", str(made), chain], volume, environment)
        await asyncio.to_thread(first.write_bytes, MADE.ljust(_SECTOR, b"\0"))
        write = ["qemu-io", "-c", f"write -s {first} 0 {_SECTOR}", "-c", "flush", chain]
        await _qemu(write, volume, environment)


async def _make(path: Path, volume: VolumeHandle, environment: dict[str, str]) -> None:
    code, said = await run([str(binaries.tool("mkfs.ext4")), *OPTIONS, str(path)], environment=environment)
    if code:
        raise Internal(f"mkfs.ext4 could not format volume {volume.id}: {said}", hint="see whether the pool has room")


async def _qemu(argv: list[str], volume: VolumeHandle, environment: dict[str, str]) -> None:
    tool, *arguments = argv
    code, said = await run([str(binaries.tool(tool)), *arguments], environment=environment, timeout=120)
    if code:
        raise Internal(
            f"{tool} could not format volume {volume.id}: {said[-300:]}", hint="see whether the pool has room"
        )


def _opened(volume: VolumeHandle) -> Properties:
    """The chain for QEMU's tools, which open by name."""
    files: list[Properties] = [{"driver": driver_of(path), "filename": str(path)} for path in files_of(volume)]
    node = chain_node("", volume, files)
    del node["node-name"]
    return node


def _mark(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)
        os.pwrite(fd, MADE, 0)
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def is_fresh(volume: VolumeHandle) -> bool:
    """Whether it is a file that no instance has written yet, so that it may begin as a copy of another such disk."""
    return volume.form is VolumeForm.BLOCK and volume.format == "raw" and not volume.below and not is_made(volume.path)


def copy(template: Frozen, volume: VolumeHandle) -> None:
    """Make the fresh *volume* the disk of *template*. Interrupted, it is still fresh. Blocks."""
    _zero(volume.path)
    template.copy_disk(volume.path, first=_SECTOR)


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
