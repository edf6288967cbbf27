"""The namespaces of routers: each is held by a file that it is bound to, so that it stays when the daemon goes."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from lamella.host.compute.driver import Home
from lamella.host.linux import syscalls
from lamella.host.network.namespace import Seat
from lamella.model.ids import is_id

_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h


class Spaces:
    """Those below *directory*, each called by the id of its router."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @staticmethod
    def of(home: Home) -> "Spaces":
        """Those of one layer."""
        return Spaces(home.run / "network" / "routers")

    def path(self, router: str) -> Path:
        return self._directory / router

    def ids(self) -> set[str]:
        """Of the routers that have a file here, held or not."""
        try:
            return {path.name for path in self._directory.iterdir() if is_id(path.name)}
        except FileNotFoundError:
            return set()

    def open(self, router: str) -> int | None:
        """A descriptor of its namespace, which belongs to the caller; ``None`` when there is none."""
        try:
            descriptor = os.open(self.path(router), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with suppress(OSError):
            if fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == syscalls.CLONE_NEWNET:
                return descriptor
        # A file that nothing is bound to: a daemon was ended before it could, or the mount is gone with its room.
        os.close(descriptor)
        return None

    def make(self, seat: Seat, router: str) -> int:
        """A new namespace, made in the thread of *seat*; a descriptor of it, which belongs to the caller.

        :raise OSError: when the kernel refuses.
        """
        path = self.path(router)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        syscalls.unshare(syscalls.CLONE_NEWNET)
        try:
            syscalls.mount("/proc/thread-self/ns/net", str(path), None, syscalls.MS_BIND)
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            syscalls.setns(seat.home, syscalls.CLONE_NEWNET)

    def remove(self, router: str) -> None:
        """Let go of it; it ends when nobody is in it. Gone already is fine."""
        with suppress(OSError):
            syscalls.umount(str(self.path(router)))
        self.path(router).unlink(missing_ok=True)
