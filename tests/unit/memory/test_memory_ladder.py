"""Steps of a host that runs short, and who gives way."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.qemu.balloon import Statistics, held_of, statistics
from lamella.host.memory import ladder
from lamella.host.memory.keeper import host_memory
from lamella.host.memory.ladder import Candidate, HostMemory, Step
from lamella.host.memory.lines import with_memory
from lamella.model.contract import Mechanism
from lamella.model.instance import Priority

MIB = 1 << 20


def host(percent: float) -> HostMemory:
    return HostMemory(total=1000 * MIB, available=int(percent * 10 * MIB))


def test_the_mildest_comes_first_and_it_ends_with_some_more_than_it_began() -> None:
    steps: list[Step] = []
    before = Step.CALM
    for percent in (50, 9, 12, 14, 16, 2.5, 4, 5, 1, 2, 20):
        before = ladder.step(host(percent), before)
        steps.append(before)
    assert [step.name for step in steps] == [
        *("CALM", "RECLAIM", "RECLAIM", "RECLAIM", "CALM", "PAUSE", "PAUSE", "RECLAIM", "PAUSE", "PAUSE", "CALM")
    ]
    assert ladder.step(host(1), Step.PAUSE, kills=True) is Step.KILL


@given(st.floats(0, 100), st.sampled_from(Step), st.booleans())
def test_standing_still_it_stays_on_one_step(percent: float, before: Step, kills: bool) -> None:
    once = ladder.step(host(percent), before, kills=kills)
    assert ladder.step(host(percent), once, kills=kills) is once
    assert kills or once <= Step.PAUSE


def test_only_who_said_low_gives_way_the_largest_first() -> None:
    def one(id: str, priority: Priority, resident: int, *, paused: bool = False) -> Candidate:
        return Candidate(id=id, priority=priority, resident=resident, paused=paused)

    several = [
        one("a", Priority.NORMAL, 900),
        one("b", Priority.LOW, 100),
        one("c", Priority.LOW, 200, paused=True),
        one("d", Priority.HIGH, 900),
    ]
    assert ladder.next_to_pause(several) == "b"
    assert ladder.next_to_kill(several) == "c"
    assert ladder.next_to_pause([one("a", Priority.NORMAL, 9)]) is None


def test_what_the_kernel_says_of_a_host(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       24684032 kB\nMemFree: 1 kB\nMemAvailable:   21729280 kB\n")
    assert host_memory(tmp_path / "meminfo") == HostMemory(total=24684032 << 10, available=21729280 << 10)
    (tmp_path / "meminfo").write_text("MemTotal: 8000 kB\nMemAvailable: 1000 kB\nHugetlb:      6144 kB\n")
    assert host_memory(tmp_path / "meminfo") == HostMemory(total=1856 << 10, available=1000 << 10)


@pytest.mark.parametrize(
    ("answer", "available"),
    [
        ({"stats": {"stat-available-memory": 5 * MIB, "stat-major-faults": 7}, "last-update": 100}, 5 * MIB),
        ({"stats": {"stat-available-memory": (1 << 64) - 1, "stat-free-memory": 3 * MIB}, "last-update": 100}, 3 * MIB),
        ({"stats": {"stat-available-memory": -1, "stat-free-memory": -1}, "last-update": 100}, None),
        ({"stats": {}, "last-update": 100}, None),
        ("nonsense", None),
    ],
)
def test_a_guest_may_say_anything(answer: object, available: int | None) -> None:
    assert statistics(answer).available == available


def test_a_guest_that_says_nothing_new_is_not_believed() -> None:
    said = Statistics(at=100, available=60 * MIB)

    def used(said: Statistics, now: float, *, paused: bool = False) -> int | None:
        seen = held_of(said, held=100 * MIB, ceiling=128 * MIB, resident=0, paused=paused, now=now)
        assert (seen.used is None) == bool(seen.silent)
        return seen.used

    assert used(said, 101.5) == 40 * MIB
    assert used(said, 120) is None
    assert used(said, 101, paused=True) is None
    assert used(Statistics(), 101) is None
    assert used(Statistics(at=100, available=1 << 50), 101) == 0


def test_a_machine_s_limit_is_not_what_its_balloon_leaves_it() -> None:
    seen = held_of(Statistics(at=1, available=0), held=64 * MIB, ceiling=128 * MIB, resident=0, paused=False, now=1)
    limit = Mechanism(name="limit.memory", value="64MiB", evidence="QMP")
    lines = {line.name: line for line in with_memory([limit], seen, 64 * MIB, floor=64 * MIB, follows=False)}
    assert lines["limit.memory"].value == "128MiB, of which it has 64MiB now"
    assert not lines["memory taken back"].in_force
    assert lines["guarantee.memory"].in_force and "64MiB at least" in lines["guarantee.memory"].value
    (low,) = [
        line for line in with_memory([], seen, 0, floor=96 * MIB, follows=True) if line.name == "guarantee.memory"
    ]
    assert not low.in_force
    # A group that uses little may use its ceiling at once.
    idle = msgspec.structs.replace(seen, balloon=False, held=1 * MIB)
    (kept,) = [
        line for line in with_memory([], idle, 0, floor=96 * MIB, follows=True) if line.name == "guarantee.memory"
    ]
    assert kept.in_force and "96MiB at least" in kept.value
