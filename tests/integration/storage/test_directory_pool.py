"""The directory driver on real filesystems: a full one, a mount inside a volume, immutable files, a hostile tree."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.host.storage.directory import DirectoryDriver
from lamella.model.errors import Conflict, NoRoom
from lamella.model.ids import new_id
from lamella.model.storage import VolumeForm

pytestmark = pytest.mark.root


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=90)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own with room for 64 pages and 40 inodes."""
    mount = tmp_path / "small"
    mount.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=40", "tmpfs", mount)
    yield mount
    run("umount", "-R", mount)


async def test_a_full_pool_says_so_and_keeps_nothing_half_made(small: Path) -> None:
    pool = DirectoryDriver(small)
    await pool.open()
    made: list[str] = []
    with pytest.raises(NoRoom, match="is full"):
        for _ in range(40):
            id = new_id("volume")
            await pool.create(id, VolumeForm.FILESYSTEM, 0)
            made.append(id)
    assert made
    assert await pool.inventory() == set(made)
    assert list((small / ".staging").iterdir()) == []
    for id in made:
        await pool.delete(id)
    await pool.create(new_id("volume"), VolumeForm.FILESYSTEM, 0)
    await pool.close()


async def test_a_mount_inside_forbids_deletion(tmp_path: Path) -> None:
    pool = DirectoryDriver(tmp_path / "pool")
    await pool.open()
    handle = await pool.create(new_id("volume"), VolumeForm.FILESYSTEM, 0)
    inside = handle.path / "with space"
    inside.mkdir()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    run("mount", "--bind", precious, inside)
    try:
        with pytest.raises(Conflict, match="with space is mounted"):
            await pool.delete(handle.id)
        assert await pool.inventory() == {handle.id}
    finally:
        run("umount", inside)
    await pool.delete(handle.id)
    assert (precious / "file").exists()


async def test_a_mount_in_the_trash_survives_the_start(tmp_path: Path) -> None:
    pool = DirectoryDriver(tmp_path / "pool")
    await pool.open()
    inside = pool.path / ".trash" / "remains" / "data"
    inside.mkdir(parents=True)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    run("mount", "--bind", precious, inside)
    try:
        status = await DirectoryDriver(pool.path).open()
        assert "LeftoversStay" in [condition.reason for condition in status.conditions]
        assert (precious / "file").exists()
    finally:
        run("umount", inside)
    await DirectoryDriver(pool.path).open()
    assert list((pool.path / ".trash").iterdir()) == []


async def test_immutable_files_do_not_keep_a_volume(tmp_path: Path) -> None:
    pool = DirectoryDriver(tmp_path / "pool")
    await pool.open()
    handle = await pool.create(new_id("volume"), VolumeForm.FILESYSTEM, 0)
    (handle.path / "sub" / "inner").mkdir(parents=True)
    for name in ("file", "sub/file", "sub/inner/file"):
        (handle.path / name).write_text("kept?")
    try:
        for flag, name in (("+i", "file"), ("+a", "sub/file"), ("+i", "sub/inner"), ("+i", "sub")):
            run("chattr", flag, handle.path / name)
    except subprocess.CalledProcessError:
        pytest.skip("the filesystem of the tests knows no immutable attribute")
    await pool.delete(handle.id)
    assert list((pool.path / ".trash").iterdir()) == []
