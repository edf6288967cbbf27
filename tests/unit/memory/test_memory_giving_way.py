"""A host that runs short has instances of low priority stand still, one after another, and lets them go on when there is more."""

from pathlib import Path
from typing import Any, cast

import pytest
from tests.memory_house import MIB, Resident

from lamella.host.compute.driver import ComputeDriver, Machine
from lamella.host.memory import giving_way
from lamella.host.memory.giving_way import GivingWay
from lamella.host.memory.ladder import HostMemory, Step
from lamella.model.instance import Phase, Priority


class Resting:
    """A fake driver, which only remembers whom it was told to kill."""

    def __init__(self) -> None:
        self.killed: list[str] = []

    async def kill(self, id: str, signal: int) -> None:
        assert signal == 9
        self.killed.append(id)


class Named:
    def __init__(self, id: str) -> None:
        self.id = self.name = id


def taken(id: str) -> int:
    return {"large": 200, "small": 100}.get(id, 300) * MIB


def house(id: str, priority: Priority, guarantee: int | None = None, driver: Resting | None = None) -> Resident:
    fake = cast("ComputeDriver", driver or Resting())
    return Resident(fake, cast("Machine", cast("Any", Named(id))), guarantee, priority)


def host(percent: float) -> HostMemory:
    return HostMemory(total=1000 * MIB, available=int(percent * 10 * MIB))


async def test_low_ones_are_paused_resumed_and_ended_only_when_that_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving_way, "PAUSE", 0.0)
    driver = Resting()
    small, large = house("small", Priority.LOW, driver=driver), house("large", Priority.LOW, driver=driver)
    normal = house("normal", Priority.NORMAL, MIB, driver)
    several = [small, large, normal]
    way = GivingWay(taken)
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


async def test_one_that_cannot_be_paused_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving_way, "PAUSE", 0.0)
    small, large = house("small", Priority.LOW), house("large", Priority.LOW)
    way = GivingWay(taken)
    await way.climb(host(2), [small, large])
    assert large.still and not small.still
    # It runs on.
    await way.climb(host(2), [small, large])
    assert small.still


async def test_one_whose_priority_is_raised_goes_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving_way, "PAUSE", 0.0)
    large = house("large", Priority.LOW)
    way = GivingWay(taken)
    await way.climb(host(2), [large])
    assert large.still
    large.phase = Phase.PAUSED
    large.asked.instance.spec.priority = Priority.NORMAL
    await way.climb(host(2), [large])
    assert not large.still and way.step is Step.PAUSE


async def test_nobody_is_asked_again_what_it_takes_before_the_pause_is_over() -> None:
    asked: list[str] = []

    def counted(id: str) -> int:
        asked.append(id)
        return taken(id)

    way = GivingWay(counted)
    large = house("large", Priority.LOW)
    large.phase = Phase.PAUSED
    small = house("small", Priority.LOW)
    for _ in range(3):
        await way.climb(host(2), [large, small])
    assert asked == ["small"]


async def test_who_stands_still_does_for_the_next_daemon_too(tmp_path: Path) -> None:
    file = tmp_path / "held-still.json"
    before = GivingWay(taken, file)
    await before.climb(host(2), [house("large", Priority.LOW), house("small", Priority.LOW)])

    def found(way: GivingWay) -> tuple[Resident, Resident]:
        large, small = house("large", Priority.LOW), house("small", Priority.LOW)
        way.adopt(large)
        way.adopt(small)
        return large, small

    after = GivingWay(taken, file)
    large, small = found(after)
    assert large.still and not small.still
    # It is not over yet: that is when there is half as much again as when it began.
    large.phase = Phase.PAUSED
    await after.climb(host(4), [large])
    assert large.still
    await after.climb(host(40), [large])
    assert not large.still
    assert not any(one.still for one in found(GivingWay(taken, file)))
    file.write_text("{half")
    assert GivingWay(taken, file).step is Step.CALM


async def test_copies_that_wait_are_told_first_and_once() -> None:
    waiting, builder, running = (house(id, Priority.NORMAL) for id in ("waiting", "builder", "running"))
    for one in (waiting, builder):
        one.phase = Phase.READY
    waiting.asked.instance.spec.template = running.asked.instance.spec.template = "py"
    way = GivingWay(taken)
    for _ in range(2):
        await way.climb(host(8), [waiting, builder, running])
    assert (waiting.told, builder.told, running.told) == (["memory.pressure"], [], [])
