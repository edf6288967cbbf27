"""The memory controller, held to what it promises for any instances, any host, and whatever a guest says."""

import itertools

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.host.memory.controller import GRAIN, MIB, Memory, Share, decide, poured
from lamella.model.instance import Priority

HUGE = 1 << 70
sizes = st.integers(0, 64 * 1024).map(lambda count: count * MIB)
claims = st.one_of(st.none(), sizes, st.integers(-HUGE, HUGE))


@st.composite
def crowds(draw: st.DrawFn, most: int = 6) -> list[Share]:
    """Instances that say anything at all of themselves."""
    shares: list[Share] = []
    for number in range(draw(st.integers(1, most))):
        ceiling = draw(sizes)
        shares.append(
            Share(
                id=str(number),
                floor=draw(st.integers(0, ceiling)),
                ceiling=ceiling,
                held=draw(sizes),
                used=draw(claims),
                waits=draw(st.booleans()),
                balloon=draw(st.booleans()),
                priority=draw(st.sampled_from(Priority)),
            )
        )
    return shares


memories = st.builds(Memory, target=sizes, rests_until=st.floats(0, 1e6))


@given(crowds(), sizes, st.booleans(), st.dictionaries(st.sampled_from([*map(str, range(6))]), memories))
def test_nobody_is_below_its_floor_nor_above_its_ceiling_and_all_fit(
    shares: list[Share], budget: int, press: bool, before: dict[str, Memory]
) -> None:
    chosen = decide(shares, budget, before, 10.0, press=press)
    for share in shares:
        assert share.floor <= chosen[share.id].target <= share.ceiling
        if not share.balloon and share.id not in before:
            assert chosen[share.id].target <= max(share.floor, share.held)
    # What was not given back yet counts as well; only floors are given beyond what there is.
    given_out = sum(max(share.held, chosen[share.id].target) for share in shares)
    assert given_out <= max(budget, sum(max(share.held, share.floor) for share in shares))
    floors = sum(share.floor for share in shares)
    settled = decide([_follows(share, chosen) for share in shares], budget, chosen, 11.0, press=press)
    assert sum(memory.target for memory in settled.values()) <= max(budget, floors) or _unmoved(settled, chosen)


def _follows(share: Share, chosen: dict[str, Memory]) -> Share:
    return Share(
        id=share.id,
        floor=share.floor,
        ceiling=share.ceiling,
        held=chosen[share.id].target,
        used=share.used,
        balloon=share.balloon,
        priority=share.priority,
    )


def _unmoved(after: dict[str, Memory], before: dict[str, Memory]) -> bool:
    return all(after[id].target <= before[id].target for id in after)


@given(crowds(), sizes, claims, st.booleans())
def test_what_one_guest_says_takes_nothing_that_another_was_promised(
    shares: list[Share], budget: int, lie: int | None, waits: bool
) -> None:
    liar, others = shares[0], shares[1:]
    lying = Share(
        id=liar.id,
        floor=liar.floor,
        ceiling=liar.ceiling,
        held=liar.held,
        used=lie,
        waits=waits,
        priority=liar.priority,
    )
    chosen = decide([lying, *others], budget, {}, 1.0)
    floors = sum(share.floor for share in shares)
    if sum(share.held for share in shares) + floors <= budget:
        beyond = chosen[liar.id].target - liar.floor
        assert beyond <= max(0, budget - floors)
    for share in others:
        assert chosen[share.id].target >= share.floor


class _Guest:
    """A guest that uses what it uses and follows its balloon, a part of the way a round."""

    def __init__(self, share: Share, use: int, follows: float) -> None:
        self.share, self.use, self.follows = share, min(use, share.ceiling), follows
        self.held = share.ceiling
        self.targets: list[int] = []

    def seen(self) -> Share:
        return Share(
            id=self.share.id,
            floor=self.share.floor,
            ceiling=self.share.ceiling,
            held=self.held,
            used=self.use,
            priority=self.share.priority,
        )

    def move(self, target: int) -> None:
        self.targets.append(target)
        gap = target - self.held
        # A balloon takes free pages alone.
        self.held = max(self.held + (gap if abs(gap) < GRAIN else int(gap * self.follows)), min(self.use, self.held))

    @property
    def turns(self) -> int:
        """How often it was sent the other way."""
        ways = [b > a for a, b in itertools.pairwise(self.targets) if a != b]
        return sum(1 for a, b in itertools.pairwise(ways) if a != b)


