"""Disks of images in a Ceph pool: each is imported once as ``base.DIGEST`` with the snapshot ``ready``, and cloned from then on."""

import asyncio
import errno
import hashlib
from typing import TYPE_CHECKING

from lamella.host.storage.driver import Base
from lamella.host.storage.rbd.cluster import LONG
from lamella.model.errors import Unavailable

if TYPE_CHECKING:
    from lamella.host.storage.rbd.images import Images

READY = "ready"
_PREFIX = "base."


class Bases:
    def __init__(self, images: "Images") -> None:
        self._images = images
        self._importing = asyncio.Lock()

    async def ready(self, base: Base) -> tuple[str, str]:
        """Image and snapshot that hold *base*, imported if they are not there.

        :raise Unavailable: when the disk cannot be read or is not what it was.
        """
        name = await asyncio.to_thread(_name, base)
        async with self._importing:
            if await self._images.info(name, READY) is None:
                await self._import(base, name)
        return name, READY

    async def _import(self, base: Base, name: str) -> None:
        cluster = self._images.cluster
        fresh = self._images.half(name)
        try:
            await cluster.rbd("import", "--no-progress", str(base.path), cluster.image(fresh), timeout=LONG)
            await cluster.rbd("snap", "create", "--no-progress", cluster.image(fresh, READY))
            done = await self._images.named(fresh, name)
        except BaseException:
            await asyncio.shield(self._images.discard(fresh))
            raise
        if not done:  # another host was faster
            await self._images.remove(fresh)

    async def unused(self) -> list[str]:
        """Those that no volume stands on."""
        bases = [name for name in await self._images.names() if name.startswith(_PREFIX)]
        return [name for name in bases if not await self._images.children(name, READY)]

    async def collect(self) -> None:
        for name in await self.unused():
            await self.drop(name)

    async def drop(self, name: str) -> None:
        cluster = self._images.cluster
        gone = self._images.gone(name)
        async with self._importing:
            if not await self._images.children(name, READY):
                await cluster.rbd("rename", cluster.image(name), cluster.image(gone), fine=(errno.ENOENT,))
                await self._images.remove(gone)


def _name(base: Base) -> str:
    try:
        status = base.path.stat()
    except OSError as error:
        raise Unavailable(
            f"the image's disk {base.path} cannot be read: {error.strerror}", hint="fetch or build the image again"
        ) from error
    if status.st_size != base.size:
        raise Unavailable(
            f"the image's disk {base.path} has {status.st_size} bytes, not {base.size}",
            hint="fetch or build the image again",
        )
    identity = f"{base.path}\0{base.size}\0{status.st_mtime_ns}"
    return _PREFIX + hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:32]
