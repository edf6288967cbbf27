"""A btrfs in a file of the host's filesystem: made, mounted over a loop device, and let go of.

The mount outlives whoever made it: one that is there is taken as it is. The loop device goes with the mount (loop(4), autoclear).
"""

import asyncio
import os
from pathlib import Path

from lamella.host.linux import mounts
from lamella.host.storage.directory.trees import run
from lamella.model.errors import LamellaError, Unavailable

# mkfs.btrfs(8) refuses less than this with DUP metadata and block groups of their own.
SMALLEST = 128 << 20


class Image:
    """The file ``<path>.btrfs``, mounted at *path*; *size* bytes when it is made."""

    def __init__(self, path: Path, size: int, *, data: str) -> None:
        self.path = path
        self.file = path.with_name(f"{path.name}.btrfs")
        self._size = size
        self._data = data

    async def mount(self) -> None:
        """Make it if there is none, and mount it if it is not mounted.

        :raise Unavailable: when that cannot be.
        """
        if self.mounted:
            return
        try:
            await asyncio.to_thread(self.path.mkdir, mode=0o700, parents=True, exist_ok=True)
            if not await asyncio.to_thread(self.file.exists):
                await self._make()
            # One that another mount namespace keeps has to be used again: two devices with one btrfs are refused, rightly.
            known = (await run("losetup", "--associated", str(self.file), "--noheadings", "--output", "NAME")).split()
            device = known[0] if known else ""
            if not device:
                device = (await run("losetup", "--find", "--show", "--direct-io=on", str(self.file))).strip()
            try:
                await run("mount", "-t", "btrfs", "-o", "noatime", device, str(self.path))
            finally:
                if not known:
                    # While it is mounted this only says that the device goes with the mount.
                    await run("losetup", "--detach", device)
        except (OSError, LamellaError) as error:
            raise Unavailable(
                f"the btrfs in {self.file} cannot be mounted: {error}",
                hint="see what is said, and that loop devices are free",
            ) from error

    async def _make(self) -> None:
        fresh = self.file.with_name(f".{self.file.name}.new")
        await asyncio.to_thread(_sparse, fresh, max(self._size, SMALLEST))
        profile = ["--data", self._data] if self._data else []
        await run("mkfs.btrfs", "--quiet", "--force", *profile, str(fresh))
        await asyncio.to_thread(_publish, fresh, self.file)

    async def unmount(self) -> bool:
        """``False`` when something in it is open: then it stays."""
        if not self.mounted:
            return True
        try:
            await run("umount", str(self.path))
        except Unavailable:
            return False
        return True

    @property
    def mounted(self) -> bool:
        return any(entry.point == os.path.realpath(self.path) and entry.kind == "btrfs" for entry in mounts.table())


def _sparse(path: Path, size: int) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def _publish(fresh: Path, path: Path) -> None:
    for each in (fresh, path.parent):
        descriptor = os.open(each, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if each == fresh:
            fresh.rename(path)
