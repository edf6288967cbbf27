"""Storage of one host (:class:`lamella.host.storage.wing.Storage`): pools, what is open, and the requests of control."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

from lamella.host.compute.driver import Home, MountedVolume
from lamella.host.storage.driver import StorageDriver, VolumeHandle
from lamella.host.storage.pools import MakePool, Pools
from lamella.host.storage.requests import Requests
from lamella.host.storage.wing import Attachment, Heard, Writers
from lamella.model.errors import Unsupported
from lamella.model.host import Capability
from lamella.model.storage import Pool, Volume
from lamella.model.storage_requests import AnyStorageRequest, StorageProgress

__all__ = ["MakePool", "Volumes"]

log = logging.getLogger("lamella.host.storage")


class Volumes:
    """*drivers* by name, as entry points register them. The pool ``default`` is a directory of the home."""

    def __init__(self, home: Home, drivers: dict[str, MakePool]) -> None:
        self.home = home
        self._pools = Pools(home, drivers)
        self.requests = Requests()
        self._heard: Heard | None = None
        self._writers: Writers | None = None

    async def open(self) -> list[Capability]:
        await self._pools.open()
        return []

    async def close(self) -> None:
        await self.requests.close()
        await self._pools.close()

    def use_writers(self, writers: Writers) -> None:
        self._writers = writers

    def on_event(self, heard: Heard) -> None:
        self._heard = heard

    async def use_pools(self, pools: list[Pool]) -> None:
        await self._pools.use_all(pools)

    def pool(self, name: str) -> StorageDriver:
        return self._pools.get(name)

    @property
    def pools(self) -> dict[str, StorageDriver]:
        return self._pools.opened

    async def attach(self, attachment: Attachment) -> MountedVolume:
        raise Unsupported("volumes cannot be attached yet")

    async def detach(self, user: str, volume_ids: set[str] | None = None) -> None:
        pass

    async def attached(self) -> dict[str, set[str]]:
        return {}

    def request(self, request: AnyStorageRequest) -> AsyncIterator[StorageProgress]:
        return self.requests.answer(request)

    async def export(self, volume: Volume, snapshot: str, format: str) -> AsyncIterator[bytes]:
        raise Unsupported("volumes cannot be exported yet")
        yield b""

    async def root(self, volume: Volume) -> VolumeHandle:
        return await self._pools.get(volume.spec.pool).handle(volume.id)

    @property
    def places(self) -> list[Path]:
        return []
