"""Verdicts: what is promised and what is got, second by second, from counters to words and events."""

from datetime import UTC, datetime
from itertools import pairwise

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lamella.host.linux.pressure import Stall
from lamella.host.measure.alarms import State, step
from lamella.host.measure.counters import Counters, links, parse_v1, parse_v2
from lamella.host.measure.judging import Finding, judge, lines
from lamella.host.measure.promise import LONGEST, Promise, between
from lamella.host.measure.rings import History, Slot
from lamella.model.judgement import Verdict

GUARANTEE, CEILING = ("cpu", True), ("cpu", False)
SHARE = st.floats(0, 4, allow_nan=False)
PART = st.floats(0, 1, allow_nan=False)


def counted(promise: Promise, seconds: list[tuple[float, float, float]], *, waits: bool = True) -> Slot:
    """The window over *seconds* of (used, waited, throttled), all waiting being for others."""
    history, at, used, waited, throttled = History(), 100.0, 5.0, 7.0, 1.0

    def reading() -> Counters:
        stall = Stall(waited, waited) if waits else None
        return Counters(at=at, used=used, throttled=throttled, cpu_waits=stall, memory_waits=stall, memory=1 << 20)

    before = reading()
    for some, wait, throttle in seconds:
        at, used, waited, throttled = at + 1, used + some, waited + wait, throttled + throttle
        after = reading()
        slot = between(before, after, promise)
        assert slot is not None
        history.add(at, slot)
        before = after
    return history.window(900, at)


@given(st.floats(0.05, 2), st.lists(st.tuples(SHARE, PART), min_size=10, max_size=60))
def test_who_gets_its_guarantee_is_never_told_broken(guarantee: float, seconds: list[tuple[float, float]]) -> None:
    """Whatever it waits for: each second it used its guarantee, or nobody in it waited."""
    given = [(used, wait, 0.0) if used >= guarantee else (used, 0.0, 0.0) for used, wait in seconds]
    promise = Promise(cpu_guarantee=guarantee)
    assert judge(counted(promise, given), promise)[GUARANTEE].verdict is Verdict.KEPT


@given(st.floats(0.1, 1), st.integers(10, 60), st.floats(0, 0.5))
def test_who_wants_all_and_gets_less_is_told_broken(guarantee: float, length: int, part: float) -> None:
    promise = Promise(cpu_guarantee=guarantee)
    found = judge(counted(promise, [(guarantee * part, 1.0, 0.0)] * length), promise)[GUARANTEE]
    assert found.verdict is Verdict.BROKEN


@given(st.lists(st.tuples(PART, PART), min_size=10, max_size=60), st.floats(0, 1), st.floats(0, 1))
def test_less_got_is_never_a_better_verdict(seconds: list[tuple[float, float]], more: float, less: float) -> None:
    order = [Verdict.KEPT, Verdict.AT_RISK, Verdict.BROKEN]
    promise = Promise(cpu_guarantee=1.0)
    more, less = max(more, less), min(more, less)
    good, bad = (
        judge(counted(promise, [(used * part, 1.0, 0.0) for used, _ in seconds]), promise)[GUARANTEE].verdict
        for part in (more, less)
    )
    assert order.index(good) <= order.index(bad)


# A tenth of a second of one processor: how many of its threads are there, and whether somebody else has the processor.
TENTH = tuple[int, bool]
# A second: its tenths, of each processor.
SECOND = list[list[TENTH]]


def busy(threads: st.SearchStrategy[int], taken: st.SearchStrategy[bool], most: int = 4) -> st.SearchStrategy[SECOND]:
    tenth = st.tuples(threads, taken)
    return st.integers(1, most).flatmap(
        lambda cpus: st.lists(st.lists(tenth, min_size=cpus, max_size=cpus), min_size=10, max_size=10)
    )


