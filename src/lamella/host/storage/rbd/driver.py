"""The driver ``rbd``: ``PoolSpec.path`` is a Ceph pool's name, a volume is an image of its id, a snapshot a snapshot of its id.

Beside volumes the pool holds ``half.OWNER.…`` and ``gone.OWNER.…`` (images that are being made or removed on the host that OWNER stands
for) and ``base.…`` (disks of images, imported once, which volumes are clones of).
An image is renamed to its id when it is whole, and loses its name first when it is deleted: what is called ``vol_…`` is whole.
Clones are of format 2 (https://docs.ceph.com/en/latest/rbd/rbd-snapshot/), so no snapshot has to be protected.
"""

import asyncio
import errno
from pathlib import Path

from lamella.host.storage import owner, qemu_io
from lamella.host.storage.driver import Base, Extent, Node, Source, VolumeHandle
from lamella.host.storage.rbd import fencing, scrubbing
from lamella.host.storage.rbd.bases import Bases
from lamella.host.storage.rbd.cluster import LONG, Cluster
from lamella.host.storage.rbd.images import Images, Info, with_growth
from lamella.model.errors import Conflict, Invalid, NotFound, Unsupported
from lamella.model.ids import is_id
from lamella.model.storage import Feature, PoolStatus, VolumeForm
from lamella.model.storage_requests import StorageFinding

DEFAULT_BLOCK_SIZE = 8 << 30
_GRAIN = 4096
_ABSENT = (errno.ENOENT,)


