"""Block volumes that begin as the disk of an image: by qemu-img and qemu-io, on a real filesystem."""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.host.storage.directory import DirectoryDriver
from lamella.host.storage.driver import Base, VolumeHandle
from lamella.model.errors import Invalid, NoRoom, Unavailable
from lamella.model.ids import new_id
from lamella.model.storage import VolumeForm

MIB = 1 << 20


@pytest.fixture
async def pool(tmp_path: Path) -> DirectoryDriver:
    pool = DirectoryDriver(tmp_path / "pool")
    await pool.open()
    return pool


@pytest.fixture
def base(tmp_path: Path) -> Base:
    """An image's disk of 8 MiB and a sector, as nobody may write it."""
    path = tmp_path / "image disk, with a comma"
    path.write_bytes(b"base" * (2 * MIB) + bytes(512))
    path.chmod(0o400)
    return Base(path=path, size=8 * MIB + 512)


def qemu_io(handle: VolumeHandle, *commands: str) -> str:
    arguments = [part for command in commands for part in ("-c", command)]
    return subprocess.run(
        ["qemu-io", "-f", handle.format, *arguments, str(handle.path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=90,
    ).stdout


def described(handle: VolumeHandle) -> dict[str, object]:
    out = subprocess.run(
        ["qemu-img", "info", "--output=json", str(handle.path)], check=True, capture_output=True, timeout=90
    ).stdout
    return json.loads(out)


async def test_a_clone_reads_its_base_and_never_writes_it(pool: DirectoryDriver, base: Base) -> None:
    before = hashlib.sha256(base.path.read_bytes()).digest(), base.path.stat().st_mtime_ns
    one = await pool.create(new_id("volume"), VolumeForm.BLOCK, 64 * MIB, base=base)
    other = await pool.create(new_id("volume"), VolumeForm.BLOCK, 0, base=base)
    assert (one.format, one.base, one.size) == ("qcow2", base, 64 * MIB)
    qemu_io(one, "write -P 0x77 1M 4k", "write -P 0x78 60M 64k", "flush")
    qemu_io(one, "read -P 0x77 1M 4k", "read -P 0 32M 1M")
    assert "basebasebasebase" in qemu_io(one, "read -v 2M 16")
    assert "basebasebasebase" in qemu_io(other, "read -v 1M 16")
    assert (hashlib.sha256(base.path.read_bytes()).digest(), base.path.stat().st_mtime_ns) == before


async def test_a_clone_is_small_and_made_for_small_writes(pool: DirectoryDriver, base: Base) -> None:
    handle = await pool.create(new_id("volume"), VolumeForm.BLOCK, 64 << 30, base=base)
    told = described(handle)
    assert told["virtual-size"] == 64 << 30 and told["cluster-size"] == 128 << 10
    assert told["backing-filename"] == str(base.path) and told["backing-filename-format"] == "raw"
    specific = told["format-specific"]
    assert isinstance(specific, dict) and specific["data"]["extended-l2"] is True
    assert handle.path.stat().st_mode & 0o777 == 0o600
    at_first = await pool.used(handle.id)
    assert at_first < MIB
    qemu_io(handle, "write 4M 4k", "flush")
    assert at_first < await pool.used(handle.id) < at_first + MIB


async def test_a_clone_outlives_the_driver(pool: DirectoryDriver, base: Base) -> None:
    id = new_id("volume")
    made = await pool.create(id, VolumeForm.BLOCK, 16 * MIB, base=base)
    again = DirectoryDriver(pool.path)
    await again.open()
    assert await again.inventory() == {id}
    assert await again.handle(id) == made
    assert await again.create(id, VolumeForm.BLOCK, 99 * MIB, base=base) == made
    await again.delete(id)
    await again.delete(id)
    assert await again.inventory() == set() and not list((pool.path / ".trash").iterdir())
    assert base.path.exists()


async def test_what_is_refused_leaves_nothing(pool: DirectoryDriver, base: Base, tmp_path: Path) -> None:
    id = new_id("volume")
    with pytest.raises(Invalid, match="cannot hold the image's disk"):
        await pool.create(id, VolumeForm.BLOCK, 8 * MIB, base=base)
    with pytest.raises(Unavailable, match="cannot be read"):
        await pool.create(id, VolumeForm.BLOCK, 0, base=Base(path=tmp_path / "gone", size=MIB))
    with pytest.raises(Unavailable, match="has 8389120 bytes"):
        await pool.create(id, VolumeForm.BLOCK, 0, base=Base(path=base.path, size=MIB))
    assert await pool.inventory() == set() and not list((pool.path / ".staging").iterdir())


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own that has less room than an empty clone takes."""
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", mount], check=True, timeout=90)
    yield mount
    subprocess.run(["umount", mount], check=True, timeout=90)


@pytest.mark.root
async def test_a_full_pool_makes_no_clone(small: Path, base: Base) -> None:
    pool = DirectoryDriver(small)
    await pool.open()
    with pytest.raises(NoRoom, match="is full"):
        await pool.create(new_id("volume"), VolumeForm.BLOCK, 0, base=base)
    assert await pool.inventory() == set() and not list((small / ".staging").iterdir())
    await pool.close()
