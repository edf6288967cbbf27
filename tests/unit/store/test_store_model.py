"""Any sequence of transactions leaves the store as it leaves a model of a few dictionaries."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lamella.model.errors import Conflict, LamellaError, NotFound, StaleRevision
from lamella.model.ids import new_id
from lamella.model.instance import InstanceSpec, InstanceStatus, Phase
from lamella.model.kinds import AnyResource
from lamella.model.resource import new_resource
from lamella.model.storage import VolumeForm, VolumeSpec, VolumeStatus
from lamella.store.database import open_store
from lamella.store.store import Store, Transaction


class Model:
    """The same promises, kept in memory by copying everything."""

    def __init__(self) -> None:
        self.rows: dict[str, AnyResource] = {}
        self.log: list[tuple[str, AnyResource]] = []
        self.held: dict[tuple[str, str], str] = {}

    def insert(self, given: AnyResource) -> AnyResource:
        if any((r.kind, r.project, r.name) == (given.kind, given.project, given.name) for r in self.rows.values()):
            raise Conflict("taken")
        return self._write("created", given)

    def update(self, given: AnyResource, *, expected: int | None = None) -> AnyResource:
        if given.id not in self.rows:
            raise NotFound("gone")
        row = self.rows[given.id]
        if expected is not None and row.revision != expected:
            raise StaleRevision("stale")
        after = msgspec.structs.replace(row, labels=given.labels, spec=given.spec, status=given.status)
        if after == row:
            return row
        return self._write(
            "updated", msgspec.structs.replace(after, generation=row.generation + (after.spec != row.spec))
        )

    def delete(self, id: str) -> None:
        if id not in self.rows:
            raise NotFound("gone")
        self.log.append(("deleted", self.rows.pop(id)))
        self.held = {key: owner for key, owner in self.held.items() if owner != id}

    def claim(self, space: str, key: str, owner: str) -> None:
        if self.held.setdefault((space, key), owner) != owner:
            raise Conflict("held")

    def release(self, space: str, key: str, owner: str) -> None:
        if self.held.get((space, key)) == owner:
            del self.held[space, key]

    def _write(self, action: str, resource: AnyResource) -> AnyResource:
        self.rows[resource.id] = msgspec.structs.replace(resource, revision=len(self.log) + 1)
        self.log.append((action, self.rows[resource.id]))
        return self.rows[resource.id]


class Abandon(Exception):
    """A change that thinks better of it."""


NAMES = st.sampled_from(["a", "b", "c"])
PROJECTS = st.sampled_from(["default", "team"])
LABELS = st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from(["1", "2"]), max_size=2)
SPECS = st.builds(InstanceSpec, image=st.sampled_from(["debian:12", "alpine"]), memory=st.sampled_from([None, 1 << 30]))
STATUSES = st.builds(InstanceStatus, phase=st.sampled_from(Phase), restarts=st.integers(0, 1))
INSTANCES = st.builds(
    lambda name, project, labels, spec, status: new_resource(
        "instance", name, spec, status, project=project, labels=labels
    ),
    NAMES,
    PROJECTS,
    LABELS,
    SPECS,
    STATUSES,
)
VOLUMES = st.builds(
    lambda name, project, labels: new_resource(
        "volume", name, VolumeSpec(form=VolumeForm.BLOCK), VolumeStatus(), project=project, labels=labels
    ),
    NAMES,
    PROJECTS,
    LABELS,
)
PICKS = st.integers(0, 7)
STEPS = st.one_of(
    st.tuples(st.just("insert"), INSTANCES | VOLUMES),
    st.tuples(st.just("update"), PICKS, LABELS, SPECS, STATUSES, st.sampled_from([None, 0, -1])),
    st.tuples(st.just("delete"), PICKS),
    st.tuples(st.just("claim"), st.sampled_from(["ip", "mac"]), NAMES, PICKS),
    st.tuples(st.just("release"), st.sampled_from(["ip", "mac"]), NAMES, PICKS),
    st.tuples(st.just("abandon")),
)


def perform(target: Any, step: tuple[Any, ...], ids: list[str], rows: dict[str, AnyResource]) -> Any:
    """*step* on a model or a transaction; what it refuses is part of the answer."""
    verb, *rest = step
    try:
        match verb:
            case "insert":
                return target.insert(rest[0])
            case "update":
                pick, labels, spec, status, off = rest
                id = ids[pick % len(ids)]
                if id not in rows:
                    return None
                row = rows[id]
                asked = msgspec.structs.replace(row, labels=labels, status=status)
                if row.kind == "instance":
                    asked.spec = spec
                else:
                    asked.status = row.status
                return target.update(asked, expected=None if off is None else row.revision + off)
            case "delete":
                return target.delete(ids[rest[0] % len(ids)])
            case "claim":
                return target.claim(rest[0], rest[1], ids[rest[2] % len(ids)])
            case "release":
                return target.release(rest[0], rest[1], ids[rest[2] % len(ids)])
            case _:
                raise Abandon
    except LamellaError as error:
        return type(error)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="lamella-store-"))
        self.loop = asyncio.new_event_loop()
        self.model = Model()
        self.ids = [new_id("instance")]
        self.store = self.opened()

    def opened(self) -> Store:
        store = open_store(f"sqlite:///{self.directory}/lamella.db")
        self.do(store.open())
        return store

    def do(self, what: Any) -> Any:
        return self.loop.run_until_complete(what)

    def teardown(self) -> None:
        self.do(self.store.close())
        self.loop.close()
        shutil.rmtree(self.directory)

    def plan(self, steps: list[tuple[Any, ...]]) -> tuple[Model, list[Any], bool]:
        """What the model says of *steps* as one transaction: how it is afterwards, each answer, and whether it was abandoned."""
        after = Model()
        after.rows, after.log, after.held = dict(self.model.rows), list(self.model.log), dict(self.model.held)
        rows, answers = dict(self.model.rows), list[Any]()
        for step in steps:
            try:
                answers.append(perform(after, step, self.ids, rows))
            except Abandon:
                return self.model, answers, True
        return after, answers, False

    def change(self, steps: list[tuple[Any, ...]], rows: dict[str, AnyResource], answers: list[Any]) -> Any:
        ids = list(self.ids)

        def change(tx: Transaction) -> None:
            for step in steps:
                answers.append(perform(tx, step, ids, rows))

        return change

    @rule(steps=st.lists(STEPS, min_size=1, max_size=5))
    def one_transaction(self, steps: list[tuple[Any, ...]]) -> None:
        expected, wanted, abandoned = self.plan(steps)
        answers: list[Any] = []
        try:
            self.do(self.store.write(self.change(steps, dict(self.model.rows), answers)))
            assert not abandoned
        except Abandon:
            assert abandoned
        assert answers == wanted
        self.model = expected
        self.ids = [*self.ids, *(id for id in self.model.rows if id not in self.ids)]

    @rule(resources=st.lists(INSTANCES, min_size=2, max_size=6))
    def many_at_once(self, resources: list[AnyResource]) -> None:
        async def write() -> list[Any]:
            jobs = (self.store.write(lambda tx, r=r: tx.insert(r)) for r in resources)
            return await asyncio.gather(*jobs, return_exceptions=True)

        # The writer keeps the order in which they were asked for.
        for resource, answer in zip(resources, self.do(write()), strict=True):
            try:
                assert self.model.insert(resource) == answer
                self.ids.append(resource.id)
            except Conflict:
                assert isinstance(answer, Conflict)

    @precondition(lambda self: self.model.log)
    @rule()
    def reopen(self) -> None:
        self.do(self.store.close())
        self.store = self.opened()

    @invariant()
    def same(self) -> None:
        for kind in ("instance", "volume"):
            rows = sorted((r for r in self.model.rows.values() if r.kind == kind), key=lambda r: r.id)
            page = self.do(self.store.list(kind))
            assert page.items == rows
            assert page.revision == len(self.model.log)
        labelled = self.do(self.store.list("instance", project="team", labels={"x": "1"})).items
        assert {r.id for r in labelled} == {
            r.id
            for r in self.model.rows.values()
            if (r.kind, r.project, r.labels.get("x")) == ("instance", "team", "1")
        }
        log = self.do(self.store.changes(0))
        assert [c.revision for c in log] == list(range(1, len(self.model.log) + 1))
        assert [(c.action, c.resource) for c in log] == self.model.log
        for space in ("ip", "mac"):
            held = {key: owner for (where, key), owner in self.model.held.items() if where == space}
            assert self.do(self.store.read(lambda tx, space=space: tx.claims(space))) == held


StoreMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=12, deadline=None)
TestStoreMachine = StoreMachine.TestCase