@settings(max_examples=150, deadline=None)
@given(crowds(), st.data())
def test_what_is_used_evenly_is_shared_without_coming_and_going(shares: list[Share], data: st.DataObject) -> None:
    guests = [_Guest(share, data.draw(sizes), data.draw(st.sampled_from([0.3, 0.6, 1.0]))) for share in shares]
    floors = sum(share.floor for share in shares)
    budget = data.draw(st.integers(floors // MIB, floors // MIB + 128 * 1024)) * MIB
    before: dict[str, Memory] = {}
    for round in range(120):
        before = decide([guest.seen() for guest in guests], budget, before, float(round))
        for guest in guests:
            guest.move(before[guest.share.id].target)
    for guest in guests:
        assert len(set(guest.targets[-30:])) == 1, "it never comes to rest"
        assert guest.turns <= 3, guest.targets
    needs = sum(max(guest.share.floor, guest.use) for guest in guests)
    if needs + len(guests) * 64 * MIB + sum(guest.use for guest in guests) // 4 <= budget:
        assert all(guest.held >= guest.use for guest in guests), "there is enough for all"


def test_who_comes_short_is_relieved_in_the_round_after_its_neighbour_gave_back() -> None:
    idle = Share(id="idle", floor=256 * MIB, ceiling=1024 * MIB, held=1024 * MIB, used=100 * MIB)
    short = Share(id="short", floor=256 * MIB, ceiling=1024 * MIB, held=256 * MIB, used=250 * MIB)
    first = decide([idle, short], 1280 * MIB, {}, 0.0)
    assert first["short"].target == short.held, "there is nothing to give yet"
    assert first["idle"].target < 900 * MIB
    given_back = Share(id="idle", floor=idle.floor, ceiling=idle.ceiling, held=first["idle"].target, used=idle.used)
    second = decide([given_back, short], 1280 * MIB, first, 1.0)
    assert second["short"].target >= 314 * MIB


containers = st.builds(
    lambda floor, room, held: Share(
        id="", floor=floor, ceiling=floor + room, held=min(held, floor + room), balloon=False
    ),
    *(sizes, sizes, sizes),
)


@given(crowds(1), sizes, st.lists(containers, max_size=8), st.booleans())
def test_containers_beside_it_take_nothing_from_a_machine_but_what_they_hold(
    machines: list[Share], budget: int, beside: list[Share], press: bool
) -> None:
    machine = msgspec.structs.replace(machines[0], balloon=True, priority=Priority.NORMAL)
    several = [msgspec.structs.replace(one, id=f"c{number}", used=one.held) for number, one in enumerate(beside)]
    theirs = sum(max(one.floor, one.held) for one in several)
    alone = decide([machine], budget, {}, 1.0, press=press)
    among = decide([machine, *several], budget + theirs, {}, 1.0, press=press)
    assert among[machine.id].target >= alone[machine.id].target


def test_a_hundred_idle_containers_take_nothing_from_a_machine_on_a_host_with_free_memory() -> None:
    machine = Share(id="m", floor=256 * MIB, ceiling=1024 * MIB, held=512 * MIB, used=505 * MIB)
    idle = [
        Share(id=str(number), floor=4 * MIB, ceiling=512 * MIB, held=5 * MIB, used=5 * MIB, balloon=False)
        for number in range(100)
    ]
    free = 800 * MIB
    alone = decide([machine], free + machine.held, {}, 0.0)
    among = decide([machine, *idle], free + machine.held + 100 * 5 * MIB, {}, 0.0)
    assert among["m"].target == alone["m"].target > machine.held
    assert {among[one.id].target for one in idle} == {5 * MIB}


def test_cold_cache_of_a_container_goes_before_a_machine_comes_short() -> None:
    machine = Share(id="m", floor=0, ceiling=1024 * MIB, held=512 * MIB, used=505 * MIB)
    cache = Share(id="c", floor=0, ceiling=4096 * MIB, held=2048 * MIB, used=100 * MIB, balloon=False)
    chosen = decide([machine, cache], 2560 * MIB, {}, 0.0)
    assert chosen["m"].target == machine.held and chosen["c"].target < cache.held


def test_the_higher_priority_is_served_first_and_the_lower_keeps_its_floor() -> None:
    high = Share(id="h", floor=0, ceiling=1024 * MIB, held=0, used=1024 * MIB, priority=Priority.HIGH)
    low = Share(id="l", floor=100 * MIB, ceiling=1024 * MIB, held=0, used=1024 * MIB, priority=Priority.LOW)
    chosen = decide([low, high], 1000 * MIB, {}, 0.0)
    assert (chosen["h"].target, chosen["l"].target) == (900 * MIB, 100 * MIB)


def test_one_that_waited_is_left_alone_for_longer_each_time() -> None:
    before: dict[str, Memory] = {}
    rests: list[float] = []
    at = 0.0
    for _ in range(10):
        share = Share(id="a", floor=0, ceiling=1024 * MIB, held=512 * MIB, used=100 * MIB, waits=True)
        before = decide([share], 4096 * MIB, before, at)
        rests.append(before["a"].rests_until - at)
        at = before["a"].rests_until
    assert rests[:3] == [10, 20, 40] and rests[-1] == 600


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 1 << 40), max_size=8), st.integers(-10, 1 << 40))
def test_pouring_is_even_and_wastes_nothing(wants: dict[str, int], amount: int) -> None:
    given_out = poured(wants, amount)
    assert all(0 <= given_out[id] <= wants[id] for id in wants)
    assert sum(given_out.values()) == min(sum(wants.values()), max(0, amount)) or not wants
    short = [given_out[id] for id in wants if given_out[id] < wants[id]]
    if short:
        assert max(given_out.values()) - min(short) <= 1
