"""The pools of one host: how their drivers are made, which are open, and why one is not."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from lamella.host.compute.driver import Home
from lamella.host.storage.driver import Placed, StorageDriver
from lamella.model.errors import Conflict, LamellaError, Unavailable, Unsupported
from lamella.model.resource import Condition, now
from lamella.model.storage import Pool, PoolSpec, PoolStatus, StoragePhase

log = logging.getLogger("lamella.host.storage")

# How a pool's driver is made: called with path and options.
MakePool = Callable[[Path, dict[str, str]], StorageDriver]
DEFAULT = "default"
# A pool that does not answer must not hold up the others, in seconds.
_PATIENCE = 60.0


class Pools:
    """*drivers* by name, as entry points register them. A pool without a path is a directory of the home."""

    def __init__(self, home: Home, drivers: dict[str, MakePool]) -> None:
        self._home = home
        self._makers = drivers
        self._open: dict[str, tuple[StorageDriver, PoolSpec]] = {}
        self._failed: dict[str, LamellaError] = {}
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        """The default pool is there from the first start."""
        await self.use(DEFAULT, PoolSpec())

    async def close(self) -> None:
        for driver, _ in self._open.values():
            try:
                await driver.close()
            except LamellaError as error:
                log.warning("%s", error)
        self._open = {}

    async def use(self, name: str, spec: PoolSpec) -> PoolStatus:
        """Open it, or say how it is when it is open.

        :raise Unsupported: when this host has no such driver. :raise Unavailable: when it cannot be used now.
        :raise Conflict: when it is open with another driver, path or options.
        """
        async with self._opening:
            if name in self._open:
                driver, known = self._open[name]
                if (known.driver, known.path, known.options) != (spec.driver, spec.path, spec.options) and spec.path:
                    raise Conflict(f"pool {name} is open as something else on this host", hint="remove that one first")
                self._open[name] = (driver, spec)
                return self._said(driver, await driver.status())
            make = self._makers.get(spec.driver)
            if make is None:
                raise Unsupported(f"this host has no storage driver {spec.driver}", field="spec.driver")
            # What a driver's path means is its own affair; only an empty one is ours to choose.
            path = Path(spec.path) if spec.path else self._home.state / "pools" / name
            driver = make(path, spec.options)
            if isinstance(driver, Placed):
                driver.place(self._home.state / "pools" / name, self._home.mark)
            try:
                async with asyncio.timeout(_PATIENCE):
                    status = await driver.open()
            except LamellaError as error:
                self._failed[name] = error
                raise
            except TimeoutError:
                error = Unavailable(f"pool {name} does not answer", hint="see to its storage; it is tried again")
                self._failed[name] = error
                raise error from None
            self._open[name] = (driver, spec)
            self._failed.pop(name, None)
            return self._said(driver, status)

    async def use_all(self, pools: list[Pool]) -> None:
        """Open what is not open; what cannot be is logged once for each reason, and tried again next time."""
        for pool in pools:
            if pool.name in self._open or pool.deleted_at is not None:
                continue
            before = self._failed.get(pool.name)
            try:
                await self.use(pool.name, pool.spec)
            except LamellaError as error:
                self._failed[pool.name] = error
                if before is None or before.message != error.message:
                    log.error("pool %s: %s", pool.name, error)

    async def let_go(self, name: str) -> None:
        entry = self._open.pop(name, None)
        self._failed.pop(name, None)
        if entry is not None:
            await entry[0].close()

    def get(self, name: str) -> StorageDriver:
        """:raise Unavailable: when no pool of that name is open here; the sentence says why."""
        if name in self._open:
            return self._open[name][0]
        error = self._failed.get(name)
        why = f": {error.message}" if error is not None else ""
        raise Unavailable(f"pool {name} is not open on this host{why}", hint="lamella pool ls says more")

    def spec(self, name: str) -> PoolSpec:
        return self._open[name][1] if name in self._open else PoolSpec()

    @property
    def opened(self) -> dict[str, StorageDriver]:
        return {name: driver for name, (driver, _) in self._open.items()}

    async def status(self, name: str) -> PoolStatus:
        """How it is now; one that does not answer is ``failed``, with the reason as a condition. Never raises."""
        try:
            driver = self.get(name)
            async with asyncio.timeout(_PATIENCE):
                return self._said(driver, await driver.status())
        except (LamellaError, TimeoutError) as error:
            message = error.message if isinstance(error, LamellaError) else f"pool {name} does not answer"
            return unusable(message)

    def _said(self, driver: StorageDriver, status: PoolStatus) -> PoolStatus:
        status.features = sorted(feature.value for feature in driver.features)
        return status


def unusable(message: str) -> PoolStatus:
    """The status of a pool that cannot be used."""
    reason = Condition(type="Ready", status=False, reason="unavailable", message=message, since=now())
    return PoolStatus(phase=StoragePhase.FAILED, conditions=[reason])
