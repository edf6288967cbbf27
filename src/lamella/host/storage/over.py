"""A pool that is a directory of a filesystem which the layer mounts: from a server of GlusterFS or NFS.

The mount is ours, everything in it is :class:`DirectoryDriver`'s. A daemon that starts again finds its mount and keeps it; one whose
server's client died (``Transport endpoint is not connected``) is taken away and made again. A pool is used by one host at a
time: the directory's lock, which the server keeps, says so; another host takes over when the first has let go or is gone.
"""

import asyncio
import contextlib
import errno
import os
from pathlib import Path

from lamella.host.linux import mounts, syscalls
from lamella.host.storage.directory import DirectoryDriver
from lamella.host.storage.driver import Base, Extent, Layer, Node, Source, VolumeHandle
from lamella.model.errors import Conflict, Invalid, LamellaError, Unavailable
from lamella.model.storage import Feature, PoolStatus, VolumeForm
from lamella.model.storage_requests import StorageFinding

_ANSWER = 20.0
_DIRECTORY = "lamella"
_TRIES = 10
_PAUSE = 0.3


class MountedDirectory:
    """``PoolSpec.path`` is ``server:/what``. Options: ``directory`` in it (default ``lamella``), ``mount`` (where it is mounted, by the
    operator or by us; default a place in the layer's home), and the subclass's own."""

    name = ""
    # As /proc/self/mountinfo says it.
    kinds: frozenset[str] = frozenset()
    known: frozenset[str] = frozenset()
    hint = ""

    def __init__(self, path: Path, options: dict[str, str] | None = None) -> None:
        self.source = str(path)
        self.options = dict(options or {})
        self.mark = ""
        self.point: Path | None = Path(self.options["mount"]) if "mount" in self.options else None
        self._inner: DirectoryDriver | None = None
        # Of an unopened one; what it can do is known when the filesystem is there.
        self.features = frozenset(DirectoryDriver(Path("/nonexistent")).features) | {Feature.SHARED}

    def place(self, directory: Path, mark: str) -> None:
        self.mark = mark
        if "mount" not in self.options:
            self.point = directory / "mount"

    async def mount(self, server: str, what: str, point: Path) -> None:
        """:raise Unavailable: when that cannot be."""
        raise NotImplementedError

    async def strengths(self, point: Path) -> frozenset[Feature]:
        """What the mounted filesystem adds to a directory."""
        return frozenset()

    async def open(self) -> PoolStatus:
        server, what, point, directory = self._parsed()
        if not await self._mounted(point):
            await self._let_go()
            await asyncio.to_thread(point.mkdir, mode=0o700, parents=True, exist_ok=True)
            await self.mount(server, what, point)
        if self._inner is None:
            self._inner = DirectoryDriver(point / directory)
        status = await self._taken(self._inner)
        self.features = self._inner.features | {Feature.SHARED} | await self.strengths(point)
        status.features = sorted(self.features)
        return status

    async def _taken(self, inner: DirectoryDriver) -> PoolStatus:
        """The server lets go of a dead daemon's lock some moments after it has died."""
        for _ in range(_TRIES):
            try:
                return await inner.open()
            except Unavailable:
                await asyncio.sleep(_PAUSE)
        return await inner.open()

    def _parsed(self) -> tuple[str, str, Path, Path]:
        unknown = sorted(set(self.options) - {"directory", "mount"} - self.known)
        if unknown:
            raise Invalid(f"a {self.name} pool has no option {unknown[0]}", field="options")
        server, _, what = self.source.rpartition(":/")
        if not server or not what or server.startswith("-"):
            raise Invalid(f"{self.source!r} is no path of a {self.name} pool", hint=self.hint, field="path")
        directory = Path(self.options.get("directory", _DIRECTORY))
        if directory.is_absolute() or ".." in directory.parts:
            raise Invalid(f"directory {directory} is not in the volume", hint="name one in it", field="options")
        if self.point is None:
            raise Invalid("nobody said where to mount it", hint="set the option mount", field="options")
        return server, "/" + what, self.point, directory

    async def _mounted(self, point: Path) -> bool:
        """Whether it is there and answers; a dead one is taken away.

        :raise Conflict: when something else is mounted there. :raise Unavailable: when the server does not answer.
        """
        entry = next((entry for entry in mounts.below(point) if entry.point == str(point)), None)
        if entry is None:
            return False
        if entry.kind not in self.kinds or entry.source.rstrip("/") != self.source.rstrip("/"):
            raise Conflict(f"{entry.source} is mounted at {point}", hint="unmount it, or choose another place")
        try:
            async with asyncio.timeout(_ANSWER):
                await asyncio.to_thread(os.statvfs, point)
        except TimeoutError as error:
            raise Unavailable(f"{self.source} does not answer", hint="see its servers") from error
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ESTALE, errno.EIO):
                raise Unavailable(f"{self.source} cannot be read: {error.strerror}") from error
            await asyncio.to_thread(syscalls.umount, str(point))
            return False
        return True

    async def close(self) -> None:
        """What is in use stays mounted; what nobody uses is unmounted, unless the operator chose the place."""
        if self._inner is None:
            return
        await self._let_go()
        if self.point is not None and "mount" not in self.options:
            await asyncio.to_thread(_leave, self.point)

    async def _let_go(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            with contextlib.suppress(OSError):  # what is dead cannot be closed in order
                await inner.close()

    @property
    def inner(self) -> DirectoryDriver:
        """:raise Unavailable: when the pool is not open."""
        if self._inner is None:
            raise Unavailable(f"{self.source} is not mounted", hint="open the pool")
        return self._inner

    async def status(self) -> PoolStatus:
        status = await self.inner.status()
        status.features = sorted(self.features)
        return status

    async def inventory(self) -> set[str]:
        return await self.inner.inventory()

    async def create(
        self, id: str, form: VolumeForm, size: int, *, base: Base | None = None, source: Source | None = None
    ) -> VolumeHandle:
        return await self.inner.create(id, form, size, base=base, source=source)

    async def handle(self, id: str) -> VolumeHandle:
        return await self.inner.handle(id)

    async def node(self, id: str, snapshot: str | None = None) -> Node:
        return await self.inner.node(id, snapshot)

    async def used(self, id: str) -> int:
        return await self.inner.used(id)

    async def resize(self, id: str, size: int) -> VolumeHandle:
        return await self.inner.resize(id, size)

    async def resized(self, id: str, size: int) -> None:
        await self.inner.resized(id, size)

    async def snapshot(self, id: str, snapshot: str) -> None:
        await self.inner.snapshot(id, snapshot)

    async def snapshots(self, id: str) -> list[str]:
        return await self.inner.snapshots(id)

    async def drop(self, id: str, snapshot: str) -> None:
        await self.inner.drop(id, snapshot)

    async def restore(self, id: str, snapshot: str) -> None:
        await self.inner.restore(id, snapshot)

    async def delete(self, id: str, *, shred: bool = False) -> None:
        await self.inner.delete(id, shred=shred)

    async def delta(self, id: str, since: str, until: str | None = None) -> list[Extent] | None:
        return await self.inner.delta(id, since, until)

    async def check(self, *, repair: bool) -> list[StorageFinding]:
        return await self.inner.check(repair=repair)

    async def scrub(self, *, repair: bool) -> tuple[int, list[StorageFinding]]:
        return await self.inner.scrub(repair=repair)

    async def begin_layer(self, id: str, snapshot: str) -> Layer:
        return await self.inner.begin_layer(id, snapshot)

    async def chain(self, id: str) -> list[Layer]:
        return await self.inner.chain(id)

    async def mergeable(self, id: str, snapshot: str) -> tuple[Layer, Layer] | None:
        return await self.inner.mergeable(id, snapshot)

    async def merged(self, id: str, snapshot: str) -> None:
        await self.inner.merged(id, snapshot)

    async def tidy(self, id: str) -> bool:
        return await self.inner.tidy(id)


def _leave(point: Path) -> None:
    try:
        syscalls.umount(str(point), flags=0)
    except (OSError, LamellaError):
        return
