"""Filesystem volumes as plain directories: a snapshot is a copy, which shares its blocks where the filesystem can.

Copies are made by cp(1): owners, modes, times, extended attributes, hard links, holes, devices and sockets stay what they are.
"""

import asyncio
from pathlib import Path

from lamella.host.linux import binaries
from lamella.host.storage import command as tools
from lamella.host.storage import tree
from lamella.host.storage.directory.ground import Ground, sync_filesystem
from lamella.model.errors import NoRoom, Unavailable

_DEADLINE = 6 * 3600.0


class Trees:
    """How one kind of directory is made, copied and removed; ``btrfs`` has another."""

    async def make(self, target: Path, size: int) -> None:
        """An empty tree that may take *size* bytes (0: no bound)."""
        await asyncio.to_thread(_make, target)

    async def copy(self, source: Path, target: Path, size: int, *, read_only: bool = False) -> None:
        """*target*, which is not there yet, becomes what *source* is, durably.

        :raise NoRoom: when the filesystem is full. :raise Unavailable: when something cannot be copied.
        """
        # Both are directories: --no-target-directory keeps cp from copying into one that is there.
        await run(
            "cp",
            "--archive",
            "--reflink=auto",
            "--sparse=auto",
            "--one-file-system",
            "--no-target-directory",
            str(source),
            str(target),
        )
        await asyncio.to_thread(sync_filesystem, target)

    async def keep(self, data: Path, kept: Path, staged: Path, ground: Ground) -> None:
        """*kept* appears at one instant as what *data* is, durably; *staged* is a directory to make it in."""
        await self.copy(data, staged / "data", 0, read_only=True)
        await asyncio.to_thread(ground.publish, staged / "data", kept)

    def discard(self, kept: Path, ground: Ground) -> None:
        """It disappears at one instant; not there is fine."""
        ground.discard(kept)

    async def bound(self, data: Path, size: int) -> None:
        """It may take *size* bytes from now on."""

    async def used(self, place: Path) -> int:
        """:raise FileNotFoundError: when it is not there."""
        return await asyncio.to_thread(tree.allocated, place)

    def prepare(self, staged: Path) -> None:
        """Make the directory of a new volume what its files are to be."""

    def release(self, path: Path) -> None:
        """Take away what unlinking files below *path* would not."""


def _make(target: Path) -> None:
    target.mkdir()
    target.chmod(0o755)


async def run(*command: str, deadline: float = _DEADLINE, good: tuple[int, ...] = (0,)) -> str:
    """A tool to its end, which dies with us; what it printed. It went well when it exits with one of *good*.

    :raise NoRoom: when it says that the filesystem is full. :raise Unavailable: when it fails otherwise.
    """
    ended = await tools.run([str(binaries.tool(command[0])), *command[1:]], timeout=deadline)
    if ended.code not in good:
        text = ended.error
        if "No space left" in text or "quota exceeded" in text:
            raise NoRoom(f"{command[0]}: the pool is full", hint="delete volumes or snapshots")
        raise Unavailable(f"{command[0]} failed: {text[-400:]}")
    return ended.out.decode(errors="replace")
