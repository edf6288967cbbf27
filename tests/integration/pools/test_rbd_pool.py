"""The rbd driver on a real Ceph: who else has an image open is shut out, a flipped bit is found and mended, crashes leave no volume."""

import asyncio
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.ceph import Ceph

from lamella.host.storage import qemu_io
from lamella.host.storage.driver import Base, Fences, Node, Placed, Source
from lamella.host.storage.rbd import RbdDriver
from lamella.model.errors import Conflict, Invalid, NoRoom, Unavailable
from lamella.model.ids import new_id
from lamella.model.storage import Feature, VolumeForm

pytestmark = pytest.mark.root
MIB = 1 << 20


def driver(ceph: Ceph, pool: str, place: Path, **options: str) -> RbdDriver:
    made = RbdDriver(Path(pool), {"conf": str(ceph.conf), **options})
    assert isinstance(made, Placed) and isinstance(made, Fences)
    made.place(place, "lamella-test")
    return made


@pytest.fixture(scope="session")
def volumes_pool(ceph: Ceph) -> str:
    return ceph.pool("volumes")


@pytest.fixture
async def pool(ceph: Ceph, volumes_pool: str, tmp_path: Path) -> AsyncIterator[RbdDriver]:
    made = driver(ceph, volumes_pool, tmp_path / "place")
    await made.open()
    yield made
    for id in sorted(await made.inventory(), reverse=True):
        await made.fence(id)
        await made.delete(id)


class Writer:
    """A qemu-io that keeps a node open, as the storage process does."""

    def __init__(self, node: Node) -> None:
        options, name = qemu_io.source(node)
        self.process = subprocess.Popen(
            ["qemu-io", *options, "-t", "none", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        self._answer(40.0)

    def tell(self, command: str, seconds: float = 90) -> str:
        """Its answer: everything up to the next prompt."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        return self._answer(seconds)

    def _answer(self, seconds: float) -> str:
        assert self.process.stdout is not None
        descriptor, said, deadline = self.process.stdout.fileno(), b"", time.monotonic() + seconds
        while not said.endswith(b"qemu-io> "):
            assert select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0], said
            piece = os.read(descriptor, 65536)
            if not piece:
                break
            said += piece
        return said.decode()

    def end(self) -> None:
        """May be asked again."""
        self.process.kill()
        self.process.wait(90)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@contextmanager
def writing(node: Node) -> Iterator[Writer]:
    writer = Writer(node)
    try:
        yield writer
    finally:
        writer.end()


async def test_after_a_crash_the_next_writer_does_not_wait_for_the_dead_one(pool: RbdDriver) -> None:
    """Without fencing it waits for about 29 seconds, until Ceph has forgotten the dead one's watch."""
    id = new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 64 * MIB)
    node = await pool.node(id)
    with writing(node) as first:
        assert "wrote" in await asyncio.to_thread(first.tell, "write -P 1 0 1M")
        await asyncio.to_thread(first.tell, "flush")
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(90)
        began = time.monotonic()
        await pool.fence(id)
        await qemu_io.tell(node, ["write -P 2 1M 1M", "read -P 1 0 1M", "flush"])
        took = time.monotonic() - began
    # Four commands and an opening; what it would be without is an order of magnitude more, whatever the load.
    assert took < 15, took


async def test_one_who_lives_and_is_fenced_writes_no_more(pool: RbdDriver) -> None:
    id = new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 64 * MIB)
    node = await pool.node(id)
    with writing(node) as first:
        assert "wrote" in await asyncio.to_thread(first.tell, "write -P 1 0 4M")
        await asyncio.to_thread(first.tell, "flush")
        await pool.fence(id)
        await qemu_io.tell(node, ["write -P 2 0 1M", "flush"])
        refused = await asyncio.to_thread(first.tell, "write -P 3 0 4M")
        assert "failed" in refused, refused
    await qemu_io.tell(node, ["read -P 2 0 1M", "read -P 1 1M 3M"])


async def test_what_is_open_is_neither_deleted_nor_rolled_back(pool: RbdDriver, ceph: Ceph) -> None:
    id, snapshot = new_id("volume"), new_id("snapshot")
    await pool.create(id, VolumeForm.BLOCK, 64 * MIB)
    await pool.snapshot(id, snapshot)
    with ceph.forgetful(), writing(await pool.node(id)) as first:
        await asyncio.to_thread(first.tell, "write -P 1 0 64k")
        deleted, restored = await asyncio.gather(pool.delete(id), pool.restore(id, snapshot), return_exceptions=True)
        assert isinstance(deleted, Conflict) and "is open by 127.0.0.1" in deleted.message
        assert isinstance(restored, Conflict) and "is open by" in restored.message
        # A snapshot below an open volume is a request to whoever has it open.
        await pool.snapshot(id, new_id("snapshot"))
        assert await pool.inventory() == {id}
        # Killed, it still has it open as far as Ceph knows: that is waited for.
        first.end()
        await pool.restore(id, snapshot)
        await qemu_io.tell(await pool.node(id), ["read -P 0 0 64k"])
        await pool.delete(id)
    assert await pool.inventory() == set()


