"""ext4 filesystems in volumes: made, checked, grown and shrunk by e2fsprogs. *path* is a file or device that nobody else writes.

What is read of the superblock: kernel, Documentation/filesystems/ext4/super.rst.
"""

import os
import shutil
import struct
from pathlib import Path

import msgspec

from lamella.host.linux import processes
from lamella.model.errors import Corrupt, NoRoom, Unavailable, Unsupported

_OFFSET, _BYTES, _MAGIC = 1024, 1024, 0xEF53
_CLEAN, _NEEDS_RECOVERY, _HIGH_COUNTS = 1, 0x4, 0x80
# Hours of work for a large one: it ends by itself or not at all.
_DEADLINE = 6 * 3600.0
_GRAIN = 4096


class Superblock(msgspec.Struct, frozen=True, kw_only=True):
    """``size`` is bytes; ``clean`` says that it was unmounted."""

    size: int
    clean: bool


def parse(data: bytes) -> Superblock | None:
    """From the 1024 bytes at offset 1024; ``None`` when they are no superblock."""
    if len(data) < _BYTES or struct.unpack_from("<H", data, 0x38)[0] != _MAGIC:
        return None
    (state,) = struct.unpack_from("<H", data, 0x3A)
    (incompatible,) = struct.unpack_from("<I", data, 0x60)
    (low,) = struct.unpack_from("<I", data, 0x4)
    (shift,) = struct.unpack_from("<I", data, 0x18)
    if shift > 6:
        return None
    high = struct.unpack_from("<I", data, 0x150)[0] if incompatible & _HIGH_COUNTS else 0
    clean = state == _CLEAN and not incompatible & _NEEDS_RECOVERY
    return Superblock(size=((high << 32) | low) << (10 + shift), clean=clean)


def read(path: Path) -> Superblock | None:
    """Of what lies in *path*. Blocks. :raise Unavailable: when it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return parse(os.pread(descriptor, _BYTES, _OFFSET))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unavailable(f"the disk does not answer: {error.strerror}", hint="try again in a moment") from error


class Ext4:
    """The tools, as the layer of *mark* runs them."""

    def __init__(self, mark: str) -> None:
        self._environment = processes.environment(mark, E2FSPROGS_SKIP_PROGRESS="1")

    async def make(self, path: Path, label: str = "", *, zeros: bool = False) -> None:
        """An empty filesystem over all of it. *zeros*: all of it reads as zeros already, so its tables (2 % of a large one) take no room;
        else they are written now, not later by the kernel in its owner's time.

        :raise NoRoom: when the volume is too small, or its pool full.
        """
        options = "assume_storage_prezeroed=1" if zeros else "lazy_itable_init=0,lazy_journal_init=0"
        options += ",nodiscard"
        arguments = ["-q", "-F", "-b", "4096", "-m", "0", "-E", options, "-L", label[:16], str(path)]
        code, said = await self._run("mkfs.ext4", *arguments)
        if code != 0:
            raise NoRoom(
                f"the volume cannot be formatted: {said}", hint="give it at least 2 MiB, and see the pool's room"
            )

    async def check(self, path: Path, *, fully: bool = False) -> bool:
        """Replay its journal and mend what can be without asking; *fully* looks at everything. Whether anything was mended.

        :raise Corrupt: when a person has to decide.
        """
        code, said = await self._run("e2fsck", *(["-f"] if fully else []), "-p", str(path))
        if code & ~3:
            raise Corrupt(
                f"the filesystem is damaged: {said or f'e2fsck ended with {code}'}",
                hint="restore a snapshot, or attach it raw to a machine and run e2fsck -f there",
            )
        return bool(code & 3)

    async def inspect(self, path: Path) -> str:
        """What is wrong with it, in e2fsck's words; nothing is changed. Empty when it is well."""
        code, said = await self._run("e2fsck", "-f", "-n", str(path))
        return (said.splitlines()[-1] if said else f"e2fsck ended with {code}") if code else ""

    async def grow(self, path: Path) -> None:
        """To all of the file or device; a mounted device is grown while it is used.

        :raise Unavailable: when it cannot be.
        """
        code, said = await self._run("resize2fs", str(path))
        if code != 0:
            raise Unavailable(f"the filesystem cannot be grown: {said}", hint="check it, then try again")

    async def shrink(self, path: Path, size: int) -> None:
        """To *size* bytes, nothing of it lost.

        :raise Unsupported: when what is in it needs more.
        """
        await self.check(path, fully=True)
        code, said = await self._run("resize2fs", str(path), f"{size // _GRAIN * _GRAIN // 1024}K")
        if code != 0:
            raise Unsupported(
                f"the filesystem cannot be made that small: {said.splitlines()[-1] if said else code}",
                hint="remove files first, or ask for more",
            )

    async def _run(self, tool: str, *arguments: str) -> tuple[int, str]:
        program = shutil.which(tool, path=self._environment["PATH"])
        if program is None:
            raise Unavailable(f"{tool} is not installed on this host", hint="install the Debian package e2fsprogs")
        code, said = await processes.run([program, *arguments], environment=self._environment, timeout=_DEADLINE)
        # The first line is the program's version.
        lines = [line for line in said.splitlines() if line.strip() and not line.startswith((f"{tool} ", "e2fsck 1."))]
        return code, " ".join(lines)
