"""Chains that somebody broke by hand: layers taken away, renamed, put in each other's place, standing on each other in a ring; headers in
which any byte may be another. Each is named, harms its own volume alone, and is well again when it is put back."""

import random
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from test_directory_faults import MIB, io, record

from lamella.host.storage import qemu_img
from lamella.host.storage.directory import DirectoryDriver
from lamella.host.storage.directory.record import LayerRecord, Record, encoded
from lamella.host.storage.driver import Source
from lamella.model.errors import Corrupt, LamellaError
from lamella.model.ids import new_id
from lamella.model.storage import VolumeForm

HEADERS = 60


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[DirectoryDriver]:
    pool = DirectoryDriver(tmp_path / "pool")
    await pool.open()
    pool.blocks.shares = False
    yield pool
    await pool.close()


async def layered(pool: DirectoryDriver, first: int = 1) -> str:
    """A volume of three layers, each of which has a mebibyte of its own."""
    id = new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 16 * MIB)
    for number in range(3):
        io(await pool.node(id), f"write -P {first + number} {number}M 1M", "flush")
        if number < 2:
            await pool.snapshot(id, new_id("snapshot"))
    return id


async def whole(pool: DirectoryDriver, id: str, first: int = 1) -> None:
    io(await pool.node(id), *(f"read -P {first + number} {number}M 1M" for number in range(3)))


def taken_away(below: Path, other: Path) -> None:
    below.unlink()


def renamed(below: Path, other: Path) -> None:
    below.rename(below.with_name(f"other{below.suffix}"))


def cut_short(below: Path, other: Path) -> None:
    below.write_bytes(below.read_bytes()[: 4 * MIB])


def a_directory(below: Path, other: Path) -> None:
    below.unlink()
    below.mkdir()


@pytest.mark.parametrize("harm", [taken_away, renamed, cut_short, a_directory])
async def test_a_layer_that_was_harmed_is_named_and_may_be_put_back(
    pool: DirectoryDriver, tmp_path: Path, harm: Callable[[Path, Path], None]
) -> None:
    id, other = await layered(pool), await layered(pool, 11)
    clone = new_id("volume")
    await pool.create(clone, VolumeForm.BLOCK, 0, source=Source(volume=id, snapshot=(await pool.snapshots(id))[0]))
    below = (await pool.chain(id))[2].path
    shutil.copy2(below, tmp_path / "kept")
    harm(below, (await pool.chain(other))[2].path)
    found = await pool.check(repair=True)
    assert id in {finding.subject for finding in found} <= {id, clone}, found
    assert any(below.name in finding.problem and finding.hint and not finding.mended for finding in found)
    await whole(pool, other, 11)
    if below.is_dir():
        below.rmdir()
    shutil.copy2(tmp_path / "kept", below)
    below.with_name(f"other{below.suffix}").unlink(missing_ok=True)
    again = DirectoryDriver(pool.path)
    await again.open()
    assert await again.check(repair=False) == []
    await whole(again, id)
    io(await again.node(clone), "read -P 1 0 1M", "read -P 0 1M 1M")
    await again.close()


async def test_a_layer_with_other_content_is_found_by_the_scrub_that_read_it_before(pool: DirectoryDriver) -> None:
    """Of the same size and shape: nothing in it tells that it is another one, but its digest."""
    id, other = await layered(pool), await layered(pool, 11)
    assert (await pool.scrub(repair=False))[1] == []
    below = (await pool.chain(id))[2].path
    shutil.copyfile((await pool.chain(other))[2].path, below)
    assert await pool.check(repair=False) == []
    found = (await pool.scrub(repair=True))[1]
    assert [(finding.subject, finding.mended) for finding in found] == [(id, False)] and below.name in found[0].problem


def rings() -> list[tuple[str, Callable[[Record, str, str], Record]]]:
    def itself(record: Record, id: str, other: str) -> Record:
        return replace(record, layers=[*record.layers[:-1], LayerRecord(name="disk.raw", parent="disk.raw")])

    def top(record: Record, id: str, other: str) -> Record:
        return replace(record, layers=[*record.layers[:-1], LayerRecord(name="disk.raw", parent=record.top)])

    def by_its_own_name(record: Record, id: str, other: str) -> Record:
        return replace(record, layers=[*record.layers[:-1], LayerRecord(name="disk.raw", parent=f"{id}/disk.raw")])

    def another(record: Record, id: str, other: str) -> Record:
        return replace(record, layers=[*record.layers[:-1], LayerRecord(name="disk.raw", parent=f"{other}/disk.raw")])

    def elsewhere(record: Record, id: str, other: str) -> Record:
        return replace(record, layers=[*record.layers[:-1], LayerRecord(name="disk.raw", parent="../../etc/passwd")])

    return [(ring.__name__, ring) for ring in (itself, top, by_its_own_name, another, elsewhere)]


@pytest.mark.parametrize(("name", "ring"), rings())
async def test_a_ring_is_refused(pool: DirectoryDriver, name: str, ring: Callable[[Record, str, str], Record]) -> None:
    id, other = await layered(pool), await layered(pool, 11)
    before = {each: record(pool, each) for each in (id, other)}
    pairs = [(id, other), (other, id)] if name == "another" else [(id, other)]
    for each, far in pairs:
        path = pool.path / "volumes" / each / "volume.json"
        path.write_bytes(encoded(ring(before[each], each, far)))
    with pytest.raises(LamellaError):
        await pool.node(id)
    again = DirectoryDriver(pool.path)
    await again.open()
    found = await again.check(repair=True)
    assert {finding.subject for finding in found} == {each for each, _ in pairs} and not any(f.mended for f in found)
    for each, was in before.items():
        (pool.path / "volumes" / each / "volume.json").write_bytes(encoded(was))
    await again.close()
    await again.open()
    assert await again.check(repair=False) == []
    await whole(again, id)
    await again.close()


async def test_no_header_brings_a_pool_down(pool: DirectoryDriver, tmp_path: Path) -> None:
    """Any of the first bytes of a layer may be any other: verbs answer, other volumes are as they were."""
    id, other = await layered(pool), await layered(pool, 11)
    middle = (await pool.chain(id))[1].path
    good, seed = middle.read_bytes(), random.randrange(1 << 32)
    chance = random.Random(seed)
    refused = 0
    for _ in range(HEADERS):
        head = bytearray(good[:512])
        for _ in range(chance.randint(1, 4)):
            head[chance.randrange(4, 120)] = chance.randrange(256)
        middle.write_bytes(bytes(head) + good[512:])
        found = await pool.check(repair=False)
        assert {finding.subject for finding in found} <= {id}, seed
        refused += bool(found)
        try:
            qemu_img.virtual_size((await pool.chain(id))[1])
            await pool.delta(id, (await pool.snapshots(id))[0])
        except LamellaError as error:
            assert not isinstance(error, Corrupt) or error.hint, seed
    print(f"{HEADERS} headers, seed {seed}: {refused} were named")
    assert refused > HEADERS // 4
    middle.write_bytes(good)
    assert await pool.check(repair=False) == []
    await whole(pool, id)
    await whole(pool, other, 11)
