"""The pools of one host: how their drivers are made, which are open, and why one is not."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.linux.blocking import blocking
from lamella.host.storage.driver import Identified, Placed, StorageDriver
from lamella.host.storage.records import Folder
from lamella.model.errors import Conflict, LamellaError, Unavailable, Unsupported
from lamella.model.resource import Condition, now
from lamella.model.storage import Pool, PoolSpec, PoolStatus, StoragePhase

log = logging.getLogger("lamella.host.storage")

# How a pool's driver is made: called with path and options.
MakePool = Callable[[Path, dict[str, str]], StorageDriver]
DEFAULT = "default"
# A pool that does not answer must not hold up the others, in seconds.
_PATIENCE = 60.0


class KnownPool(msgspec.Struct, kw_only=True):
    """A pool that was open here: what lies at ``path`` is it only if it bears its ``identity``."""

    path: str
    identity: str


class Pools:
    """*drivers* by name, as entry points register them. A pool without a path is a directory of the home."""

    def __init__(self, home: Home, drivers: dict[str, MakePool]) -> None:
        self._home = home
        self._makers = drivers
        self._open: dict[str, tuple[StorageDriver, PoolSpec]] = {}
        self._failed: dict[str, LamellaError] = {}
        self._opening = asyncio.Lock()
        self._known = Folder(home.state / "storage" / "pools")

    async def open(self) -> None:
        """The default pool is there from the first start. When it cannot be used now, what is in other pools can."""
        try:
            await self.use(DEFAULT, PoolSpec())
        except LamellaError as error:
            log.error("pool %s: %s", DEFAULT, error)

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
                    await self._check_identity(name, path, driver)
                    status = await driver.open()
                    await self._know(name, path, driver)
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

    async def _check_identity(self, name: str, path: Path, driver: StorageDriver) -> None:
        """:raise Unavailable: when something else lies where the pool was: writing there would hide what is in it."""
        known = await blocking(self._known.read, name, KnownPool)
        if known is None or known.path != str(path) or not isinstance(driver, Identified):
            return
        if (found := await driver.identity()) != known.identity:
            what = "another pool" if found else "no pool"
            raise Unavailable(
                f"pool {name} is not at {path}: {what} is there now",
                hint="mount its filesystem, or put its directory back; it is looked for again by itself",
            )

    async def _know(self, name: str, path: Path, driver: StorageDriver) -> None:
        if isinstance(driver, Identified):
            known = KnownPool(path=str(path), identity=await driver.identity())
            if await blocking(self._known.read, name, KnownPool) != known:
                await blocking(self._known.write, name, known)

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
        """For good: another pool may have its name and its place."""
        await blocking(self._known.forget, name)
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
    def names(self) -> set[str]:
        """Those that are open, and those that were asked for and cannot be opened."""
        return {*self._open, *self._failed}

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