def pressed(promise: Promise, second: SECOND, *, full_counted: bool = True) -> Finding:
    """The verdict after twenty such seconds, as the kernel counts them: of every processor, weighed by how long it is wanted."""
    used, some, full, weight = 0.0, 0.0, 0.0, 0.0
    for cpu in zip(*second, strict=True):
        wanted = sum(0.1 for threads, _ in cpu if threads)
        used += sum(0.1 for threads, taken in cpu if threads and not taken)
        some += wanted * sum(0.1 for threads, taken in cpu if threads and (taken or threads > 1))
        full += wanted * sum(0.1 for threads, taken in cpu if threads and taken)
        weight += wanted
    history = History()
    for number in range(20):
        before, after = (
            Counters(
                at=float(at),
                used=at * used,
                cpu_waits=Stall(at * some / (weight or 1), at * full / (weight or 1) if full_counted else None),
            )
            for at in (number, number + 1)
        )
        slot = between(before, after, promise)
        assert slot is not None
        history.add(after.at, slot)
    return judge(history.window(60, 20.0), promise)[GUARANTEE]


@given(busy(st.integers(0, 4), st.just(False)), st.floats(0.05, 4))
def test_who_waits_behind_its_own_threads_alone_misses_nothing(second: SECOND, guarantee: float) -> None:
    assert pressed(Promise(cpu_guarantee=guarantee), second).verdict is Verdict.KEPT
    if guarantee <= 1:
        old = pressed(Promise(cpu_guarantee=guarantee), second, full_counted=False)
        assert old.verdict is Verdict.KEPT


@given(busy(st.integers(0, 3), st.booleans(), most=1), st.floats(0.01, 1))
def test_who_has_its_guarantee_of_the_time_in_which_it_wants_anything_misses_nothing(
    second: SECOND, part: float
) -> None:
    wanted = [taken for [(threads, taken)] in second if threads]
    got = wanted.count(False) / len(wanted) if wanted else 1.0
    assume(got > 0)
    assert pressed(Promise(cpu_guarantee=got * part), second).verdict is Verdict.KEPT


@given(busy(st.integers(1, 3), st.booleans()), st.floats(0.5, 4))
def test_who_always_wants_more_and_is_kept_from_it_is_told_broken(second: SECOND, guarantee: float) -> None:
    used = sum(0.1 for tenth in second for _, taken in tenth if not taken)
    cpus = len(second[0])
    assume(used < 0.8 * min(guarantee, cpus))
    assert pressed(Promise(cpu_guarantee=guarantee), second).verdict is Verdict.BROKEN


@given(busy(st.integers(2, 3), st.booleans(), most=1), st.floats(0.5, 1))
def test_several_threads_that_starve_are_told_broken_by_an_old_kernel_too(second: SECOND, guarantee: float) -> None:
    used = sum(0.1 for [(_, taken)] in second if not taken)
    assume(used < 0.9 * guarantee)
    assert pressed(Promise(cpu_guarantee=guarantee), second, full_counted=False).verdict is Verdict.BROKEN


def test_who_waits_for_its_own_ceiling_misses_nothing() -> None:
    promise = Promise(cpu_guarantee=1.0, cpu_ceiling=1.0)
    seen = counted(promise, [(0.3, 0.2, 0.6)] * 20)
    assert judge(seen, promise)[GUARANTEE].verdict is Verdict.KEPT


def test_the_waking_of_an_idle_instance_is_no_breach() -> None:
    promise = Promise(cpu_guarantee=1.0)
    assert judge(counted(promise, [(0.001, 0.003, 0.0)] * 60), promise)[GUARANTEE].verdict is Verdict.KEPT


