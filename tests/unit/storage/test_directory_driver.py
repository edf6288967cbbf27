"""The directory driver makes, finds, measures and removes volumes, and survives what a crash leaves."""

import asyncio
from pathlib import Path

import pytest

from lamella.host.storage.directory import DEFAULT_BLOCK_SIZE, DirectoryDriver
from lamella.host.storage.driver import StorageDriver
from lamella.model.errors import Conflict, Invalid, NotFound, Unavailable
from lamella.model.ids import new_id
from lamella.model.storage import VolumeForm


@pytest.fixture
async def pool(tmp_path: Path) -> DirectoryDriver:
    driver = DirectoryDriver(tmp_path / "pool")
    await driver.open()
    return driver


def test_it_is_a_storage_driver(tmp_path: Path) -> None:
    driver: StorageDriver = DirectoryDriver(tmp_path)
    assert driver.name == "directory"


async def test_open_tells_room_and_what_is_not_enforced(tmp_path: Path) -> None:
    status = await DirectoryDriver(tmp_path / "new" / "pool").open()
    assert status.capacity >= status.free > 0
    assert [condition.reason for condition in status.conditions] == ["NoQuota"]
    assert (tmp_path / "new" / "pool").stat().st_mode & 0o777 == 0o700


async def test_a_filesystem_volume_is_an_empty_directory(pool: DirectoryDriver) -> None:
    id = new_id("volume")
    handle = await pool.create(id, VolumeForm.FILESYSTEM, 0)
    assert handle.path.is_dir() and list(handle.path.iterdir()) == []
    assert handle.path.stat().st_mode & 0o777 == 0o755
    assert await pool.handle(id) == handle
    assert await pool.inventory() == {id}


@pytest.mark.parametrize(
    ("asked", "made"), [(0, DEFAULT_BLOCK_SIZE), (1, 4096), (4096, 4096), (10_000_000, 10_002_432)]
)
async def test_a_block_volume_is_sparse(pool: DirectoryDriver, asked: int, made: int) -> None:
    handle = await pool.create(new_id("volume"), VolumeForm.BLOCK, asked)
    assert (handle.size, handle.path.stat().st_size, handle.format) == (made, made, "raw")
    assert handle.path.stat().st_mode & 0o777 == 0o600
    assert await pool.used(handle.id) < 1 << 20


async def test_create_again_returns_what_is_there(pool: DirectoryDriver) -> None:
    id = new_id("volume")
    first = await pool.create(id, VolumeForm.FILESYSTEM, 0)
    (first.path / "kept").write_text("data")
    again = await asyncio.gather(*(pool.create(id, VolumeForm.FILESYSTEM, 0) for _ in range(5)))
    assert all(handle == first for handle in again)
    assert (first.path / "kept").read_text() == "data"
    with pytest.raises(Conflict, match="filesystem volume, not a block one"):
        await pool.create(id, VolumeForm.BLOCK, 0)


async def test_many_at_once_are_made_once(pool: DirectoryDriver) -> None:
    id = new_id("volume")
    handles = await asyncio.gather(*(pool.create(id, VolumeForm.BLOCK, 1 << 20) for _ in range(8)))
    assert len({handle.path for handle in handles}) == 1
    assert list((pool.path / ".staging").iterdir()) == []
    assert await pool.inventory() == {id}


async def test_used_follows_the_data(pool: DirectoryDriver) -> None:
    handle = await pool.create(new_id("volume"), VolumeForm.FILESYSTEM, 0)
    before = await pool.used(handle.id)
    (handle.path / "file").write_bytes(b"x" * 1_000_000)
    assert 1_000_000 <= await pool.used(handle.id) - before <= 1_100_000


async def test_delete_is_whole_and_idempotent(pool: DirectoryDriver) -> None:
    handle = await pool.create(new_id("volume"), VolumeForm.FILESYSTEM, 0)
    (handle.path / "sub").mkdir()
    (handle.path / "sub" / "file").touch()
    await pool.delete(handle.id)
    await pool.delete(handle.id)
    assert await pool.inventory() == set()
    assert list((pool.path / ".trash").iterdir()) == []
    with pytest.raises(NotFound):
        await pool.handle(handle.id)
    with pytest.raises(NotFound):
        await pool.used(handle.id)


async def test_many_deletions_at_once(pool: DirectoryDriver) -> None:
    ids = [new_id("volume") for _ in range(10)]
    for id in ids:
        handle = await pool.create(id, VolumeForm.FILESYSTEM, 0)
        (handle.path / "sub" / "deeper").mkdir(parents=True)
    await asyncio.gather(*(pool.delete(id) for id in ids))
    assert await pool.inventory() == set()
    assert list((pool.path / ".trash").iterdir()) == []


async def test_what_a_crash_left_is_cleared_and_never_a_volume(pool: DirectoryDriver) -> None:
    kept = await pool.create(new_id("volume"), VolumeForm.FILESYSTEM, 0)
    half_made = pool.path / ".staging" / "vol_half"
    half_deleted = pool.path / ".trash" / "vol_gone"
    for directory in (half_made, half_deleted):
        (directory / "data" / "inner").mkdir(parents=True)
        (directory / "data" / "file").touch()
    again = DirectoryDriver(pool.path)
    await again.open()
    assert not half_made.exists() and not half_deleted.exists()
    assert await again.inventory() == {kept.id}
    assert await again.handle(kept.id) == kept


@pytest.mark.parametrize("id", ["../etc", "", "vol_1", "vol_" + "0" * 25 + "/", "/"])
async def test_only_ids_name_volumes(pool: DirectoryDriver, id: str) -> None:
    for verb in (pool.handle, pool.used, pool.delete):
        with pytest.raises(Invalid):
            await verb(id)
    with pytest.raises(Invalid):
        await pool.create(id, VolumeForm.FILESYSTEM, 0)


async def test_a_path_that_is_no_directory_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="cannot be used"):
        await DirectoryDriver(tmp_path / "file").open()