async def test_a_clone_is_made_in_the_time_that_a_small_one_takes_and_shares_its_source(pool: RbdDriver) -> None:
    id, snapshot = new_id("volume"), new_id("snapshot")
    await pool.create(id, VolumeForm.BLOCK, 64 * MIB)
    await qemu_io.tell(await pool.node(id), ["write -P 5 0 32M", "flush"])
    await pool.snapshot(id, snapshot)
    clone = new_id("volume")
    handle = await pool.create(clone, VolumeForm.BLOCK, 100 << 30, source=Source(volume=id, snapshot=snapshot))
    assert handle.size == 100 << 30
    assert await pool.used(clone) == 0
    await qemu_io.tell(await pool.node(clone), ["read -P 5 0 32M", "read -P 0 32M 32M", "write -P 6 0 64k", "flush"])
    await qemu_io.tell(await pool.node(id), ["read -P 5 0 32M"])
    with pytest.raises(Conflict, match=clone):
        await pool.drop(id, snapshot)
    with pytest.raises(Conflict, match=clone):
        await pool.delete(id)


async def test_an_images_disk_is_imported_once_and_goes_with_its_last_clone(
    pool: RbdDriver, ceph: Ceph, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"\x2a" * (3 * MIB))
    base = Base(path=disk, size=3 * MIB)
    first, second = new_id("volume"), new_id("volume")
    await asyncio.gather(
        pool.create(first, VolumeForm.BLOCK, 0, base=base), pool.create(second, VolumeForm.BLOCK, 8 * MIB, base=base)
    )
    images = json.loads(ceph.run("rbd", "ls", pool.cluster.pool, "--format", "json"))
    assert len([name for name in images if name.startswith("base.")]) == 1, images
    await qemu_io.tell(await pool.node(second), ["read -P 42 0 3M", "read -P 0 3M 5M"])
    await pool.delete(first)
    assert await pool.check(repair=False) == []
    await pool.delete(second)
    assert [finding.mended for finding in await pool.check(repair=True)] == [True]
    assert json.loads(ceph.run("rbd", "ls", pool.cluster.pool, "--format", "json")) == []


async def test_half_made_and_half_deleted_images_are_no_volumes_and_go(
    pool: RbdDriver, ceph: Ceph, tmp_path: Path
) -> None:
    where = pool.cluster.pool
    owner = (tmp_path / "place" / "owner").read_text()
    for name in (
        f"half.{owner}.{new_id('volume')}.1",
        f"gone.{owner}.{new_id('volume')}.1",
        f"half.other.{new_id('volume')}.1",
        f"gone.other.{new_id('volume')}.1",
    ):
        ceph.run("rbd", "create", "--size", "4M", f"{where}/{name}")
        ceph.run("rbd", "snap", "create", f"{where}/{name}@{new_id('snapshot')}")
    assert await pool.inventory() == set()
    assert len(await pool.check(repair=False)) == 4
    await pool.open()
    left = json.loads(ceph.run("rbd", "ls", where, "--format", "json"))
    assert [name[:11] for name in left] == ["gone.other.", "half.other."], "what another host is at is not ours"
    assert [finding.mended for finding in await pool.check(repair=True)] == [True, False]
    ceph.run("rbd", "snap", "purge", f"{where}/{left[1]}")
    ceph.run("rbd", "rm", f"{where}/{left[1]}")


async def test_a_flipped_bit_is_found_and_mended_from_the_other_copy(ceph: Ceph, tmp_path: Path) -> None:
    pool = driver(ceph, ceph.pool("pair", copies=2), tmp_path / "place")
    ceph.wait(lambda: ceph.ask("health")["status"] == "HEALTH_OK", "the cluster is not well")
    status = await pool.open()
    assert {Feature.REDUNDANT, Feature.CHECKSUM} <= set(status.features)
    id = new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 16 * MIB)
    # Incompressible to a search: bytes that are nowhere else on the OSD's disk.
    needle = b"".join(number.to_bytes(4, "big") + b"lamella!" * 511 + b"scrb" for number in range(64))
    (tmp_path / "needle").write_bytes(needle)
    node = await pool.node(id)
    await qemu_io.tell(node, [f"write -s {tmp_path / 'needle'} 0 {len(needle)}", "flush"])
    flip(ceph.home / "osd1" / "block", needle[4096 * 7 : 4096 * 8])
    _, seen = await pool.scrub(repair=False)
    assert [(finding.subject, finding.mended) for finding in seen] == [(id, False)], seen
    assert "read_error" in seen[0].problem
    _, mended = await pool.scrub(repair=True)
    assert [(finding.subject, finding.mended) for finding in mended] == [(id, True)], mended
    read, clean = await pool.scrub(repair=False)
    assert clean == [] and read >= 2 * len(needle)
    await pool.delete(id)


