"""Every driver: a process that is killed in the middle of a verb leaves what was before or what is after, and the verb can be asked
again. How many cuts were made, and how many of them came before the answer, is printed at the end."""

import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from contract_cutter import Cutter, act
from contract_lab import MIB, Lab

from lamella.host.storage.driver import Node, StorageDriver
from lamella.model.errors import NotFound
from lamella.model.ids import new_id
from lamella.model.storage import Feature, VolumeForm

SIZE = 16 * MIB
# (pattern, offset, length): what is read when the volume is as it was at each point of its life.
FIRST = [(1, 0, MIB), (0, MIB, 15 * MIB)]
SECOND = [(2, 0, MIB // 2), (1, MIB // 2, MIB // 2), (0, MIB, 15 * MIB)]
NOW = [
    *((3, 0, MIB // 4), (2, MIB // 4, MIB // 4), (1, MIB // 2, MIB // 2)),
    *((0, MIB, 3 * MIB), (3, 4 * MIB, MIB), (7, 12 * MIB, MIB)),
]
Content = list[tuple[int, int, int]]


class Subject:
    """A volume with two snapshots and something written since, and a bystander that nothing may touch."""

    def __init__(self, lab: Lab, snapshots: bool) -> None:
        self.lab = lab
        self.id, self.bystander, self.fresh = (new_id("volume") for _ in range(3))
        self.first, self.second, self.third = (new_id("snapshot") for _ in range(3))
        self.snapshots = snapshots

    async def prepare(self, pool: StorageDriver) -> None:
        for id in (self.id, self.bystander):
            await pool.create(id, VolumeForm.BLOCK, SIZE)
        self.lab.write(await pool.node(self.bystander), 9, 0, MIB)
        for content, snapshot in ((FIRST, self.first), (SECOND, self.second), (NOW, "")):
            writes = [f"write -P {pattern} {offset} {length}" for pattern, offset, length in content if pattern]
            self.lab.io(await pool.node(self.id), *writes, "flush")
            if snapshot and self.snapshots:
                await pool.snapshot(self.id, snapshot)

    async def nodes(self, pool: StorageDriver) -> list[tuple[Node, Content]]:
        """Every snapshot that is listed, and the bystander, with what is to be read."""
        found = [(await pool.node(self.bystander), [(9, 0, MIB), (0, MIB, 15 * MIB)])]
        if self.id in await pool.inventory() and self.snapshots:
            taken = await pool.snapshots(self.id)
            known = {self.first: FIRST, self.second: SECOND, self.third: NOW}
            found += [(await pool.node(self.id, snapshot), known[snapshot]) for snapshot in taken]
        return found


Verify = Callable[[StorageDriver, Subject, bool], Awaitable[None]]
CASES: dict[str, tuple[str, Callable[[Subject], dict[str, Any]], set[Feature]]] = {
    "create": ("create", lambda on: {"id": on.fresh, "form": "block", "size": SIZE}, set()),
    "clone": (
        "create",
        lambda on: {
            "id": on.fresh,
            "form": "block",
            "size": 0,
            "source": {"volume": on.id, "snapshot": on.second},
        },
        {Feature.SNAPSHOT, Feature.CLONE},
    ),
    "snapshot": ("snapshot", lambda on: {"id": on.id, "snapshot": on.third}, {Feature.SNAPSHOT}),
    "drop-oldest": ("drop", lambda on: {"id": on.id, "snapshot": on.first}, {Feature.SNAPSHOT}),
    "drop-newest": ("drop", lambda on: {"id": on.id, "snapshot": on.second}, {Feature.SNAPSHOT}),
    "restore": ("restore", lambda on: {"id": on.id, "snapshot": on.first}, {Feature.SNAPSHOT}),
    "grow": ("resize", lambda on: {"id": on.id, "size": 2 * SIZE}, set()),
    "shrink": ("resize", lambda on: {"id": on.id, "size": 8 * MIB}, {Feature.SHRINK}),
    "delete": ("delete", lambda on: {"id": on.id}, set()),
    "shred": ("delete", lambda on: {"id": on.id, "shred": True}, set()),
}
made: dict[str, list[int]] = {}


@pytest.fixture(scope="module")
def cutter(lab: Lab) -> Iterator[Cutter]:
    cutter = Cutter(lab.prefix, lab.environment)
    yield cutter
    cutter.close()


@pytest.fixture(scope="module", autouse=True)
def told(lab: Lab) -> Iterator[None]:
    yield
    count, before = (sum(pair[index] for pair in made.values()) for index in (0, 1))
    print(f"\n{lab.name}: {count} cuts, {before} of them before the answer")
    made.clear()


@pytest.mark.parametrize("case", CASES)
async def test_a_verb_is_cut_anywhere(lab: Lab, cutter: Cutter, leaves_nothing: None, case: str) -> None:
    verb, arguments, wanted = CASES[case]
    features = lab.make().features
    missing = (wanted | {Feature.BLOCK}) - features
    if missing:
        pytest.skip(f"the {lab.name} driver has no {', '.join(sorted(missing))}")
    counted = made.setdefault(case, [0, 0])
    takes = lab.verb_takes
    # The first one is let go on to its end: it tells within which time to cut the others.
    for number in range(lab.cuts + (takes is None)):
        subject = Subject(lab, Feature.SNAPSHOT in features)
        if case in ("grow", "shrink", "delete", "shred") and number % 2:
            subject.snapshots = False
        # Nobody else has the pool open when it is cut.
        before = lab.make()
        await before.open()
        await subject.prepare(before)
        await before.close()
        given = arguments(subject)
        after = None if takes is None else random.uniform(0, takes)
        acked, took = cutter.cut(lab.described(), verb, given, after)
        if takes is None:
            assert acked
            takes = 1.1 * took
        else:
            counted[0] += 1
            counted[1] += not acked
        pool = lab.make()
        await pool.open()
        assert await pool.check(repair=False) == []
        await verify(case, lab, pool, subject, acked)
        # Asked again it is done, whatever the first time came to.
        await act(pool, verb, given)
        await verify(case, lab, pool, subject, True)
        if case == "shrink":
            await pool.resize(subject.id, SIZE)
            lab.expect(await pool.node(subject.id), (0, 8 * MIB, 8 * MIB))
        for id in (subject.fresh, subject.id, subject.bystander):
            await pool.delete(id)
        assert await pool.inventory() == set()
        await pool.close()


async def verify(case: str, lab: Lab, pool: StorageDriver, subject: Subject, acked: bool) -> None:
    """What was acknowledged is so; what was not is as before or as after."""
    inventory = await pool.inventory()
    nodes = await subject.nodes(pool)
    now, size = NOW, SIZE
    there = subject.id in inventory
    assert subject.bystander in inventory
    if case in ("create", "clone"):
        assert subject.fresh in inventory or not acked
        if subject.fresh in inventory:
            assert (await pool.handle(subject.fresh)).size == SIZE
            nodes.append((await pool.node(subject.fresh), SECOND if case == "clone" else [(0, 0, SIZE)]))
        else:
            await _absent(pool, subject.fresh)
    if case in ("delete", "shred"):
        assert not (there and acked)
        if not there:
            await _absent(pool, subject.id)
    elif subject.snapshots:
        taken = await pool.snapshots(subject.id)
        wanted = [subject.first, subject.second]
        after = {
            "snapshot": [*wanted, subject.third],
            "drop-oldest": [subject.second],
            "drop-newest": [subject.first],
        }.get(case, wanted)
        assert taken in ([after] if acked else [wanted, after])
    if there:
        told = (await pool.handle(subject.id)).size
        node = await pool.node(subject.id)
        assert lab.size(node) == told, "the record and what lies below do not agree"
        if case in ("grow", "shrink"):
            size = {"grow": 2 * SIZE, "shrink": 8 * MIB}[case]
            assert told in ((size,) if acked else (SIZE, size))
            now = [*(part for part in NOW if part[1] < told), *([(0, SIZE, SIZE)] if told == 2 * SIZE else [])]
        else:
            assert told == size
        if case == "restore" and not acked and not lab.restores_at_once:
            now = []
        elif case == "restore" and (acked or not _reads(lab, node, NOW)):
            now = FIRST
        nodes.append((node, now))
    reads = [(node, [f"read -P {part[0]} {part[1]} {part[2]}" for part in content]) for node, content in nodes]
    lab.script(reads, read_only=True)


async def _absent(pool: StorageDriver, id: str) -> None:
    with pytest.raises(NotFound):
        await pool.handle(id)


def _reads(lab: Lab, node: Node, content: Content) -> bool:
    try:
        lab.expect(node, *content, read_only=True)
    except AssertionError:
        return False
    return True
