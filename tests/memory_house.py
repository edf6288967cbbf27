"""What the tests of memory share: instances as the keeper knows them, over drivers that really run them."""

import asyncio
import time
from collections.abc import Callable

from lamella.host.compute.driver import ComputeDriver, Machine
from lamella.host.memory.keeper import MemoryKeeper
from lamella.host.memory.ladder import HostMemory
from lamella.model.assignment import Assignment
from lamella.model.contract import Mechanism
from lamella.model.instance import Instance, InstanceSpec, InstanceStatus, Phase, Priority
from lamella.model.resource import now

MIB = 1 << 20
LIMIT = 180.0


class Resident:
    """What the keeper needs of a worker; ``events`` are those that were told, ``still`` why it was to be paused."""

    def __init__(
        self,
        driver: ComputeDriver,
        machine: Machine,
        guarantee: int | None,
        priority: Priority = Priority.NORMAL,
    ) -> None:
        spec = InstanceSpec(image="x", memory_guarantee=guarantee, priority=priority)
        instance = Instance(
            id=machine.id,
            name=machine.name,
            project="default",
            kind="instance",
            created_at=now(),
            spec=spec,
            status=InstanceStatus(phase=Phase.RUNNING),
        )
        self.id = machine.id
        self.driver = driver
        self.asked = Assignment(revision=1, instance=instance)
        self.phase = Phase.RUNNING
        self.events: list[tuple[str, str]] = []
        self.still = ""

    def remark(self, type: str, message: str) -> None:
        self.events.append((type, message))

    def hold_still(self, why: str) -> None:
        self.still = why

    @property
    def told(self) -> list[str]:
        return [type for type, _ in self.events]


async def rounds(keeper: MemoryKeeper, until: Callable[[], object], what: str) -> float:
    """Rounds as :meth:`MemoryKeeper.run` makes them, until that is true. Returns the seconds it took."""
    began = time.monotonic()
    while True:
        again = await keeper.round()
        if until():
            return time.monotonic() - began
        assert time.monotonic() - began < LIMIT, f"{what}: not within {LIMIT:g} s"
        await asyncio.sleep(again)


def plenty() -> HostMemory:
    return HostMemory(total=1 << 40, available=1 << 39)


def small(keeper: MemoryKeeper, *several: Resident, budget: int) -> HostMemory:
    """A host that has *budget* bytes for *several* together, whatever this one has."""
    host = plenty()
    taken = sum(held.resident for held in (keeper.held(one.id) for one in several) if held is not None)
    keeper.reserve = host.available + taken - budget
    return host


def value(found: list[Mechanism], name: str) -> str:
    return next(item.value for item in found if item.name == name)
