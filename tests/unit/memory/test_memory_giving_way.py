"""A host that runs short has instances of low priority stand still, one after another, and lets them go on when there is more."""

from typing import Any, cast

import pytest
from tests.memory_house import MIB, Resident

from lamella.host.compute.driver import ComputeDriver, Machine
from lamella.host.memory import giving_way
from lamella.host.memory.giving_way import GivingWay
from lamella.host.memory.ladder import HostMemory, Step
from lamella.model.instance import Phase, Priority
from lamella.model.resource import now
from lamella.model.usage import Usage


class Resting:
    """A fake driver, which only says what its instances take and remembers whom it was told to kill."""

    def __init__(self) -> None:
        self.killed: list[str] = []

    async def usage(self, id: str) -> Usage:
        return Usage(at=now(), memory={"large": 200, "small": 100}.get(id, 300) * MIB)

    async def kill(self, id: str, signal: int) -> None:
        assert signal == 9
        self.killed.append(id)


class Named:
    def __init__(self, id: str) -> None:
        self.id = self.name = id


def host(percent: float) -> HostMemory:
    return HostMemory(total=1000 * MIB, available=int(percent * 10 * MIB))


async def test_low_ones_are_paused_resumed_and_ended_only_when_that_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving_way, "PAUSE", 0.0)
    driver = Resting()

    def one(id: str, priority: Priority, guarantee: int | None = None) -> Resident:
        return Resident(cast("ComputeDriver", driver), cast("Machine", cast("Any", Named(id))), guarantee, priority)

    small, large = one("small", Priority.LOW), one("large", Priority.LOW)
    normal = one("normal", Priority.NORMAL, guarantee=MIB)
    several = [small, large, normal]
    way = GivingWay()
    await way.climb(host(50), several)
    assert way.step is Step.CALM and not normal.told
    await way.climb(host(8), several)
    assert normal.told == ["memory.pressure"] and not small.told and not large.still
    await way.climb(host(2), several)
    assert "paused until there is more" in large.still and not small.still
    large.phase = Phase.PAUSED
    await way.climb(host(2), several)
    small.phase = Phase.PAUSED
    assert small.still and not normal.still
    # All that may give way does: without the operator's word nobody is ended.
    await way.climb(host(1), several)
    assert driver.killed == []
    way.kills = True
    await way.climb(host(1), several)
    assert driver.killed == ["large"] and large.told == ["memory.killed"]
    await way.climb(host(40), several)
    assert (small.still, large.still, way.step) == ("", "", Step.CALM)
    assert normal.told == ["memory.pressure"]
