"""Volumes mounted on the host, for containers and modules: a file of the storage process, a loop device over it, an ext4 mount over that.

What is mounted is read from the kernel's table each time, so a daemon that was killed finds everything again. Mounts are ``nodev``, in
a directory that root alone can enter; set-user-ID programs stay what they are, because the container's own user namespace bounds them.
``discard`` gives blocks of deleted files back to the pool.
"""

import errno
import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from lamella.host.compute.driver import Home
from lamella.host.linux import mounts, syscalls
from lamella.host.linux.blocking import blocking
from lamella.host.storage import ext4, loop
from lamella.model.errors import Corrupt, Unavailable

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
_OPTIONS = "errors=remount-ro,discard"
# How long whatever still holds a mount may take to let go, in seconds.
_PATIENCE = 30.0


class Mounts:
    """All of one home: ``run/storage/mounts/<volume id>``."""

    def __init__(self, home: Home) -> None:
        self._place = home.run / "storage" / "mounts"
        self.tools = ext4.Ext4(home.mark)

    def point(self, id: str) -> Path:
        return self._place / id

    async def mount(self, id: str, file: Path, *, read_only: bool, fully: bool = False) -> Path:
        """Mount the filesystem in *file*, checked first if it was not unmounted, and grown to the size of the file. Mounted already is
        fine. *fully* looks at all of it first, as at what came from elsewhere.

        :raise Corrupt: when there is no ext4 filesystem, or a damaged one. :raise Unavailable: when it cannot be mounted.
        """
        if await blocking(self._mounted_over, id, file):
            return self.point(id)
        await blocking(self._release, id)
        seen = await blocking(ext4.read, file)
        if seen is None:
            raise Corrupt(
                f"volume {id} holds no ext4 filesystem",
                hint="create it with --filesystem ext4, or attach it to a machine as a disk",
            )
        await self.tidy(file, fully=fully)
        await blocking(self._mount, id, file, read_only)
        return self.point(id)

    async def tidy(self, file: Path, *, fully: bool = False) -> None:
        """The filesystem in *file*, if there is one, is consistent and as large as the file. Nobody uses it.

        :raise Corrupt: when a person has to mend it.
        """
        seen = await blocking(ext4.read, file)
        if seen is None:
            return
        small = await blocking(_smaller_than, seen, file)
        if fully or small or not seen.clean:
            await self.tools.check(file, fully=fully or small)
        if small:
            await self.tools.grow(file)

    async def grow(self, id: str, file: Path) -> None:
        """Let the device and the mounted filesystem be as large as the file.

        :raise Unavailable: when the kernel does not let us (it wants CAP_SYS_RESOURCE): then it grows when it is mounted next.
        """
        device = await blocking(self.device, id)
        if device is None:
            return
        # It remembers the file's size for a while.
        await blocking(syscalls.size_now, str(file))
        await blocking(loop.refresh, device)
        seen = await blocking(ext4.read, file)
        if seen is not None and await blocking(_smaller_than, seen, file):
            await self.tools.grow(device)

    async def unmount(self, id: str) -> None:
        """Written out and let go of, mount and loop device. Not mounted is fine.

        :raise Unavailable: when something still uses it after some seconds.
        """
        await blocking(self._release, id)

    def mounted(self) -> set[str]:
        """Ids of what is mounted here."""
        return {Path(entry.point).name for entry in mounts.below(self._place) if entry.point != str(self._place)}

    def device(self, id: str) -> Path | None:
        """Its loop device."""
        found = [entry for entry in mounts.below(self.point(id)) if entry.point == str(self.point(id))]
        return Path(found[0].source) if found else None

    def write_out(self, id: str) -> None:
        """What was written so far is in the volume: a freeze after it is short."""
        descriptor = os.open(self.point(id), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(descriptor)
        finally:
            os.close(descriptor)

    def freeze(self, id: str) -> None:
        """Write everything out and let no write begin until :meth:`thaw`. :raise OSError: when the kernel refuses."""
        self._ioctl(id, _FIFREEZE)

    def thaw(self, id: str) -> bool:
        """Whether it stood still until now. Not frozen is fine."""
        try:
            self._ioctl(id, _FITHAW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return False
            raise
        return True

    def _ioctl(self, id: str, what: int) -> None:
        descriptor = os.open(self.point(id), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, what, 0)
        finally:
            os.close(descriptor)

    def _mounted_over(self, id: str, file: Path) -> bool:
        """Whether it is mounted, and over this very file: one of a storage process that is gone is dead, whatever its name."""
        device = self.device(id)
        if device is None:
            return False
        try:
            info = file.stat()
        except OSError:
            return False
        return loop.backing_of(device) == (info.st_dev, info.st_ino)

    def _mount(self, id: str, file: Path, read_only: bool) -> None:
        point = self.point(id)
        self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
        point.mkdir(mode=0o700, exist_ok=True)
        device, keeper = loop.attach(file)
        try:
            flags = syscalls.MS_NODEV | (syscalls.MS_RDONLY if read_only else 0)
            syscalls.mount(str(device), str(point), "ext4", flags, _OPTIONS)
        except OSError as error:
            raise Unavailable(
                f"volume {id} cannot be mounted: {error.strerror}", hint="the kernel's log says more (dmesg)"
            ) from error
        finally:
            os.close(keeper)

    def _release(self, id: str) -> None:
        point = self.point(id)
        until = time.monotonic() + _PATIENCE
        while (device := self.device(id)) is not None:
            below = loop.backing_of(device)
            with suppress(OSError):
                self.thaw(id)
            try:
                syscalls.umount(str(point), syscalls.UMOUNT_NOFOLLOW)
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > until:
                    raise Unavailable(
                        f"volume {id} is still in use on this host: {error.strerror}",
                        hint=f"fuser -vm {point} names what uses it",
                    ) from error
                time.sleep(0.05)
                continue
            if below is not None and not loop.wait_cleared(device, below, _PATIENCE):
                raise Unavailable(
                    f"volume {id} is still mounted in another mount namespace",
                    hint="end what has it; then it is closed",
                )
        with suppress(OSError):
            point.rmdir()


def _smaller_than(seen: ext4.Superblock, file: Path) -> bool:
    # A filesystem is whole blocks, and a group of less than a few is left out.
    return syscalls.size_now(str(file)) - seen.size >= 1 << 20