class RbdDriver:
    """See the module. ``features`` gains ``REDUNDANT`` and ``CHECKSUM`` when the opened pool has copies and BlueStore OSDs."""

    name = "rbd"

    def __init__(self, path: Path, options: dict[str, str] | None = None) -> None:
        self.features = frozenset(
            {
                Feature.BLOCK,
                Feature.THIN,
                Feature.SNAPSHOT,
                Feature.LIVE_SNAPSHOT,
                Feature.CLONE,
                Feature.SHRINK,
                Feature.DELTA,
                Feature.SHARED,
            }
        )
        self.cluster = Cluster(str(path), options or {})
        self._images = Images(self.cluster)
        self._bases = Bases(self._images)
        self._place: Path | None = None

    def place(self, directory: Path, mark: str) -> None:
        self._place = directory

    async def open(self) -> PoolStatus:
        self.cluster.check()
        await self.cluster.prepare(self._place)
        if self._place is not None:
            self._images.owner = await asyncio.to_thread(owner.lasting, self._place)
        status = await self.status()
        await self._sweep()
        return status

    async def _sweep(self) -> None:
        """Finish our deletions that a crash cut short, drop our half-made images and the bases that nothing stands on."""
        for name in await self._images.names():
            if self._images.ours(name):
                await self._images.discard(name)
        await self._bases.collect()

    async def close(self) -> None:
        pass

    async def status(self) -> PoolStatus:
        """Bytes of data, not of copies: what the pool holds and what it may still take (``ceph df``, MAX AVAIL)."""
        strength, status = await scrubbing.pool_status(self.cluster)
        self.features = (self.features - {Feature.REDUNDANT, Feature.CHECKSUM}) | strength
        status.features = sorted(self.features)
        return status

    async def inventory(self) -> set[str]:
        return {name for name in await self._images.names() if is_id(name)}

    async def create(
        self, id: str, form: VolumeForm, size: int, *, base: Base | None = None, source: Source | None = None
    ) -> VolumeHandle:
        self._check_id(id)
        if form is not VolumeForm.BLOCK:
            raise Unsupported(
                "an rbd pool holds block volumes only", hint="format one: filesystem ext4, or use gluster", field="form"
            )
        if size < 0:
            raise Invalid(f"a volume cannot have {size} bytes", hint="use 0 or more", field="size")
        if base is None and source is None:
            return await self._make(id, _rounded(size or DEFAULT_BLOCK_SIZE))
        found, begins = await asyncio.gather(self._images.info(id), self._begins(base, source))
        if found is not None:
            return _located(id, found.size)
        parent, least = begins
        if size and size < least:
            raise Invalid(
                f"a volume of {size} bytes cannot hold what it begins as, {least} bytes",
                hint=f"ask for {-(-least // (1 << 20))}MiB or more, or for 0 to take its size",
                field="size",
            )
        return await self._make(id, _rounded(size or least), parent, least)

    async def _begins(self, base: Base | None, source: Source | None) -> tuple[tuple[str, str], int]:
        """The image and the snapshot of it that a clone is made of, and its bytes."""
        if base is not None:
            return await self._bases.ready(base), base.size
        assert source is not None
        info = await self._images.info(source.volume, source.snapshot)
        if info is None:
            raise self._missing(source.volume, source.snapshot)
        return (source.volume, source.snapshot), info.size

    async def _make(self, id: str, size: int, parent: tuple[str, str] | None = None, begins: int = 0) -> VolumeHandle:
        """An empty image, or a clone of the snapshot *parent*, which has *begins* bytes."""
        half = self._images.half(id)
        staged = self.cluster.image(half)
        try:
            if parent is None:
                await self.cluster.rbd("create", staged, "--size", f"{size}B")
            else:
                await self.cluster.rbd("clone", "--rbd-default-clone-format", "2", self.cluster.image(*parent), staged)
                if size != begins:
                    await self.cluster.rbd("resize", staged, "--size", f"{size}B", "--no-progress")
            done = await self._images.named(half, id)
        except BaseException:
            await asyncio.shield(self._images.discard(half))
            raise
        if not done:  # it is there, or somebody else made it meanwhile
            await self._images.remove(half)
            return await self.handle(id)
        return _located(id, size)

    async def handle(self, id: str) -> VolumeHandle:
        return _located(id, (await self._info(id)).size)

    async def node(self, id: str, snapshot: str | None = None) -> Node:
        await self._info(id, snapshot)
        cluster = self.cluster
        node: Node = {
            "driver": "rbd",
            "pool": cluster.pool,
            "image": id,
            "conf": str(cluster.conf),
            "user": cluster.user,
        }
        if cluster.namespace:
            node["namespace"] = cluster.namespace
        if snapshot is not None:
            node["snapshot"] = snapshot
        return node

    async def used(self, id: str) -> int:
        await self._info(id)
        return await self._images.used(id)

    async def resize(self, id: str, size: int) -> VolumeHandle:
        now = (await self._info(id)).size
        wanted = _rounded(size)
        if wanted != now:
            image = self.cluster.image(id)
            await self.cluster.rbd(
                "resize", image, "--size", f"{wanted}B", "--allow-shrink", "--no-progress", timeout=LONG
            )
        return _located(id, wanted)

    async def resized(self, id: str, size: int) -> None:
        """The image knows its own size."""

    async def snapshot(self, id: str, snapshot: str) -> None:
        self._check_id(snapshot)
        image = self.cluster.image(id, snapshot)
        done = await self.cluster.rbd("snap", "create", "--no-progress", image, fine=(errno.EEXIST, errno.ENOENT))
        if done.code == errno.ENOENT:
            raise self._missing(id)

    async def snapshots(self, id: str) -> list[str]:
        await self._info(id)
        return await self._images.snapshots(id)

    async def drop(self, id: str, snapshot: str) -> None:
        if await self._images.info(id, snapshot) is None:
            return
        await self._nothing_stands_on(id, snapshot)
        await self.cluster.rbd(
            "snap", "rm", "--no-progress", self.cluster.image(id, snapshot), fine=_ABSENT, timeout=LONG
        )

    async def restore(self, id: str, snapshot: str) -> None:
        await self._info(id, snapshot)
        await self._unused(id)
        image = self.cluster.image(id, snapshot)
        await self.cluster.rbd("snap", "rollback", "--no-progress", image, timeout=LONG)

    async def delete(self, id: str, *, shred: bool = False) -> None:
        self._check_id(id)
        if await self._images.info(id) is None:
            return
        await self._nothing_stands_on(id, None)
        await self._unused(id)
        node, data = (await self.node(id), await self._images.data(id)) if shred else ({}, [])
        gone = self._images.gone(id)
        done = await self.cluster.rbd("rename", self.cluster.image(id), self.cluster.image(gone), fine=_ABSENT)
        if done.code == 0:
            # Under its other name: a volume that is half overwritten would be there for whoever asks after a crash.
            if data:
                await qemu_io.overwrite({**node, "image": gone}, data, 0xFF)
            await self._images.remove(gone)

    async def delta(self, id: str, since: str, until: str | None = None) -> list[Extent] | None:
        before, after = await asyncio.gather(self._info(id, since), self._info(id, until))
        return with_growth(await self._images.delta(id, since, until), before.size, after.size)

    async def check(self, *, repair: bool) -> list[StorageFinding]:
        return await self._images.check(self._bases, repair=repair)

    async def scrub(self, *, repair: bool) -> tuple[int, list[StorageFinding]]:
        """Deep scrub of all placement groups of the pool: every copy is read and compared with its checksums and the others."""
        return await scrubbing.scrub(self.cluster, repair=repair)

    async def fence(self, id: str) -> None:
        await fencing.fence(self.cluster, id)

    async def _info(self, id: str, snapshot: str | None = None) -> Info:
        self._check_id(id)
        info = await self._images.info(id, snapshot)
        if info is None:
            raise self._missing(id, snapshot)
        return info

    async def _nothing_stands_on(self, id: str, snapshot: str | None) -> None:
        names = await self._images.children(id, snapshot)
        for name in names:
            if name.startswith("gone."):
                await self._images.remove(name)
        standing = sorted(name for name in names if not name.startswith("gone."))
        if standing:
            what = f"snapshot {snapshot}" if snapshot else "its snapshots"
            raise Conflict(f"volumes stand on {what} of {id}: {', '.join(standing)}", hint="delete those first")

    async def _unused(self, id: str) -> None:
        """What died amid its work on it is waited for."""
        if users := await fencing.alive(self.cluster, id):
            raise Conflict(f"volume {id} is open by {', '.join(users)}", hint="stop what uses it")

    def _missing(self, id: str, snapshot: str | None = None) -> NotFound:
        what = f"snapshot {snapshot} of volume {id}" if snapshot else f"volume {id}"
        return NotFound(
            f"Ceph pool {self.cluster.pool} has no {what}", hint="ask the pool's inventory for what there is"
        )

    def _check_id(self, id: str) -> None:
        if not is_id(id):
            raise Invalid(f"{id!r} is not an id", hint="ids look like vol_ and 26 characters", field="id")


def _located(id: str, size: int) -> VolumeHandle:
    return VolumeHandle(id=id, form=VolumeForm.BLOCK, path=Path(), size=size)


def _rounded(size: int) -> int:
    return -(-size // _GRAIN) * _GRAIN