def flip(device: Path, page: bytes) -> None:
    """One bit of the only place on *device* that holds *page*."""
    step = 64 * MIB
    with device.open("r+b") as file:
        place = -1
        size = device.stat().st_size
        for at in range(0, size, step):
            file.seek(at)
            found = file.read(step + len(page)).find(page)
            if found >= 0:
                place = at + found
                break
        assert place >= 0, "the page is nowhere on the disk"
        file.seek(place + 100)
        byte = file.read(1)[0]
        file.seek(place + 100)
        file.write(bytes([byte ^ 1]))
        file.flush()


async def test_a_user_of_its_own_with_a_keyring_in_a_namespace(ceph: Ceph, volumes_pool: str, tmp_path: Path) -> None:
    """With the capabilities that the page names, and no more."""
    ceph.run("rbd", "namespace", "create", f"{volumes_pool}/tenant")
    keyring = ceph.client(
        "lamella",
        *("mon", "profile rbd, allow r", "mgr", "profile rbd, allow r"),
        *("osd", f"profile rbd pool={volumes_pool} namespace=tenant"),
    )
    pool = driver(ceph, volumes_pool, tmp_path / "place", user="lamella", keyring=str(keyring), namespace="tenant")
    await pool.open()
    id, snapshot = new_id("volume"), new_id("snapshot")
    await pool.create(id, VolumeForm.BLOCK, 16 * MIB)
    await pool.snapshot(id, snapshot)
    node = await pool.node(id)
    assert node["namespace"] == "tenant" and node["user"] == "lamella"
    with writing(node) as first:
        assert "wrote" in await asyncio.to_thread(first.tell, "write -P 1 0 64k")
        await pool.fence(id)
    await qemu_io.tell(node, ["write -P 2 0 64k", "flush"])
    delta = await pool.delta(id, snapshot)
    assert delta is not None and [(extent.offset, extent.length) for extent in delta] == [(0, 65536)]
    await pool.delete(id)
    await pool.close()


async def test_a_pool_over_its_quota_says_so(ceph: Ceph, tmp_path: Path) -> None:
    name = ceph.pool("tiny")
    pool = driver(ceph, name, tmp_path / "place")
    await pool.open()
    id = new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 64 * MIB)
    await qemu_io.tell(await pool.node(id), ["write -P 1 0 8M", "flush"])
    ceph.run("ceph", "osd", "pool", "set-quota", name, "max_bytes", str(4 * MIB))
    ceph.wait(lambda: "POOL_FULL" in ceph.ask("health")["checks"], "the pool is never full")
    try:
        with pytest.raises(NoRoom, match="is full"):
            await pool.create(new_id("volume"), VolumeForm.BLOCK, 64 * MIB)
        status = await pool.status()
        assert any(condition.type == "Healthy" and not condition.status for condition in status.conditions)
    finally:
        ceph.run("ceph", "osd", "pool", "set-quota", name, "max_bytes", "0")
        ceph.wait(lambda: "POOL_FULL" not in ceph.ask("health")["checks"], "the pool stays full")
    await pool.fence(id)
    await pool.delete(id)


async def test_what_cannot_be_reached_or_read_says_what_is_missing(ceph: Ceph, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no pool nowhere"):
        await driver(ceph, "nowhere", tmp_path / "one").open()
    with pytest.raises(Unavailable, match=r"ceph\.conf cannot be read"):
        lost = RbdDriver(Path("volumes"), {"conf": str(tmp_path / "ceph.conf")})
        lost.place(tmp_path / "two", "lamella-test")
        await lost.open()
    with pytest.raises(Invalid, match="no option colour"):
        await driver(ceph, "volumes", tmp_path / "three", colour="blue").open()
    gone = tmp_path / "gone.conf"
    gone.write_text("[global]\nmon_host = v2:127.0.0.1:1/0\nauth_client_required = none\n")
    lost = RbdDriver(Path("volumes"), {"conf": str(gone)})
    began = time.monotonic()
    with pytest.raises(Unavailable):
        await lost.open()
    assert time.monotonic() - began < 60
