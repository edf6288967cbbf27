"""Storage of one host (:class:`lamella.host.storage.wing.Storage`): the kinds of work put together, and the order in which they wake."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path

from lamella.host.compute.driver import Home, MountedVolume
from lamella.host.linux.blocking import many_threads
from lamella.host.storage import resting
from lamella.host.storage.attaching import Attaching
from lamella.host.storage.backup.backups import Backups
from lamella.host.storage.blocks import BlockDaemon
from lamella.host.storage.carrying import Carrying
from lamella.host.storage.changing import Changing
from lamella.host.storage.checking import Checking
from lamella.host.storage.creating import Creating
from lamella.host.storage.driver import StorageDriver, VolumeHandle
from lamella.host.storage.guard import Guard
from lamella.host.storage.healing import Healing
from lamella.host.storage.keys import KeyRing
from lamella.host.storage.opened import OpenTable
from lamella.host.storage.parts import Parts
from lamella.host.storage.pooling import Pooling
from lamella.host.storage.pools import MakePool, Pools
from lamella.host.storage.process.daemon import QemuStorageDaemon
from lamella.host.storage.records import Records
from lamella.host.storage.requests import Requests
from lamella.host.storage.snapshots import Snapshots
from lamella.host.storage.stacks import Stacks
from lamella.host.storage.wing import Attachment, Heard, Writers
from lamella.model.errors import LamellaError
from lamella.model.host import Capability
from lamella.model.storage import Pool, PoolStatus, Volume
from lamella.model.storage_requests import AnyStorageRequest, StorageProgress

__all__ = ["MakePool", "Volumes"]

log = logging.getLogger("lamella.host.storage")


class Volumes:
    """*drivers* by name, as entry points register them. The pool ``default`` is a directory of the home.

    ``parts`` is what other kinds of work (moves, backups) are built on: each registers what it answers at ``parts.requests``.
    """

    def __init__(self, home: Home, drivers: dict[str, MakePool], daemon: BlockDaemon | None = None) -> None:
        self.home = home
        pools, records = Pools(home, drivers), Records(home)
        self.parts = Parts(
            home=home,
            pools=pools,
            daemon=daemon or QemuStorageDaemon(home, self._key_of),
            stacks=Stacks(pools, KeyRing(home), records),
            records=records,
            opened=OpenTable(records),
            requests=Requests(),
        )
        self.attaching = Attaching(self.parts)
        creating = Creating(self.parts)
        self._snapshots = Snapshots(self.parts, self.attaching.mounts)
        Changing(self.parts, self.attaching, creating)
        Checking(self.parts, self.attaching)
        self._pooling = Pooling(self.parts)
        self.carrying = Carrying(self.parts, creating, self._snapshots)
        self._healing = Healing(self.parts, self.attaching)
        self._guard = Guard(self.parts, self._healing.roomy)
        self._backups = Backups(self.parts, self._snapshots)
        self._tasks: set[asyncio.Task[None]] = set()
        self.parts.daemon.on_event(self._daemon_said)

    async def open(self) -> list[Capability]:
        """Adopt what is open. The first capability says whether block volumes can be, and why not."""
        many_threads()
        # First: the storage process may have to be brought back, and asks for keys.
        self.parts.opened.load()
        reason = await self.parts.daemon.open()
        await self.parts.pools.open()
        await self.carrying.open()
        await self.carrying.adopt()
        await self.attaching.adopt()
        await self._backups.open()
        self._guard.start()
        # It may have to ask instances, which are adopted after storage.
        self._do(self._snapshots.recover())
        self._healing.restarted()
        await self.carrying.start()
        return [Capability(name="storage.process", available=not reason, reason=reason)]

    async def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._healing.close()
        await self.carrying.close()
        await self.parts.requests.close()
        await self._backups.close()
        await self.parts.stalls.close()
        await self._guard.close()
        await self.parts.daemon.close()
        await self.parts.pools.close()

    def use_writers(self, writers: Writers) -> None:
        self.parts.writers = writers

    def on_event(self, heard: Heard) -> None:
        self.parts.heard = heard

    async def use_pools(self, pools: list[Pool]) -> None:
        await self.parts.pools.use_all(pools)
        await self.carrying.adopt()
        await self.attaching.adopt_more()

    def pool(self, name: str) -> StorageDriver:
        return self.parts.pools.get(name)

    @property
    def pools(self) -> dict[str, StorageDriver]:
        return self.parts.pools.opened

    @property
    def pool_names(self) -> set[str]:
        return self.parts.pools.names

    async def pool_status(self, name: str) -> PoolStatus:
        return await self._pooling.status(name)

    async def attach(self, attachment: Attachment) -> MountedVolume:
        pool = attachment.volume.spec.pool
        mounted = await self.parts.stalls.bounded([pool], self.attaching.attach(attachment))
        self._guard.look_now()
        return mounted

    async def detach(self, user: str, volume_ids: set[str] | None = None) -> None:
        open = self.parts.opened.all
        pools = {
            open[id].volume.spec.pool for id in self.parts.opened.of(user) if volume_ids is None or id in volume_ids
        }
        await self.parts.stalls.bounded(pools, self.attaching.detach(user, volume_ids))

    def rest(self, volumes: list[Volume]) -> None:
        self._do(resting.tidy(self.parts, volumes))

    async def attached(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for id, record in self.parts.opened.all.items():
            for user in record.users:
                found.setdefault(user, set()).add(id)
        return found

    async def teardown(self) -> None:
        """:meth:`~lamella.host.storage.wing.Storage.teardown`."""
        await self.attaching.close_all()
        await self.parts.daemon.end()

    def request(self, request: AnyStorageRequest) -> AsyncIterator[StorageProgress]:
        return self.parts.requests.answer(request)

    async def export(self, volume: Volume, snapshot: str, format: str) -> AsyncIterator[bytes]:
        async for piece in self.carrying.transfer.export(volume, snapshot, format):
            yield piece

    async def root(self, volume: Volume) -> VolumeHandle:
        return await self.parts.pools.get(volume.spec.pool).handle(volume.id)

    @property
    def places(self) -> list[Path]:
        return [self.home.run / "storage"]

    async def _key_of(self, id: str) -> bytes:
        """The key of an open volume, for a storage process that is started again; empty when it is locked away."""
        record = self.parts.opened.get(id)
        if record is None:
            return b""
        try:
            return await self.parts.stacks.key(record.volume)
        except LamellaError as error:
            log.warning("volume %s: %s", id, error)
            return b""

    def _daemon_said(self, type: str, id: str, message: str) -> None:
        self.parts.tell(type, id, message)
        self._guard.look_now()
        if type == "storage.restarted":
            self._healing.restarted()
            for open in self.parts.opened.all:
                self._do(self.attaching.reopened(open))

    def _do(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _logged(work: Coroutine[None, None, None]) -> None:
    try:
        await work
    except LamellaError as error:
        log.error("%s", error)
