"""Rings against a plain list of what was put into them."""

from hypothesis import given
from hypothesis import strategies as st

from lamella.host.measure.rings import FIELDS, MINUTES, SECONDS, History, Ring, Slot

# Whole numbers, so that 32 bit floats hold them as they are.
AMOUNT = st.integers(0, 1000).map(float)
STEPS = st.lists(st.tuples(st.integers(0, 12), AMOUNT, AMOUNT), max_size=60)


@given(STEPS, st.integers(1, 9), st.integers(0, 30), st.integers(0, 30))
def test_a_ring_is_the_newest_slots_and_nothing_else(
    steps: list[tuple[int, float, float]], size: int, back: int, length: int
) -> None:
    ring, kept, number = Ring(size), dict[int, list[tuple[float, float]]](), 0
    for ahead, cpu, memory in steps:
        number += ahead
        ring.add(number, Slot(seconds=1.0, cpu=cpu, memory=memory))
        kept.setdefault(number, []).append((cpu, memory))
    newest = number if steps else -1
    first = newest - back
    seen = ring.over(first, first + length)
    within = [
        pair for at, pairs in kept.items() if max(first, newest - size + 1) <= at <= first + length for pair in pairs
    ]
    assert seen.seconds == len(within)
    assert seen.cpu == sum(cpu for cpu, _ in within)
    assert seen.memory == max((memory for _, memory in within), default=0.0)


def test_what_comes_too_late_is_left_out() -> None:
    ring = Ring(4)
    ring.add(7, Slot(seconds=1.0))
    ring.add(6, Slot(seconds=1.0))
    assert ring.over(0, 9).seconds == 1.0


def test_a_day_is_kept_by_the_minute_in_bounded_space() -> None:
    history = History()
    day = 24 * 3600
    for at in range(0, 2 * day, 30):
        history.add(float(at), Slot(seconds=30.0, cpu=1.0))
    end = 2 * day - 1.0
    assert history.window(day, end).seconds == day
    assert history.window(900, end).seconds == 900
    assert history.window(60, end).cpu == 2.0
    assert history.window(60, end + 300).seconds == 0, "a gap is a gap"
    assert 4 * len(FIELDS) * (SECONDS + MINUTES) < 256 << 10
