"""The gluster driver on real servers: it mounts by itself, goes on without a brick, and mounts again when its client died."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.gluster import Gluster

from lamella.host.linux import mounts
from lamella.host.linux.processes import MARK, command_line
from lamella.host.storage import qemu_io
from lamella.host.storage.driver import Layered, Placed
from lamella.host.storage.gluster import GlusterDriver
from lamella.model.errors import Conflict, Invalid, Unavailable
from lamella.model.ids import new_id
from lamella.model.storage import Feature, VolumeForm

pytestmark = pytest.mark.root
MIB = 1 << 20


@pytest.fixture(scope="module")
def copies(gluster: Gluster) -> str:
    return gluster.volume("copies", copies=2)


def driver(source: str, place: Path, **options: str) -> GlusterDriver:
    made = GlusterDriver(Path(source), options)
    assert isinstance(made, Placed) and isinstance(made, Layered)
    made.place(place, "lamella-test")
    return made


@pytest.fixture
async def pool(in_gluster: Gluster, copies: str, tmp_path: Path) -> AsyncIterator[GlusterDriver]:
    made = driver(copies, tmp_path / "place")
    await made.open()
    yield made
    await made.open()
    for id in await made.inventory():
        await made.delete(id)
    await made.close()
    assert mounts.below(tmp_path) == []


def client(point: Path) -> int:
    """The process that serves the mount."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return next(pid for pid in pids if command_line(pid)[-2:-1] == [os.fsencode(point)])


async def test_it_mounts_what_outlives_the_daemon_and_unmounts_what_nobody_uses(
    pool: GlusterDriver, copies: str, tmp_path: Path
) -> None:
    assert {Feature.SHARED, Feature.REDUNDANT, Feature.BLOCK, Feature.FILESYSTEM} <= set(pool.features)
    assert pool.point is not None
    pid = client(pool.point)
    assert f"{MARK}=lamella-test".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    id = new_id("volume")
    handle = await pool.create(id, VolumeForm.BLOCK, 8 * MIB)
    await qemu_io.tell(await pool.node(id), ["write -P 4 0 1M", "flush"])
    with handle.path.open("rb"):
        await pool.close()
        assert [entry.kind for entry in mounts.below(tmp_path)] == ["fuse.glusterfs"], "it is in use"
        again = driver(copies, tmp_path / "place")
        await again.open()
        assert client(pool.point) == pid, "the mount was kept"
    await qemu_io.tell(await again.node(id), ["read -P 4 0 1M"])
    await again.close()
    assert mounts.below(tmp_path) == []


async def test_a_brick_may_end(pool: GlusterDriver, in_gluster: Gluster) -> None:
    id = new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 8 * MIB)
    node = await pool.node(id)
    await qemu_io.tell(node, ["write -P 1 0 1M", "flush"])
    bricks = [
        pid
        for pid in in_gluster.pids()
        if b"copies1" in b" ".join(command_line(pid)) and b"--brick-name" in command_line(pid)
    ]
    assert len(bricks) == 1
    os.kill(bricks[0], signal.SIGKILL)
    await qemu_io.tell(node, ["write -P 2 1M 1M", "flush", "read -P 1 0 1M", "read -P 2 1M 1M"])
    in_gluster.tell("volume", "start", "copies", "force")
    in_gluster.tell("volume", "heal", "copies", check=False)


async def test_a_dead_client_is_started_again(pool: GlusterDriver, copies: str, tmp_path: Path) -> None:
    id = new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 8 * MIB)
    assert pool.point is not None
    os.kill(client(pool.point), signal.SIGKILL)
    await asyncio.sleep(0.2)
    with pytest.raises(Unavailable):
        await pool.status()
    again = driver(copies, tmp_path / "place")
    await again.open()
    assert await again.inventory() == {id}
    await again.close()


async def test_what_cannot_be_mounted_says_why(in_gluster: Gluster, copies: str, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be mounted"):
        await driver("10.99.0.1:/nothing", tmp_path / "one").open()
    with pytest.raises(Invalid, match="is no path"):
        await driver("nothing", tmp_path / "two").open()
    with pytest.raises(Conflict, match="is mounted at"):
        await driver(copies, tmp_path / "three", mount="/proc").open()
    for _ in range(900):
        if not mounts.below(tmp_path):
            break
        await asyncio.sleep(0.1)  # a client that gave up is on its way out
    assert mounts.below(tmp_path) == []