@given(st.lists(st.tuples(SHARE, PART, PART), max_size=40), st.booleans())
def test_what_is_not_known_is_never_kept(seconds: list[tuple[float, float, float]], waits: bool) -> None:
    promise = Promise(cpu_guarantee=1.0, cpu_ceiling=2.0, memory_floor=1 << 30, memory_ceiling=1 << 31)
    found = judge(counted(promise, seconds, waits=waits), promise)
    assert set(found) == set(lines(promise))
    if len(seconds) < 10:
        assert {each.verdict for each in found.values()} == {Verdict.NOT_MEASURED}
    elif not waits:
        assert found[GUARANTEE].verdict is Verdict.NOT_MEASURED
        assert found["memory", True].verdict is Verdict.NOT_MEASURED


@given(st.floats(0.1, 2), st.floats(0, 3))
def test_a_ceiling_is_broken_by_what_is_used_above_it(ceiling: float, part: float) -> None:
    promise = Promise(cpu_ceiling=ceiling)
    verdict = judge(counted(promise, [(ceiling * part, 0.0, 0.0)] * 20), promise)[CEILING].verdict
    if part <= 1:
        assert verdict is Verdict.KEPT
    if part >= 1.06:
        assert verdict is Verdict.BROKEN


def test_a_machine_is_held_to_the_ceiling_of_its_group_and_not_judged_without() -> None:
    promise = Promise(cpu_ceiling=1.0, memory_ceiling=1 << 20, exact=False)
    found = judge(counted(promise, [(1.5, 0.0, 0.0)] * 20), promise)
    assert {each.verdict for each in found.values()} == {Verdict.NOT_MEASURED}


def reading(at: float, *, memory: int = 9, oom_kills: int = 0, full: int = 0) -> Counters:
    waits = Stall(0.0, 0.0)
    return Counters(
        at=at,
        used=at,
        memory_waits=waits,
        cpu_waits=waits,
        memory_limit=1 << 30,
        memory=memory,
        oom_kills=oom_kills,
        full=full,
    )


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        ({"oom_kills": 1, "full": 1}, Verdict.KEPT),
        ({"oom_kills": 1, "full": 0}, Verdict.BROKEN),
        ({"memory": 9}, Verdict.KEPT),
    ],
)
def test_a_process_that_the_host_killed_breaks_the_floor_its_own_limit_does_not(
    after: dict[str, int], verdict: Verdict
) -> None:
    promise = Promise(memory_floor=1 << 20)
    slot = between(reading(1.0), reading(2.0, **after), promise)
    assert slot is not None
    history = History()
    for at in range(20):
        history.add(float(at), slot)
    assert judge(history.window(60, 19.0), promise)["memory", True].verdict is verdict


def test_who_reached_its_limit_in_the_second_before_was_killed_by_it() -> None:
    promise = Promise(memory_floor=1 << 20)
    earlier, before, after = reading(1.0), reading(2.0, full=1), reading(3.0, full=1, oom_kills=1)
    slot = between(before, after, promise, earlier)
    assert slot is not None
    assert (slot.kills, slot.outside) == (1.0, 0.0)
    slot = between(before, after, promise, reading(1.0, full=1))
    assert slot is not None
    assert slot.outside == 1.0


@given(st.integers(0, 1 << 30), st.integers(0, 1 << 30))
def test_who_was_at_its_limit_was_killed_by_it_though_nobody_counted_that(first: int, second: int) -> None:
    before, after = reading(2.0), reading(3.0, oom_kills=1)
    before, after = msgspec.structs.replace(before, peak=first), msgspec.structs.replace(after, peak=second)
    slot = between(before, after, Promise(memory_floor=1 << 20), reading(1.0))
    assert slot is not None
    assert slot.outside == (max(first, second) <= (1 << 30) - (128 << 10))


@given(st.lists(st.floats(0, 2), min_size=10, max_size=60))
def test_a_memory_ceiling_is_broken_by_what_stays_above_it(parts: list[float]) -> None:
    ceiling = 1 << 30
    promise, history = Promise(memory_ceiling=ceiling), History()
    for number, part in enumerate(parts):
        slot = between(reading(float(number)), reading(number + 1.0, memory=int(ceiling * part)), promise)
        assert slot is not None
        history.add(number + 1.0, slot)
    over = sum(int(ceiling * part) > ceiling * 1.02 for part in parts) / len(parts)
    verdict = judge(history.window(900, float(len(parts))), promise)["memory", False].verdict
    if over <= 0.02:
        assert verdict is Verdict.KEPT
    elif over > 0.05:
        assert verdict is Verdict.BROKEN


