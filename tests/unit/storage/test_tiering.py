"""Where a volume should lie, from how it is used; and how use is added up over restarts."""

import itertools
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from lamella.control.tiering import WORK, decide
from lamella.host.storage.blocks import Counted
from lamella.host.storage.tiering import added
from lamella.model.replication import TieringPolicy, TierState, VolumeAccess

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
WEEK = TieringPolicy(hot="fast", cold="archive", after=7 * 86400)


def days(number: float) -> datetime:
    return BEGIN + timedelta(days=number)


def test_cold_after_a_week_and_hot_when_somebody_works() -> None:
    idle = VolumeAccess(since=BEGIN, last=days(1), operations=900)
    assert decide(WEEK, "fast", idle, None, days(7.9)) is None
    assert decide(WEEK, "fast", idle, None, days(8)) == "archive"
    moved = TierState(at=days(8), operations=900)
    glance = VolumeAccess(since=BEGIN, last=days(10), operations=900 + WORK - 1)
    assert decide(WEEK, "archive", glance, moved, days(10)) is None
    work = VolumeAccess(since=BEGIN, last=days(10), operations=900 + WORK)
    assert decide(WEEK, "archive", work, moved, days(10)) == "fast"


def test_what_was_moved_rests() -> None:
    work = VolumeAccess(since=BEGIN, last=days(8.1), operations=10_000)
    assert decide(WEEK, "archive", work, TierState(at=days(8)), days(8.5)) is None
    assert decide(WEEK, "archive", work, TierState(at=days(8)), days(9.1)) == "fast"
    back = TierState(at=days(9.1), operations=10_000)
    assert decide(WEEK, "fast", VolumeAccess(since=BEGIN, last=days(8.1)), back, days(16)) is None, "a move is use"


def test_one_that_lies_elsewhere_goes_to_the_hot_pool() -> None:
    assert decide(WEEK, "default", VolumeAccess(since=BEGIN), None, days(0)) == "fast"


@given(
    uses=st.lists(st.tuples(st.floats(0.01, 30), st.integers(0, 2000)), max_size=60),
    after=st.integers(3600, 30 * 86400),
)
def test_no_volume_goes_back_and_forth(uses: list[tuple[float, int]], after: int) -> None:
    policy = TieringPolicy(hot="fast", cold="archive", after=after)
    pool, state, at = "fast", None, BEGIN
    access = VolumeAccess(since=BEGIN)
    moves: list[datetime] = []
    for gap, operations in uses:
        at += timedelta(days=gap)
        access.operations += operations
        access.last = at if operations else access.last
        wanted = decide(policy, pool, access, state, at)
        if wanted is not None:
            assert wanted != pool
            pool, state = wanted, TierState(at=at, operations=access.operations)
            moves.append(at)
    rest = min(0.25 * after, 86400)
    assert all((b - a).total_seconds() >= rest for a, b in itertools.pairwise(moves))


def test_counters_that_begin_anew_lose_nothing_that_was_seen() -> None:
    kept = VolumeAccess(since=BEGIN)
    zero = Counted(bytes=0, operations=0)
    kept = added(kept, zero, Counted(bytes=4096, operations=1), days(1))
    kept = added(kept, Counted(bytes=4096, operations=1), Counted(bytes=4096, operations=1), days(2))
    assert (kept.bytes, kept.operations, kept.last) == (4096, 1, days(1))
    kept = added(kept, Counted(bytes=4096, operations=1), Counted(bytes=512, operations=1), days(3))
    assert (kept.bytes, kept.operations, kept.last) == (4608, 2, days(3))
