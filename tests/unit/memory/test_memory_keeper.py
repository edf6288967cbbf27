"""What the keeper makes of what it sees: guests that follow slowly, that report seldom, that are asked in vain."""

from typing import Any, cast

import pytest
from tests.memory_house import MIB, Resident, plenty

from lamella.host.compute.driver import ComputeDriver, Machine
from lamella.host.memory import keeper as keeping
from lamella.host.memory.driver import Held
from lamella.host.memory.keeper import CALM, PATIENCE, QUICK, MemoryKeeper
from lamella.host.memory.ladder import HostMemory
from lamella.model.errors import Internal, Unavailable
from lamella.model.instance import Phase

CEILING = 1024 * MIB


class Guest:
    """A fake driver of one machine: it has what ``held`` says, and remembers what it was asked for."""

    id = name = "one"

    def __init__(self) -> None:
        self.held = Held(held=CEILING, ceiling=CEILING, resident=CEILING, used=100 * MIB, unit="faults", balloon=True)
        self.asked: list[int] = []
        self.answers: list[bool | Exception] = []

    async def memory_held(self, id: str) -> Held:
        return self.held

    async def hold_memory(self, id: str, target: int, floor: int) -> bool:
        self.asked.append(max(target, floor))
        answer = self.answers.pop(0) if self.answers else True
        if isinstance(answer, Exception):
            raise answer
        return answer

    def says(self, **fields: Any) -> None:
        values = {name: getattr(self.held, name) for name in self.held.__struct_fields__}
        self.held = Held(**{**values, **fields})


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def monotonic(self) -> float:
        return self.at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(keeping, "time", clock)
    return clock


def house(guest: Guest, guarantee: int | None = 64 * MIB) -> tuple[Resident, MemoryKeeper]:
    one = Resident(cast("ComputeDriver", guest), cast("Machine", cast("Any", guest)), guarantee)
    return one, MemoryKeeper(lambda: [one], plenty)


async def test_a_guest_that_gives_back_slowly_is_not_said_to_ignore_what_it_was_asked(clock: Clock) -> None:
    guest = Guest()
    one, keeper = house(guest)
    for second in range(60):
        guest.says(said=second)
        await keeper.round()
        guest.says(held=max(guest.asked[-1], guest.held.held - 8 * MIB))
        clock.at += CALM
    assert one.told == [] and guest.held.held < CEILING - 400 * MIB
    # It stops on its way: that is told, but not while it is paused.
    one.phase = Phase.PAUSED
    guest.says(held=CEILING, said=60)
    for _ in range(3):
        await keeper.round()
        clock.at += PATIENCE
    assert one.told == []
    one.phase = Phase.RUNNING
    for _ in range(3):
        await keeper.round()
        clock.at += PATIENCE
    assert one.told == ["memory.ignored"]


async def test_a_guest_that_never_says_anything_is_told_of(clock: Clock) -> None:
    guest = Guest()
    one, keeper = house(guest)
    guest.says(used=None, silent="no driver", resident=0)
    keeper.reserve = plenty().available
    for _ in range(3):
        await keeper.round()
        clock.at += PATIENCE
    assert one.told == ["memory.ignored"]


@pytest.mark.parametrize(("faults", "given"), [(150, False), (900, True)])
async def test_faults_are_counted_from_one_word_of_a_guest_to_the_next(clock: Clock, faults: int, given: bool) -> None:
    guest = Guest()
    _, keeper = house(guest)
    guest.says(held=256 * MIB, used=170 * MIB, said=1)
    for _ in range(5):
        await keeper.round()
        clock.at += QUICK
    guest.says(said=2, waited=float(faults))
    await keeper.round()
    assert (guest.asked != []) is given


async def test_a_guest_that_has_what_it_was_asked_for_but_for_a_page_is_left_alone(clock: Clock) -> None:
    guest = Guest()
    _, keeper = house(guest)
    guest.says(held=256 * MIB, used=170 * MIB)
    await keeper.round()
    guest.says(held=256 * MIB + 4096, said=1)
    for _ in range(3):
        await keeper.round()
    assert guest.asked == []


async def test_what_was_taken_is_given_back_until_it_was_heard() -> None:
    guest = Guest()
    guest.answers = [Unavailable("no answer"), TimeoutError(), False, True]
    _, keeper = house(guest, guarantee=None)
    for _ in range(6):
        await keeper.round()
    assert len(guest.asked) == 4
    refusing = Guest()
    refusing.answers = [Internal("QEMU refused balloon")] * 6
    _, keeper = house(refusing, guarantee=None)
    for _ in range(6):
        await keeper.round()
    assert len(refusing.asked) == 1


async def test_a_host_that_runs_short_gives_back_what_nobody_needs_first() -> None:
    spared: list[int] = []
    available = [1 << 40]
    keeper = MemoryKeeper(
        tuple, lambda: HostMemory(total=1 << 40, available=available[0]), spare=lambda: spared.append(1)
    )
    await keeper.round()
    assert not spared
    available[0] = 1 << 30
    await keeper.round()
    assert spared