def test_a_floor_above_the_limit_in_force_is_broken() -> None:
    promise = Promise(memory_floor=2 << 30)
    slot = between(reading(1.0), reading(2.0), promise)
    assert slot is not None
    assert slot.below == slot.seconds


def test_readings_of_two_runs_or_far_apart_are_a_gap() -> None:
    assert between(reading(1.0), reading(1.0 + LONGEST + 0.1), Promise()) is None
    assert between(reading(5.0), reading(4.0), Promise()) is None
    assert between(reading(1.0, oom_kills=2), reading(2.0), Promise()) is None


@given(st.lists(st.sampled_from(list(Verdict)), max_size=60))
def test_each_breach_is_told_once_and_cleared_once(found: list[Verdict]) -> None:
    state, told = State(), list[str]()
    for number, verdict in enumerate(found):
        before = state
        state, news = step(state, verdict, datetime(2026, 1, 1, 0, 0, number, tzinfo=UTC), GUARANTEE)
        if news is not None:
            told.append(news.type)
        assert (state.since == before.since) == (state.verdict is before.verdict or before.since == state.since)
        if verdict is Verdict.NOT_MEASURED:
            assert state.verdict is Verdict.NOT_MEASURED
    # They take turns, beginning with a breach.
    assert told == [("contract.broken", "contract.kept")[number % 2] for number in range(len(told))]
    if (Verdict.BROKEN, Verdict.BROKEN) in pairwise(found):
        assert told
    else:
        assert not told


# Linux 6.1, a group of a hybrid host; and one of version 2.
V1 = {
    "used": "1500000000\n",
    "cpu": "nr_periods 10\nnr_throttled 2\nthrottled_time 250000000\n",
    "quota": "50000\n",
    "memory": "4096\n",
    "limit": "67108864\n",
    "full": "3\n",
    "oom": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    "cpu waits": "some avg10=1.93 avg60=0.82 avg300=0.20 total=1742017\nfull avg10=0.38 avg60=0.11 avg300=0.00 total=250000\n",
}
V2 = {
    "cpu": "usage_usec 1500000\nuser_usec 1\nsystem_usec 2\nnr_periods 10\nnr_throttled 2\nthrottled_usec 250000\n",
    "quota": "50000 100000\n",
    "memory": "4096\n",
    "limit": "67108864\n",
    "oom": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n",
    "cpu waits": V1["cpu waits"],
}


def test_both_versions_tell_the_same() -> None:
    assert parse_v1(V1, 3.0) == parse_v2(V2, 3.0)
    assert parse_v1(V1, 3.0) == Counters(
        at=3.0,
        used=1.5,
        throttled=0.25,
        cpu_limit=0.5,
        memory=4096,
        memory_limit=64 << 20,
        full=3,
        oom_kills=1,
        cpu_waits=Stall(1.742017, 0.25),
    )
    open_ended = parse_v2({"cpu": "usage_usec 1\n", "quota": "max 100000\n", "limit": "max\n"}, 0.0)
    assert open_ended == Counters(at=0.0, used=1e-6)
    assert parse_v1({**V1, "used": ""}, 0.0) is None
    assert parse_v2({}, 0.0) is None


@given(st.text())
def test_links_of_any_text(text: str) -> None:
    links(text)


def test_links_are_read_by_name() -> None:
    shown = "Inter-|   Receive |  Transmit\n face |bytes packets\n  lapabc: 10 1 0 0 0 0 0 0 20 2 0 0 0 0 0 0\n"
    assert links(shown) == {"lapabc": (10, 20)}
