"""Volumes of Ceph and iSCSI as the storage process opens them: written through its file, kept and cloned below it, grown, fenced off."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests import tgt as tgt_of_tests
from tests.ceph import Ceph
from tests.tgt import small_tgt

from lamella.host.compute.driver import Home
from lamella.host.linux import mounts
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.linux.processes import marked
from lamella.host.storage import qemu_io
from lamella.host.storage.blocks import Stack
from lamella.host.storage.driver import Source
from lamella.host.storage.iscsi import IscsiDriver
from lamella.host.storage.process.daemon import QemuStorageDaemon
from lamella.host.storage.rbd import RbdDriver
from lamella.model.ids import new_id
from lamella.model.storage import VolumeForm

pytestmark = [pytest.mark.root, pytest.mark.timeout(600, method="thread")]
MIB = 1 << 20


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "home", f"lamella-test-pools{os.getpid()}")
    home.run.mkdir(parents=True)
    home.path.chmod(0o700)
    yield home
    left = [str(pid) for pid in marked(home.mark)] + [entry.point for entry in mounts.below(home.path)]
    Cgroups(ROOT, home.mark).remove()
    assert not left


@pytest.fixture
async def daemon(home: Home) -> AsyncIterator[QemuStorageDaemon]:
    daemon = QemuStorageDaemon(home)
    assert await daemon.open() == ""
    yield daemon
    await daemon.end()


async def put(file: Path, content: bytes, offset: int) -> None:
    def write() -> None:
        descriptor = os.open(file, os.O_WRONLY)
        try:
            os.pwrite(descriptor, content, offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    await asyncio.to_thread(write)


async def get(file: Path, length: int, offset: int) -> bytes:
    def read() -> bytes:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)

    return await asyncio.to_thread(read)


async def test_an_rbd_volume_is_kept_cloned_and_grown_while_it_is_written(
    ceph: Ceph, daemon: QemuStorageDaemon, tmp_path: Path
) -> None:
    pool = RbdDriver(Path(ceph.pool("served")), {"conf": str(ceph.conf)})
    pool.place(tmp_path / "place", "lamella-test")
    await pool.open()
    id, snapshot, clone = new_id("volume"), new_id("snapshot"), new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 32 * MIB)
    await pool.fence(id)
    await daemon.add(Stack(id=id, node=await pool.node(id)))
    ways = await daemon.export(id)
    assert ways.file is not None
    await put(ways.file, b"first" * 1000, 4096)
    await daemon.flush([id])
    await pool.snapshot(id, snapshot)
    await put(ways.file, b"after" * 1000, 4096)
    await daemon.flush([id])
    delta = await pool.delta(id, snapshot)
    assert delta is not None and [extent.offset for extent in delta] == [4096]
    await pool.create(clone, VolumeForm.BLOCK, 0, source=Source(volume=id, snapshot=snapshot))
    await daemon.add(Stack(id=clone, node=await pool.node(clone)))
    other = await daemon.export(clone)
    assert other.file is not None
    assert await get(other.file, 5000, 4096) == b"first" * 1000
    assert await get(ways.file, 5000, 4096) == b"after" * 1000
    await daemon.resize(id, 64 * MIB)
    await pool.resized(id, 64 * MIB)
    assert await daemon.size(id) == 64 * MIB == (await pool.handle(id)).size
    for open_one in (clone, id):
        await daemon.remove(open_one)
        await pool.fence(open_one)
        await pool.delete(open_one)


async def test_an_iscsi_volume_is_opened_with_a_secret_that_only_its_file_has(
    daemon: QemuStorageDaemon, tmp_path: Path
) -> None:
    if reason := tgt_of_tests.missing():
        pytest.skip(reason)
    with small_tgt(tmp_path / "tgt") as tgt:
        tgt.lun(1, 32 * MIB)
        tgt.demand("lamella", "open-sesame-12")
        secret = tmp_path / "secret"
        secret.write_text("open-sesame-12")
        pool = IscsiDriver(Path(tgt.path), {"user": "lamella", "secret": str(secret)})
        await pool.open()
        id = new_id("volume")
        await pool.create(id, VolumeForm.BLOCK, 16 * MIB)
        await daemon.add(Stack(id=id, node=await pool.node(id)))
        ways = await daemon.export(id)
        assert ways.file is not None
        await put(ways.file, b"data" * 1024, 8192)
        await daemon.flush([id])
        assert await get(ways.file, 4096, 8192) == b"data" * 1024
        for pid in marked(daemon.home.mark):
            assert b"open-sesame" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        await daemon.remove(id)
        await qemu_io.tell(await pool.node(id), ["read -P 100 8192 1", "read -P 0 16k 1M"])
