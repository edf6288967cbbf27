"""Layers of a volume through any sequence of snapshots, restores, drops and merges: each snapshot stays what it was, without a disk."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lamella.host.storage.directory import record as records
from lamella.host.storage.directory.record import LayerRecord, Record, SnapshotRecord
from lamella.model.storage import VolumeForm

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "snapshot", "restore", "drop", "clone", "unclone", "merge"]), st.integers(0, 5)
    ),
    max_size=40,
)


class Disk:
    """What the layers hold: for each, the blocks that were written to it."""

    def __init__(self) -> None:
        self.record = Record(form=VolumeForm.BLOCK, size=1, layers=[LayerRecord(name="disk.raw")], top="disk.raw")
        self.blocks: dict[str, dict[int, int]] = {"disk.raw": {}}
        self.clones: list[str] = []
        self.wanted: dict[str, dict[int, int]] = {}
        self.now: dict[int, int] = {}
        self.count = 0

    def content(self, name: str) -> dict[int, int]:
        seen: dict[int, int] = {}
        for layer in reversed(records.line(self.record, name)):
            seen |= self.blocks[layer.name]
        return seen

    def _above(self, parent: str) -> LayerRecord:
        self.count += 1
        layer = LayerRecord(name=f"layer-{self.count}.qcow2", parent=parent)
        self.blocks[layer.name] = {}
        return layer

    def step(self, verb: str, number: int) -> None:
        taken = self.record.snapshots[number % len(self.record.snapshots)] if self.record.snapshots else None
        if verb == "write":
            self.count += 1
            self.blocks[self.record.top][number] = self.now[number] = self.count
        elif verb == "snapshot":
            layer = self._above(self.record.top)
            kept = SnapshotRecord(id=f"s{self.count}", layer=self.record.top)
            self.wanted[kept.id] = dict(self.now)
            made = replace(self.record, top=layer.name, layers=[layer, *self.record.layers])
            self.record = replace(made, snapshots=[*made.snapshots, kept])
        elif verb == "restore" and taken:
            layer = self._above(taken.layer)
            self.now = dict(self.wanted[taken.id])
            made = replace(self.record, top=layer.name, layers=[layer, *self.record.layers])
            self.record = records.pruned(made, self.clones)
        elif verb == "drop" and taken and taken.layer not in self.clones:
            kept = [other for other in self.record.snapshots if other.id != taken.id]
            self.record = records.pruned(replace(self.record, snapshots=kept), self.clones)
        elif verb == "clone" and taken:
            self.clones.append(taken.layer)
        elif verb == "unclone" and self.clones:
            self.clones.pop()
        elif verb == "merge":
            with_top = bool(number % 2)
            fixed = {name: self.content(name) for name in self.clones}
            for upper, lower in records.mergeable(self.record, self.clones, with_top=with_top)[:1]:
                assert with_top or upper != self.record.top
                self.blocks[lower] |= self.blocks[upper]
                self.record = records.pruned(records.merged(self.record, upper, lower), self.clones)
            assert fixed == {name: self.content(name) for name in self.clones}, "a clone's layers were changed"


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_nothing_that_is_kept_is_ever_changed(steps: list[tuple[str, int]]) -> None:
    disk = Disk()
    for verb, number in steps:
        disk.step(verb, number)
        assert disk.content(disk.record.top) == disk.now
        for snapshot in disk.record.snapshots:
            assert disk.content(snapshot.layer) == disk.wanted[snapshot.id]
        assert records.decoded(records.encoded(disk.record)) == disk.record


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_when_all_is_dropped_one_layer_is_left(steps: list[tuple[str, int]]) -> None:
    disk = Disk()
    for verb, number in steps:
        disk.step(verb, number)
    disk.clones = []
    while disk.record.snapshots:
        disk.step("drop", 0)
    while records.mergeable(disk.record, [], with_top=True):
        disk.step("merge", 1)
    assert len(disk.record.layers) == 1 and disk.content(disk.record.top) == disk.now


def test_a_volume_from_before_there_were_layers_is_read() -> None:
    plain = records.decoded(b'{"form":"block","size":4096}')
    assert (plain.top, [layer.name for layer in plain.layers]) == ("disk.raw", ["disk.raw"])
    based = records.decoded(b'{"form":"block","size":4096,"base":{"path":"/d","size":512}}')
    assert based.top == "disk.qcow2" and based.base is not None
    assert records.decoded(b'{"form":"filesystem","size":0}').layers == []


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{",
        b'{"form":"block"}',
        b'{"form":"block","size":1,"layers":[{"name":"a.raw"}],"top":"b.raw"}',
        b'{"form":"block","size":1,"layers":[{"name":"../a.raw"}],"top":"../a.raw"}',
        b'{"form":"block","size":1,"layers":[{"name":"a.raw","parent":"b.raw"}],"top":"a.raw"}',
        b'{"form":"block","size":1,"layers":[{"name":"a.qcow2","parent":"b.qcow2"},{"name":"b.qcow2","parent":"a.qcow2"}],"top":"a.qcow2"}',
        b'{"form":"block","size":1,"layers":[{"name":"a.raw"}],"top":"a.raw","snapshots":[{"id":"s","layer":"x.raw"}]}',
    ],
)
def test_a_record_that_contradicts_itself_is_none(broken: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        records.decoded(broken)
