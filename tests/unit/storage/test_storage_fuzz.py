"""Whatever lies in the files that storage reads: it is a record, or it is refused; nothing else happens, and nothing loops."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamella.host.storage import qemu_img
from lamella.host.storage.directory import DirectoryDriver
from lamella.host.storage.directory import record as records
from lamella.host.storage.directory.record import LayerRecord, Record, SnapshotRecord
from lamella.host.storage.driver import Layer
from lamella.host.storage.records import BegunSnapshot, Folder, MadeVolume, OpenVolume
from lamella.model.errors import Corrupt
from lamella.model.ids import new_id
from lamella.model.storage import VolumeForm

NAMES = st.sampled_from(["a.raw", "b.qcow2", "c.qcow2", "d.qcow2", "..", "x/y.raw", "", "vol_0/a.raw"])
LAYERS = st.lists(st.builds(LayerRecord, name=NAMES, parent=NAMES), max_size=5)
TAKEN = st.lists(st.builds(SnapshotRecord, id=st.text(max_size=3), layer=NAMES, size=st.integers(-1, 1 << 62)))
RECORDS = st.builds(
    Record,
    form=st.sampled_from(list(VolumeForm)),
    size=st.integers(-(1 << 40), 1 << 62),
    layers=LAYERS,
    top=NAMES,
    snapshots=TAKEN,
)


@given(RECORDS)
def test_a_record_that_is_accepted_ends_wherever_one_begins(made: Record) -> None:
    try:
        record = records.decoded(records.encoded(made))
    except msgspec.DecodeError:
        return
    if record.form is VolumeForm.FILESYSTEM:
        return
    for name in [record.top, *(taken.layer for taken in record.snapshots)]:
        line = records.line(record, name)
        assert line and len(line) <= len(record.layers)
    assert {layer.name for layer in records.pruned(record, []).layers} <= {layer.name for layer in record.layers}
    records.mergeable(record, [], with_top=True)


NESTED = [b'{"form":"block","size":1,"x":' + b"[" * 200_000, b"[" * 200_000, b'{"a":' * 100_000]
ANY = st.one_of(st.binary(max_size=300), RECORDS.map(records.encoded), st.sampled_from(NESTED))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=ANY)
def test_a_pool_opens_and_is_checked_whatever_a_record_is(tmp_path: Path, content: bytes) -> None:
    async def look() -> None:
        id = new_id("volume")
        place = tmp_path / "pool" / "volumes" / id
        place.mkdir(parents=True)
        (place / "volume.json").write_bytes(content)
        pool = DirectoryDriver(tmp_path / "pool")
        await pool.open()
        assert id in await pool.inventory()
        (place / "sums.json").write_bytes(content)
        await pool.check(repair=False)
        await pool.check(repair=True)
        await pool.scrub(repair=False)
        try:
            await pool.handle(id)
        except Corrupt as error:
            assert id in error.message
        await pool.delete(id)
        assert await pool.inventory() == set()
        await pool.close()

    asyncio.run(look())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=200), st.sampled_from(NESTED)))
@pytest.mark.parametrize("kind", [MadeVolume, OpenVolume, BegunSnapshot])
def test_a_host_record_is_one_or_is_refused(tmp_path: Path, kind: type[msgspec.Struct], content: bytes) -> None:
    id = new_id("volume")
    folder = Folder(tmp_path / "records")
    (tmp_path / "records").mkdir(exist_ok=True)
    (tmp_path / "records" / f"{id}.json").write_bytes(content)
    try:
        assert isinstance(folder.read(id, kind), kind)
    except Corrupt as error:
        assert id in error.message
        assert id not in folder.all(kind) and id in folder.ids()
    folder.forget(id)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=64), st.binary(max_size=64).map(lambda rest: b"QFI\xfb" + rest)))
def test_a_header_has_a_size_or_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.qcow2"
    path.write_bytes(content)
    try:
        assert 0 <= qemu_img.virtual_size(Layer(path=path, format="qcow2")) < 1 << 64
    except Corrupt:
        assert len(content) < 32 or content[:4] != b"QFI\xfb"
