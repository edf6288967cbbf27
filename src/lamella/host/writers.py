"""The instances of this host as storage sees them: who writes, and how to have them hold still."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar, runtime_checkable

from lamella.host.compute.driver import ComputeDriver, Freezes, KeepsMemory, OpensDisks, Remembered
from lamella.host.storage.driver import Layer
from lamella.model.assignment import Assignment
from lamella.model.errors import NotFound, Unsupported
from lamella.model.instance import Phase
from lamella.model.storage import VolumeForm

T = TypeVar("T")
Find = Callable[[str], Awaitable[ComputeDriver]]
# What there is to do here, with the driver of each.
Assigned = Callable[[], Iterable[tuple[Assignment, ComputeDriver]]]


@runtime_checkable
class ShowsSize(Protocol):
    """A driver whose guests do not see by themselves that a volume has grown."""

    async def resized(self, id: str, volume_id: str, size: int) -> None: ...


@runtime_checkable
class HealsDisks(Protocol):
    """A driver whose machines stand still when a disk fails or is full, and go on when it is there again."""

    async def heal(self, id: str) -> None: ...


class InstanceWriters:
    """:class:`lamella.host.storage.wing.Writers`. *find* gives the driver of an instance of this host; it raises :class:`NotFound`.
    *drivers* are all of its drivers."""

    def __init__(
        self, find: Find, assigned: Assigned, drivers: Callable[[], Iterable[ComputeDriver]] = lambda: ()
    ) -> None:
        self._find = find
        self._assigned = assigned
        self._drivers = drivers

    async def phase(self, id: str) -> Phase:
        try:
            seen = await (await self._find(id)).observe(id)
        except NotFound:
            return Phase.STOPPED
        return Phase.STOPPED if seen is None else seen.phase

    async def pause(self, id: str) -> None:
        await (await self._find(id)).pause(id)

    async def resume(self, id: str) -> None:
        await (await self._find(id)).resume(id)

    async def freeze(self, id: str, deadline: float) -> int:
        return await (await self._able(id, Freezes, "cannot have its filesystems hold still")).freeze(id, deadline)

    async def thaw(self, id: str) -> bool:
        return await (await self._able(id, Freezes, "has nothing frozen")).thaw(id)

    async def switch(self, id: str, layers: dict[str, Layer]) -> None:
        await (await self._able(id, OpensDisks, "has no disks of its own open")).switch(id, layers)

    @asynccontextmanager
    async def remember(self, id: str, memory: str) -> AsyncGenerator[Remembered]:
        driver = await self._able(id, KeepsMemory, "cannot have its memory kept")
        async with driver.remember(id, memory) as kept:
            yield kept

    async def forget(self, memory: str) -> None:
        for driver in self._drivers():
            if isinstance(driver, KeepsMemory):
                await driver.forget(memory)

    async def resized(self, id: str, volume: str, size: int) -> None:
        driver = await self._find(id)
        if isinstance(driver, ShowsSize):
            await driver.resized(id, volume, size)

    async def heal(self, id: str) -> None:
        driver = await self._find(id)
        if isinstance(driver, HealsDisks):
            await driver.heal(id)

    def own_disks(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for asked, driver in self._assigned():
            own = [*([asked.volume] if asked.volume is not None else []), *asked.disks.values()]
            pools = {volume.spec.pool for volume in own if volume.spec.form is VolumeForm.BLOCK}
            if pools and isinstance(driver, HealsDisks):
                found[asked.instance.id] = pools
        return found

    async def _able(self, id: str, protocol: type[T], cannot: str) -> T:
        driver = await self._find(id)
        if not isinstance(driver, protocol):
            raise Unsupported(f"what runs under {driver.name} {cannot}")
        return driver
