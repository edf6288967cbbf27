"""The btrfs pool on btrfs filesystems of its own: mounts that outlive it, flipped bits, files written in place, images, a full one."""

import json
import mmap
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lamella.host.linux import mounts
from lamella.host.storage.btrfs import BtrfsDriver
from lamella.host.storage.driver import Base, Layered, Node, Source
from lamella.host.storage.reflink import NOCOW, attributes
from lamella.model.errors import Invalid, NoRoom, Unavailable
from lamella.model.ids import new_id
from lamella.model.storage import Feature, VolumeForm

pytestmark = pytest.mark.root
sys.path.insert(0, str(Path(__file__).parent / "contract"))
from lab_btrfs import why_not  # noqa: E402

MIB = 1 << 20
Make = Callable[..., BtrfsDriver]


def tool(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done
    return done.stdout


def io(node: Node, *commands: str) -> None:
    given = [part for command in commands for part in ("-c", command)]
    done = subprocess.run(["qemu-io", *given, f"json:{json.dumps(node)}"], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0 and "failed" not in done.stdout + done.stderr, done


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    if reason := why_not():
        pytest.skip(reason)
    path = tmp_path / "pool"
    yield lambda **options: BtrfsDriver(path, {"image": "256MiB", **options})
    while mounts.below(path):
        tool("umount", path)


@pytest.fixture
async def pool(make: Make) -> AsyncIterator[BtrfsDriver]:
    pool = make()
    await pool.open()
    yield pool
    with suppress(OSError):
        await pool.close()


async def test_another_filesystem_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="is on no btrfs") as refused:
        await BtrfsDriver(tmp_path / "plain").open()
    assert "image=" in refused.value.hint
    for options in ({"image": "many"}, {"nocow": "perhaps"}, {"data": "thrice"}, {"speed": "1"}):
        with pytest.raises(Invalid):
            BtrfsDriver(tmp_path / "plain", options)


async def test_a_mount_in_use_outlives_the_pool_and_is_taken_over(make: Make, pool: BtrfsDriver) -> None:
    id = new_id("volume")
    handle = await pool.create(id, VolumeForm.BLOCK, MIB)
    io(await pool.node(id), "write -P 1 0 64k", "flush")
    held = os.open(handle.path, os.O_RDONLY)
    await pool.close()
    assert len(mounts.below(pool.path)) == 1
    again = make()
    await again.open()
    assert len(mounts.below(pool.path)) == 1 and await again.inventory() == {id}
    os.close(held)
    await again.close()
    assert not mounts.below(pool.path)
    assert str(pool.path) not in tool("losetup", "--list")
    await pool.open()
    io(await pool.node(id), "read -P 1 0 64k")
    assert not isinstance(pool, Layered)


async def test_a_directory_of_a_btrfs_is_a_pool(pool: BtrfsDriver) -> None:
    inner = BtrfsDriver(pool.path / "inner")
    status = await inner.open()
    assert status.free > 0
    id = new_id("volume")
    data = (await inner.create(id, VolumeForm.FILESYSTEM, 0)).path
    tool("btrfs", "subvolume", "create", data / "nested")
    (data / "nested" / "file").touch()
    await inner.snapshot(id, new_id("snapshot"))
    await inner.delete(id)
    assert await inner.inventory() == set() and not list((inner.path / ".trash").iterdir())
    await inner.close()


@pytest.mark.parametrize("data", ["single", "dup"])
async def test_a_flipped_bit_is_found_and_mended_where_there_are_two(make: Make, data: str) -> None:
    pool = make(data=data)
    await pool.open()
    id, other = new_id("volume"), new_id("volume")
    for each in (id, other):
        handle = await pool.create(each, VolumeForm.BLOCK, 2 * MIB)
        handle.path.write_bytes((each.encode() * 4096)[: 64 << 10] + bytes(2 * MIB - (64 << 10)))
    assert (await pool.scrub(repair=True))[1] == []
    await pool.close()
    image = pool.path.with_name("pool.btrfs")
    with image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        where = content.find(id.encode() * 100)
        assert where > 0
        content[where + 1000] ^= 1
    await pool.open()
    read, found = await pool.scrub(repair=True)
    assert read > 0 and len(found) == 1
    if data == "single":
        assert found[0].subject == id and "disk.raw" in found[0].problem and not found[0].mended
        assert any("errors" in finding.problem for finding in await pool.check(repair=False))
    else:
        assert found[0].mended
        io(await pool.node(id), f"read -P {ord('v')} 0 1")
        assert (await pool.scrub(repair=True))[1] == []
    await pool.close()


async def test_files_written_in_place_have_no_checksums_but_sealed_ones(make: Make) -> None:
    pool = make(nocow="yes")
    await pool.open()
    assert not {Feature.CHECKSUM, Feature.REDUNDANT} & pool.features
    id, snapshot = new_id("volume"), new_id("snapshot")
    handle = await pool.create(id, VolumeForm.BLOCK, 4 * MIB)
    io(await pool.node(id), "write -P 1 0 1M", "flush")
    await pool.snapshot(id, snapshot)
    clone = await pool.create(new_id("volume"), VolumeForm.BLOCK, 0, source=Source(volume=id, snapshot=snapshot))
    for path in (handle.path, clone.path):
        with path.open("rb") as file:
            assert attributes(file.fileno()) & NOCOW
    io(await pool.node(id), "write -P 2 0 1M", "flush")
    io(await pool.node(clone.id), "read -P 1 0 1M")
    assert (await pool.scrub(repair=True))[1] == []
    kept = next(path for path in handle.path.parent.glob("layer-*"))
    with kept.open("r+b") as file:
        file.write(b"\x09")
    assert [finding.subject for finding in (await pool.scrub(repair=True))[1]] == [id]
    await pool.close()


async def test_an_image_near_by_shares_its_blocks_and_one_elsewhere_lies_below(
    pool: BtrfsDriver, tmp_path: Path
) -> None:
    for place, format in ((pool.path, "raw"), (tmp_path, "qcow2")):
        image = place / "image.raw"
        image.write_bytes(b"\x07" * MIB)
        id, snapshot = new_id("volume"), new_id("snapshot")
        handle = await pool.create(id, VolumeForm.BLOCK, 8 * MIB, base=Base(path=image, size=MIB))
        assert (handle.format, handle.size) == (format, 8 * MIB)
        io(await pool.node(id), "read -P 7 0 1M", "read -P 0 1M 7M", "write -P 8 0 64k", "flush")
        await pool.snapshot(id, snapshot)
        io(await pool.node(id), "write -P 9 0 64k", "flush")
        clone = new_id("volume")
        await pool.create(clone, VolumeForm.BLOCK, 0, source=Source(volume=id, snapshot=snapshot))
        io(await pool.node(clone), "read -P 8 0 64k", "read -P 7 64k 960k", "write -P 5 1M 64k")
        await pool.restore(id, snapshot)
        io(await pool.node(id), "read -P 8 0 64k", "read -P 0 1M 1M")
        await pool.drop(id, snapshot)
        await pool.delete(id)
        io(await pool.node(clone), "read -P 8 0 64k", "read -P 7 64k 960k", "read -P 5 1M 64k")
        assert image.read_bytes() == b"\x07" * MIB
    assert await pool.check(repair=False) == []


async def test_a_full_pool_says_so_and_is_well_again(pool: BtrfsDriver) -> None:
    id = new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 1 << 40)
    with pytest.raises(OSError, match="space"):
        _fill(pool.path / "ballast")
    made: list[str] = []
    with pytest.raises(NoRoom, match="full"):
        for _ in range(4000):
            made.append(new_id("volume"))
            await pool.create(made[-1], VolumeForm.FILESYSTEM, 0)
    assert made[-1] not in await pool.inventory()
    (pool.path / "ballast").unlink()
    tool("btrfs", "filesystem", "sync", pool.path)
    assert await pool.inventory() == {id, *made[:-1]}
    await pool.create(new_id("volume"), VolumeForm.BLOCK, MIB)
    assert await pool.check(repair=False) == []


def _fill(path: Path) -> None:
    with path.open("wb") as file:
        while True:
            file.write(os.urandom(MIB))
            os.fsync(file.fileno())
