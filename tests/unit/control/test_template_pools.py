"""Pools of copies that wait: whatever there is, the plan comes to rest with as many as are wanted and fit, and takes turns."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lamella.control.shares import NOTHING, Share
from lamella.control.templates.pooling import AT_ONCE, MEMORY, Demand, Member, Pool, giving_way, plan

GIB = 1 << 30


def members(prefix: str):
    flags = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=6)
    return flags.map(
        lambda each: tuple(
            Member(id=f"{prefix}-{number}", ready=ready, sound=sound) for number, (ready, sound) in enumerate(each)
        )
    )


@st.composite
def pools(draw) -> list[Pool]:
    return [
        Pool(
            template=f"t{number}",
            project=draw(st.sampled_from(["a", "b", "c"])),
            host=draw(st.sampled_from(["h", "k"])),
            wanted=draw(st.integers(0, 5)),
            share=Share(memory=draw(st.integers(1, 4)) * GIB),
            members=draw(members(f"t{number}")),
            open=draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 5)))
    ]


def after(pool: Pool, removed: set[str], made: int, round: int, *, all_ready: bool) -> Pool:
    kept = [item for item in pool.members if item.id not in removed]
    kept = [Member(id=item.id, ready=item.ready or all_ready) for item in kept]
    kept += [Member(id=f"{pool.template}-r{round}-{number}", ready=False) for number in range(made)]
    return Pool(
        template=pool.template,
        project=pool.project,
        host=pool.host,
        wanted=pool.wanted,
        share=pool.share,
        members=tuple(kept),
        open=pool.open,
    )


@given(pools(), st.integers(0, 20))
def test_it_comes_to_rest_with_as_many_as_are_wanted_and_fit(start: list[Pool], room: int) -> None:
    now = start
    for round in range(60):
        held = {
            host: sum((pool.share for pool in now if pool.host == host for _ in pool.members), NOTHING)
            for host in ("h", "k")
        }

        def fits(host: str, share: Share, held: dict[str, Share] = held) -> bool:
            return (held[host] + share).memory <= room * GIB

        step = plan(now, fits)
        removed, made = set(step.remove), Counter(step.make)
        for pool in now:
            unsound = {item.id for item in pool.members if not item.sound}
            # Nothing that is sound and wanted goes, and nothing that is not stays.
            assert unsound <= removed
            sound = [item for item in pool.members if item.sound]
            gone = [item for item in sound if item.id in removed]
            assert len(gone) == max(0, len(sound) - pool.wanted)
            assert all(item.ready <= other.ready for item in gone for other in sound if other not in gone)
            assert pool.open or not made[pool.template]
        for host in ("h", "k"):
            begun = sum(made[pool.template] for pool in now if pool.host == host)
            more = sum((pool.share for pool in now if pool.host == host for _ in range(made[pool.template])), NOTHING)
            assert begun <= AT_ONCE
            assert not begun or fits(host, more)
        if not step.make and not step.remove and all(item.ready for pool in now for item in pool.members):
            break
        now = [after(pool, removed, made[pool.template], round, all_ready=True) for pool in now]
    else:
        raise AssertionError("it never came to rest")
    for pool in now:
        assert len(pool.members) <= pool.wanted
        if pool.open and len(pool.members) < pool.wanted:
            assert not fits(pool.host, pool.share)


def test_projects_take_turns_whatever_one_of_them_asks_for() -> None:
    greedy = [Pool(template=f"g{n}", project="greedy", host="h", wanted=50, share=Share(memory=GIB)) for n in range(3)]
    modest = Pool(template="m", project="modest", host="h", wanted=2, share=Share(memory=GIB))
    whole = plan([*greedy, modest], lambda host, share: share.memory <= 6 * GIB, at_once=100)
    assert Counter(whole.make) == {"g0": 2, "g1": 1, "g2": 1, "m": 2}


def test_a_large_one_that_does_not_fit_does_not_keep_a_small_one_out() -> None:
    large = Pool(template="large", project="a", host="h", wanted=1, share=Share(memory=8 * GIB))
    small = Pool(template="small", project="b", host="h", wanted=3, share=Share(memory=GIB))
    made = plan([large, small], lambda host, share: share.memory <= 2 * GIB, at_once=9).make
    assert made == ("small", "small")


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 6)), st.integers(0, 30))
def test_as_few_give_way_as_will_do(waiting: dict[str, int], needed: int) -> None:
    shares = {id: Share(memory=size) for id, size in waiting.items()}
    gone = giving_way(shares, lambda given: given.memory < needed)
    if gone is None:
        assert sum(waiting.values()) < needed
        return
    given = sum(waiting[id] for id in gone)
    assert given >= needed and len(set(gone)) == len(gone)
    # None of them goes in vain.
    assert all(given - waiting[id] < needed for id in gone)


def test_as_many_wait_as_arrive_while_one_is_made() -> None:
    demand = Demand()
    assert demand.wanted(0.0, 8) == 0
    for second in range(300):
        for part in range(4):
            demand = demand.arrived(second + part / 4)
    for _ in range(30):
        demand = demand.made(1.2)
    assert abs(demand.rate_at(300) - 4) < 0.2
    assert demand.wanted(300, 8) == 5 and demand.wanted(300, 3) == 3
    # Nobody asks any more: first fewer wait, then none.
    assert demand.wanted(300 + 2 * MEMORY, 8) == 1
    assert demand.wanted(300 + 20 * MEMORY, 8) == 0
