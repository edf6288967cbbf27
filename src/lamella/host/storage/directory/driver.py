"""A pool that is a directory of any local filesystem: volumes as directories, and as files whose layers are chained.

    <path>/volumes/<id>/volume.json           what it is: its layers, and which snapshot is which
    <path>/volumes/<id>/data/                 a filesystem volume
    <path>/volumes/<id>/snapshots/<id>/       its snapshots
    <path>/volumes/<id>/disk.raw, disk.qcow2  the first layer of a block volume; qcow2 over an image's disk or a snapshot
    <path>/volumes/<id>/layer-<…>.<format>    the others
    <path>/volumes/<id>/sums.json             what a scrub has found the layers that are written no more to be
    <path>/.identity                          a number of its own: what else lies at <path> is not this pool
    <path>/.staging, <path>/.trash            half-made and half-deleted ones, cleared when the pool is opened

A volume appears and disappears by one rename, and changes by one rename of its record.
"""

import asyncio

from lamella.host.storage.directory.pool import FilePool, room_of
from lamella.host.storage.driver import Layer
from lamella.model.resource import Condition
from lamella.model.storage import Feature, PoolStatus


class DirectoryDriver(FilePool):
    """The built-in driver of the pool ``default``; it has no options."""

    name = "directory"
    features = frozenset(
        {
            Feature.BLOCK,
            Feature.FILESYSTEM,
            Feature.THIN,
            Feature.SNAPSHOT,
            Feature.CLONE,
            Feature.SHRINK,
            Feature.DELTA,
        }
    )

    async def status(self) -> PoolStatus:
        """Capacity and free bytes as an unprivileged user would find them (statvfs(3): f_bavail).

        :raise Unavailable: when the directory does not answer.
        """
        await asyncio.to_thread(self.ground.require)
        capacity, free = await asyncio.to_thread(room_of, self.path)
        return PoolStatus(
            capacity=capacity,
            free=free,
            features=sorted(self.features),
            conditions=[
                Condition(
                    type="SizeEnforced",
                    status=False,
                    reason="NoQuota",
                    message="the directory driver bounds block volumes only; a filesystem volume may fill the pool",
                )
            ],
        )

    async def identity(self) -> str:
        """:class:`~lamella.host.storage.driver.Identified`."""
        return await asyncio.to_thread(self.ground.identity)

    async def begin_layer(self, id: str, snapshot: str) -> Layer:
        """:raise NoRoom: when the pool is full."""
        async with self.held(id):
            await asyncio.to_thread(self.block, id)
            with self.ground.room(f"begin a layer of volume {id}"):
                return await self.blocks.begin(id, snapshot)

    async def chain(self, id: str) -> list[Layer]:
        record = await asyncio.to_thread(self.block, id)
        return (await asyncio.to_thread(self.blocks.layers, id, record))[0]

    async def mergeable(self, id: str, snapshot: str) -> tuple[Layer, Layer] | None:
        async with self.held(id):
            await self.blocks.let_go(id, snapshot)
            pair = await self.blocks.mergeable(id)
            if pair is not None:
                self.merging[id, snapshot] = pair[0].path.name, pair[1].path.name
            return pair

    async def tidy(self, id: str) -> bool:
        async with self.held(id):
            await asyncio.to_thread(self.block, id)
            with self.ground.room(f"merge layers of volume {id}"):
                return await self.blocks.tidy(id)

    async def merged(self, id: str, snapshot: str) -> None:
        async with self.held(id):
            pair = self.merging.pop((id, snapshot), None)
            if pair is not None:
                await self.blocks.merged(id, pair)
