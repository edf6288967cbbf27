"""Filesystem volumes as subvolumes: bounded by a qgroup, kept and copied by snapshots of btrfs (btrfs-subvolume(8), btrfs-qgroup(8)).

A subvolume that somebody made inside a volume is not part of its snapshots, and goes when the volume does.
"""

import asyncio
import logging
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lamella.host.linux import binaries, mounts
from lamella.host.storage.directory.ground import Ground, sync_filesystem
from lamella.host.storage.directory.trees import Trees, run
from lamella.host.storage.reflink import NOCOW, attributes, set_attributes
from lamella.model.errors import LamellaError

log = logging.getLogger("lamella.host.storage")

# The root directory of every subvolume has this inode number (BTRFS_FIRST_FREE_OBJECTID).
_ROOT_INODE = 256
_QUICK = 60.0


class Subvolumes(Trees):
    """*nocow*: new files of block volumes are written in place, without checksums."""

    def __init__(self, *, nocow: bool) -> None:
        self._nocow = nocow
        # Whether the filesystem counts; found out when the pool is opened.
        self.bounded = False

    def prepare(self, staged: Path) -> None:
        if self._nocow:
            descriptor = os.open(staged, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                set_attributes(descriptor, attributes(descriptor) | NOCOW)
            finally:
                os.close(descriptor)

    async def make(self, target: Path, size: int) -> None:
        await run("btrfs", "subvolume", "create", str(target))
        await asyncio.to_thread(target.chmod, 0o755)
        await self.bound(target, size)

    async def copy(self, source: Path, target: Path, size: int, *, read_only: bool = False) -> None:
        kind = ["-r"] if read_only else []
        await run("btrfs", "subvolume", "snapshot", *kind, str(source), str(target))
        if not read_only:
            await self.bound(target, size)
        await asyncio.to_thread(sync_filesystem, target.parent)

    async def keep(self, data: Path, kept: Path, staged: Path, ground: Ground) -> None:
        """A read-only one cannot be renamed, and need not be: it is there at one instant."""
        await self.copy(data, kept, 0, read_only=True)

    def discard(self, kept: Path, ground: Ground) -> None:
        """Deleting one is one step of the filesystem; its blocks are given back in the background."""
        if kept.is_dir():
            self.release(kept)
            sync_filesystem(kept.parent)

    async def bound(self, data: Path, size: int) -> None:
        if self.bounded:
            await run("btrfs", "qgroup", "limit", str(size) if size else "none", str(data))

    async def used(self, place: Path) -> int:
        """What is its own and what it shares with its snapshots or others, each extent once (btrfs-filesystem(8), du)."""
        await asyncio.to_thread(place.lstat)
        said = await run("btrfs", "filesystem", "du", "--raw", "-s", str(place))
        _, exclusive, shared, *_ = said.splitlines()[-1].split()
        return sum(int(number) for number in (exclusive, shared) if number != "-")

    def release(self, path: Path) -> None:
        """Delete the subvolumes at and below *path*, the innermost first."""
        for found in list(_subvolumes(path)):
            done = subprocess.run(
                [str(binaries.tool("btrfs")), "subvolume", "delete", str(found)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_QUICK,
            )
            if done.returncode:
                # Clearing the place comes upon it then, and says so.
                log.warning("subvolume %s: %s", found, done.stderr.decode(errors="replace").strip())

    async def count(self, path: Path) -> str:
        """Turn quotas on; why that cannot be, or an empty string."""
        try:
            await run("btrfs", "quota", "enable", str(path))
        except LamellaError as error:
            self.bounded = False
            return error.message
        self.bounded = True
        return ""

    async def forget_stale(self, path: Path) -> None:
        """Remove qgroups whose subvolumes are gone; what the filesystem still needs stays."""
        try:
            said = await run("btrfs", "qgroup", "show", "--raw", str(path))
            for group in re.findall(r"^(0/\d+)\s.*<stale>$", said, re.MULTILINE):
                await run("btrfs", "qgroup", "destroy", group, str(path))
        except LamellaError as error:
            log.debug("qgroups of %s: %s", path, error.message)


def _subvolumes(path: Path) -> Iterator[Path]:
    """Links are not followed. What is mounted inside keeps everything as it is."""
    if mounts.below(Path(os.path.realpath(path))):
        return
    for directory, _, _ in os.walk(path, topdown=False):
        found = Path(directory)
        try:
            told = found.lstat()
        except FileNotFoundError:
            continue
        if told.st_ino == _ROOT_INODE and stat.S_ISDIR(told.st_mode):
            yield found
