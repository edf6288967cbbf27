"""The root of a microVM as a read-only disk: one erofs an image, built once from the layers, shared by every instance.

    <state>/images-block/<digest>.erofs      whole, or not there
                         .build-<random>/    half-made; a mount point and the file to be

The layers are merged by the kernel's own overlayfs, so that whiteouts mean here what they mean to a container.
"""

import asyncio
import os
import secrets
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from lamella.host.compute.driver import Rootfs
from lamella.host.compute.qemu.places import sync_directory
from lamella.host.linux import binaries, mounts, syscalls
from lamella.host.linux.processes import run
from lamella.model.errors import Corrupt, Internal, Unsupported

DEADLINE = 900.0
# Names of open directories are short, however deep the library lies: the options of a mount fit into one page.
_LONGEST_OPTIONS = 4095
_MOST_PHANTOMS = 256


class BlockImages:
    """The block images below *directory*. Builders in several processes do not disturb each other: the last rename wins."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._directory = directory
        self._environment = environment
        self._building: dict[str, asyncio.Lock] = {}

    def path(self, digest: str) -> Path:
        return self._directory / f"{digest.replace(':', '-')}.erofs"

    async def ensure(self, rootfs: Rootfs) -> Path:
        """The block image of *rootfs*, made now if there is none.

        :raise Unsupported: when the image has more layers than one overlay takes.
        :raise Corrupt: when its whiteouts make no sense.
        :raise Internal: when ``mkfs.erofs`` fails; its words are in the error.
        """
        path = self.path(rootfs.digest)
        if path.exists():
            return path
        lock = self._building.setdefault(rootfs.digest, asyncio.Lock())
        async with lock:
            if not path.exists():
                await self._build(rootfs, path)
        self._building.pop(rootfs.digest, None)
        return path

    async def collect(self, keep: set[str]) -> int:
        """Remove the block images of digests that are not in *keep*, and what a crash left half-made. Returns bytes freed."""
        if self._building:
            return 0
        return await asyncio.to_thread(self._collect, {self.path(digest).name for digest in keep})

    async def _build(self, rootfs: Rootfs, path: Path) -> None:
        work = self._directory / f".build-{secrets.token_hex(8)}"
        image = work / "image"
        try:
            await asyncio.to_thread(_merge, rootfs.layers, work)
            await self._make(work / "merged", image, rootfs.digest)
            await asyncio.to_thread(_publish, image, path)
        finally:
            await asyncio.to_thread(_clear, work)

    async def _make(self, merged: Path, image: Path, digest: str) -> None:
        # Not compressed: it is read from the page cache of all instances, and reading is what booting waits for.
        # Attributes lie in the inodes: looking for shared ones would walk the tree once more, past the exclusions.
        argv = [str(binaries.tool("mkfs.erofs")), "--quiet", "--preserve-mtime", f"-x{(1 << 31) - 1}"]
        argv += [f"--exclude-path={path}" for path in await asyncio.to_thread(_phantoms, merged, digest)]
        argv += [str(image), str(merged)]
        code, said = await run(argv, environment=self._environment, timeout=DEADLINE)
        if code:
            raise Internal(f"mkfs.erofs could not build the disk of image {digest}: {said[-400:]}")

    def _collect(self, keep: set[str]) -> int:
        freed = 0
        with suppress(FileNotFoundError), os.scandir(self._directory) as entries:
            for entry in entries:
                if entry.name.startswith(".build-"):
                    _clear(Path(entry.path))
                elif entry.name.endswith(".erofs") and entry.name not in keep:
                    freed += entry.stat().st_blocks * 512
                    Path(entry.path).unlink()
        return freed


def _merge(layers: list[Path], work: Path) -> None:
    """Show *layers* (top first) as one read-only tree at ``merged``."""
    point, empty = work / "merged", work / "empty"
    for directory in (point, empty):
        directory.mkdir(parents=True)
    # The empty one below all makes a single layer an overlay too, whose own whiteouts then hide nothing and do not show.
    held = [os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for directory in [*layers, empty]]
    try:
        options = "lowerdir=" + ":".join(f"/proc/self/fd/{fd}" for fd in held)
        if len(options) > _LONGEST_OPTIONS:
            raise Unsupported(
                f"the image has {len(layers)} layers, more than one overlay takes", hint="flatten it with a builder"
            )
        flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("overlay", str(point), "overlay", flags, options)
    finally:
        for fd in held:
            os.close(fd)


def _phantoms(merged: Path, digest: str) -> list[str]:
    """Names that overlayfs lists and does not have: whiteouts in a directory of one layer alone, which hide nothing.

    :raise Corrupt: when there are more of them than an honest image has.
    """
    found: list[str] = []
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(merged / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                try:
                    if stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
                        pending.append(path)
                except FileNotFoundError:
                    found.append(path)
        if len(found) > _MOST_PHANTOMS:
            raise Corrupt(f"image {digest} has more than {_MOST_PHANTOMS} whiteouts of nothing")
    return found


def _clear(work: Path) -> None:
    """Unmount, then remove: what is mounted shows the image library's own files (read-only)."""
    work = work.resolve()
    mounts.release(work)
    if not mounts.below(work):
        shutil.rmtree(work, ignore_errors=True)


def _publish(image: Path, path: Path) -> None:
    fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        os.fchmod(fd, 0o400)
    finally:
        os.close(fd)
    image.replace(path)
    sync_directory(path.parent)
