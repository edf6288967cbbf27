"""The planner of asynchronous replication, carried out on a small world that is cut off at every line."""

import itertools
import random
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from lamella.host.storage.driver import Extent
from lamella.host.storage.replication.journal import Journal
from lamella.host.storage.replication.plan import Step, due_in, joined, next_step, status_of
from lamella.model.replication import ReplicationPhase, ReplicationSpec, ReplicationStatus
from lamella.model.resource import new_resource
from lamella.model.storage import VolumeSpec, VolumeStatus

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def journal(every: float = 30.0, **fields: object) -> Journal:
    source = new_resource("volume", "data", VolumeSpec(), VolumeStatus())
    target = new_resource("volume", "data-replica", VolumeSpec(pool="far"), VolumeStatus())
    spec = ReplicationSpec(volume=source.id, target=target.id, pool="far", every=every)
    made = Journal(
        replication=new_resource("replication", "data", spec, ReplicationStatus()), source=source, target=target
    )
    for name, value in fields.items():
        setattr(made, name, value)
    return made


class World:
    """A source that is written all the time, and a target that is copied to block by block. A crash forgets ``copied``."""

    BLOCKS = 8

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.journal = journal()
        self.now = BEGIN
        self.source = [0] * self.BLOCKS
        self.kept: dict[str, list[int]] = {}
        self.target: list[int] | None = None
        self.sealed: dict[str, list[int]] = {}
        self.copied = ""
        self.number = 0

    def write(self) -> None:
        self.number += 1
        self.source[self.chance.randrange(self.BLOCKS)] = self.number

    def plan(self) -> Step:
        name = self.journal.next
        return next_step(
            self.journal,
            taken=name in self.kept,
            sealed=name in self.sealed,
            copied=bool(name) and self.copied == name,
            now=self.now,
        )

    def step(self, cut: int) -> None:
        """One step; with *cut* it is cut off after so many of its lines."""
        wanted = self.plan()
        for line, act in enumerate(getattr(self, wanted.value)()):
            if line == cut:
                self.copied = ""
                return
            act()

    def make(self):
        yield lambda: setattr(self, "target", [0] * self.BLOCKS)
        yield lambda: setattr(self.journal, "made", True)

    def take(self):
        if not self.journal.next:
            self.number += 1
            name = f"snap{self.number}"
            yield lambda: (setattr(self.journal, "next", name), setattr(self.journal, "next_at", self.now))
        yield lambda: self.kept.setdefault(self.journal.next, list(self.source))

    def rewind(self):
        base = self.sealed.get(self.journal.base, [0] * self.BLOCKS)
        yield lambda: setattr(self, "target", list(base))
        yield lambda: setattr(self.journal, "dirty", False)

    def copy(self):
        yield lambda: setattr(self.journal, "dirty", True)
        old = self.kept.get(self.journal.base, [0] * self.BLOCKS)
        new = self.kept[self.journal.next]
        assert self.target is not None
        for place in range(self.BLOCKS):
            if old[place] != new[place]:
                yield lambda place=place: self.target.__setitem__(place, new[place])
        yield lambda: setattr(self, "copied", self.journal.next)

    def seal(self):
        name = self.journal.next
        assert self.target is not None
        yield lambda: self.sealed.setdefault(name, list(self.target or []))

        def written() -> None:
            known = self.journal
            known.stale = [*known.stale, *([known.base] if known.base else [])]
            known.base, known.base_at, known.next, known.dirty = name, known.next_at, "", False

        yield written

    def drop(self):
        for name in self.journal.stale:
            yield lambda name=name: self.kept.pop(name, None)
            yield lambda name=name: self.sealed.pop(name, None)
        yield lambda: setattr(self.journal, "stale", [])

    def rest(self):
        yield lambda: setattr(self, "now", self.now + timedelta(seconds=31))

    def check(self) -> None:
        """Whatever is promoted now is what the source was at one instant."""
        if self.journal.base:
            assert self.sealed[self.journal.base] == self.kept[self.journal.base]


@given(seed=st.integers(0, 1 << 30), cuts=st.lists(st.integers(0, 12), max_size=60))
def test_the_target_can_be_promoted_at_every_instant(seed: int, cuts: list[int]) -> None:
    world = World(seed)
    for cut in cuts:
        world.write()
        world.step(cut)
        world.check()
    for _ in range(30):
        world.step(99)
        world.check()
    assert world.journal.base, "it comes to a whole copy however often it was cut off"
    before = world.journal.base
    world.write()
    for _ in range(30):
        world.step(99)
    assert world.journal.base != before


def test_a_cycle_is_due_an_interval_after_the_last_began() -> None:
    known = journal(every=30.0, base="a", base_at=BEGIN, made=True)
    assert due_in(known, BEGIN + timedelta(seconds=10)) == 20.0
    assert due_in(known, BEGIN + timedelta(seconds=40)) == 0.0
    assert due_in(journal(), BEGIN) == 0.0


def test_what_is_told() -> None:
    known = journal(every=30.0, base="a", base_at=BEGIN, made=True)
    known.remember(BEGIN, 44.0)
    told = status_of(known, BEGIN + timedelta(seconds=20))
    assert (told.phase, told.rpo, told.worst) == (ReplicationPhase.CURRENT, 20.0, 44.0)
    told = status_of(known, BEGIN + timedelta(seconds=70))
    assert (told.phase, told.rpo, told.worst) == (ReplicationPhase.LATE, 70.0, 70.0)
    told = status_of(known, BEGIN + timedelta(days=2))
    assert told.worst == told.rpo, "what was a day ago counts no more"
    assert status_of(journal(), BEGIN).phase is ReplicationPhase.SEEDING


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=5000))
def test_the_worst_of_the_day_is_never_forgotten(ages: list[float]) -> None:
    known = journal()
    for number, age in enumerate(ages):
        known.remember(BEGIN + timedelta(seconds=number), age)
    assert max(one.oldest for one in known.ages) == max(ages)
    assert len(known.ages) <= 2001


@given(
    parts=st.lists(st.tuples(st.integers(0, 100), st.integers(1, 50), st.booleans()), max_size=60),
    most=st.integers(1, 20),
)
def test_pieces_hold_everything_that_changed(parts: list[tuple[int, int, bool]], most: int) -> None:
    at, extents = 0, list[Extent]()
    for gap, length, zero in parts:
        extents.append(Extent(offset=at + gap, length=length, zero=zero))
        at += gap + length
    made = joined(extents, most)
    assert len(made) <= max(most, 0) or len(made) == len(extents)
    for extent in extents:
        holding = [
            one
            for one in made
            if one.offset <= extent.offset and extent.offset + extent.length <= one.offset + one.length
        ]
        assert len(holding) == 1
        assert extent.zero or not holding[0].zero, "data is never taken for zeros"
    assert all(a.offset + a.length <= b.offset for a, b in itertools.pairwise(made))
