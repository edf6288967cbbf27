"""Storage of one host (:class:`lamella.host.storage.wing.Storage`): pools, what is open, and the requests of control."""

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home, MountedVolume
from lamella.host.storage.driver import Placed, StorageDriver, VolumeHandle
from lamella.host.storage.wing import Attachment
from lamella.model.errors import LamellaError, Unavailable, Unsupported
from lamella.model.host import Capability
from lamella.model.storage import Pool, PoolSpec, Volume
from lamella.model.storage_requests import AnyStorageRequest, StorageProgress

log = logging.getLogger("lamella.host.storage")

# How a pool's driver is made: called with path and options.
MakePool = Callable[[Path, dict[str, str]], StorageDriver]
DEFAULT = "default"


class Volumes:
    """*drivers* by name, as entry points register them. The pool ``default`` is a directory of the home."""

    def __init__(self, home: Home, drivers: dict[str, MakePool]) -> None:
        self.home = home
        self._drivers = drivers
        self._pools: dict[str, StorageDriver] = {}

    async def open(self) -> list[Capability]:
        await self._open_pool(DEFAULT, PoolSpec())
        return []

    async def close(self) -> None:
        for pool in self._pools.values():
            await pool.close()

    async def use_pools(self, pools: list[Pool]) -> None:
        for pool in pools:
            if pool.name not in self._pools:
                try:
                    await self._open_pool(pool.name, pool.spec)
                except LamellaError as error:
                    log.error("pool %s: %s", pool.name, error)

    async def _open_pool(self, name: str, spec: PoolSpec) -> None:
        make = self._drivers.get(spec.driver)
        if make is None:
            raise Unsupported(f"this host has no storage driver {spec.driver}", field="spec.driver")
        path = Path(spec.path) if spec.path else self.home.state / "pools" / name
        driver = make(path, spec.options)
        if isinstance(driver, Placed):
            driver.place(self.home.state / "pools" / name, self.home.mark)
        await driver.open()
        self._pools[name] = driver

    def pool(self, name: str) -> StorageDriver:
        if name not in self._pools:
            raise Unavailable(f"pool {name} is not open on this host", hint="lamella pool ls says why")
        return self._pools[name]

    @property
    def pools(self) -> dict[str, StorageDriver]:
        return dict(self._pools)

    async def attach(self, attachment: Attachment) -> MountedVolume:
        raise Unsupported("volumes cannot be attached yet")

    async def detach(self, user: str, volume_ids: set[str] | None = None) -> None:
        pass

    async def attached(self) -> dict[str, set[str]]:
        return {}

    async def request(self, request: AnyStorageRequest) -> AsyncIterator[StorageProgress]:
        yield StorageProgress(error_code="unsupported", error=f"no {type(request).__name__} yet")

    async def export(self, volume: Volume, snapshot: str, format: str) -> AsyncIterator[bytes]:
        raise Unsupported("volumes cannot be exported yet")
        yield b""

    async def root(self, volume: Volume) -> VolumeHandle:
        return await self.pool(volume.spec.pool).handle(volume.id)

    @property
    def places(self) -> list[Path]:
        return []


def encoded(result: object) -> StorageProgress:
    """The last line of a request that went well."""
    return StorageProgress(result=msgspec.Raw(msgspec.json.encode(result)))
