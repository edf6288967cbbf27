"""Pools that go away and come back, whose filesystem stands still, or that another daemon has; chains that were broken by hand."""

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from volumes_child import Order
from volumes_lab import MIB, VolumesLab, directory_volume, ext4_volume, guest_of, new_snapshot, new_volume, problems

from lamella.host.linux import syscalls
from lamella.host.storage import loop, stalls
from lamella.host.storage.directory import DirectoryDriver
from lamella.model.errors import Conflict, Unavailable
from lamella.model.instance import Isolation
from lamella.model.resource import new_resource
from lamella.model.storage import Pool, PoolSpec, PoolStatus, StoragePhase
from lamella.model.storage_requests import CheckStorage, ClosePool, OpenPool, Report

pytestmark = pytest.mark.root

FREEZE, THAW = 0xC0045877, 0xC0045878


class Disk:
    """An ext4 in a file, which can be mounted and taken away."""

    def __init__(self, place: Path) -> None:
        self.image, self.point = place / "disk.img", place / "disk"
        self.point.mkdir()
        with self.image.open("wb") as file:
            file.truncate(256 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", self.image], check=True, timeout=90)

    def mount(self) -> None:
        device, keeper = loop.attach(self.image)
        try:
            syscalls.mount(str(device), str(self.point), "ext4", 0, "")
        finally:
            os.close(keeper)

    def unmount(self) -> None:
        """As somebody would who does not care who still uses it."""
        syscalls.umount(str(self.point))

    def freeze(self, how: int = FREEZE) -> None:
        """What is written from now on waits, as for a server that is away (ioctl_fs(2))."""
        descriptor = os.open(self.point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, how, 0)
        finally:
            os.close(descriptor)

    def thaw(self) -> None:
        self.freeze(THAW)


@pytest_asyncio.fixture
async def disk(lab: VolumesLab) -> AsyncIterator[Disk]:
    disk = Disk(lab.home.path)
    disk.mount()
    yield disk
    with suppress(OSError):
        disk.thaw()
    await lab.wing.teardown()
    await lab.wing.parts.pools.close()
    if os.path.ismount(disk.point):
        disk.unmount()


def pool_on(path: Path, name: str = "far") -> Pool:
    return new_resource("pool", name, PoolSpec(path=str(path)), PoolStatus())


async def opened(lab: VolumesLab, disk: Disk) -> Pool:
    pool = pool_on(disk.point / "pool")
    await lab.ask(OpenPool(pool=pool), PoolStatus)
    return pool


async def test_a_pool_that_was_unmounted_is_never_taken_for_an_empty_one(lab: VolumesLab, disk: Disk) -> None:
    pool = await opened(lab, disk)
    data, other = await lab.create(ext4_volume(pool="far")), await lab.create(ext4_volume("other"))
    mounted = await lab.attach(data, "inst_one")
    (mounted.path / "file").write_text("kept")
    await lab.wing.detach("inst_one")
    disk.unmount()
    # Every verb says what is wrong; nothing is made in the directory below, and nothing counts as gone.
    for verb in (
        lab.attach(data, "inst_one"),
        lab.delete(data),
        lab.take(data),
        lab.create(new_volume("b", pool="far")),
    ):
        with pytest.raises(Unavailable, match="not mounted"):
            await verb
    assert (await lab.wing.pool_status("far")).phase is StoragePhase.FAILED
    report = await lab.ask(CheckStorage(volumes=[data, other], snapshots=[], repair=True), Report)
    assert [finding.subject for finding in report.findings] == ["far"], problems(report)
    assert list(disk.point.iterdir()) == []
    await lab.attach(other, "inst_two")
    # Nor by the next daemon.
    await lab.wing.close()
    await lab.reopen()
    await lab.wing.use_pools([pool])
    assert "no pool is there now" in (await lab.wing.pool_status("far")).conditions[0].message
    with pytest.raises(Unavailable, match="no pool is there now"):
        await lab.attach(data, "inst_one")
    assert list(disk.point.iterdir()) == []
    disk.mount()
    await lab.wing.use_pools([pool])
    mounted = await lab.attach(data, "inst_one")
    assert (mounted.path / "file").read_text() == "kept"
    report = await lab.ask(CheckStorage(volumes=[data, other], snapshots=[]), Report)
    assert problems(report) == []


async def test_a_pool_may_be_renamed_under_a_writer_and_come_back(lab: VolumesLab, disk: Disk) -> None:
    await opened(lab, disk)
    data = await lab.create(new_volume(pool="far"))
    file = (await lab.attach(data, "inst_vm", Isolation.UNIKERNEL)).path
    async with guest_of(file) as guest:
        await guest.write(b"before")
        (disk.point / "pool").rename(disk.point / "elsewhere")
        with pytest.raises(Unavailable, match="moved or removed"):
            await lab.take(data)
        (disk.point / "pool").mkdir()
        with pytest.raises(Unavailable, match="moved or removed"):
            await lab.create(new_volume("b", pool="far"))
        await guest.write(b"meanwhile", 4096)
        (disk.point / "pool").rmdir()
        (disk.point / "elsewhere").rename(disk.point / "pool")
        await lab.take(data)
        await guest.write(b"after", 8192)
        assert [await guest.read(9, offset) for offset in (0, 4096, 8192)] == [
            b"before\0\0\0",
            b"meanwhile",
            b"after\0\0\0\0",
        ]
    await lab.wing.detach("inst_vm")


async def test_another_pool_in_its_place_is_refused_until_it_is_forgotten(lab: VolumesLab) -> None:
    first, second = lab.home.path / "first", lab.home.path / "second"
    pool = pool_on(first)
    await lab.ask(OpenPool(pool=pool), PoolStatus)
    await lab.ask(OpenPool(pool=pool_on(second, "near")), PoolStatus)
    await lab.wing.close()
    first.rename(lab.home.path / "kept")
    second.rename(first)
    await lab.reopen()
    with pytest.raises(Unavailable, match="another pool is there now"):
        await lab.ask(OpenPool(pool=pool), PoolStatus)
    await lab.ask(ClosePool(pool=pool), type(None))
    await lab.ask(OpenPool(pool=pool), PoolStatus)


async def said_by_another_daemon(lab: VolumesLab, request: OpenPool) -> str:
    """What a daemon with the home of *lab* answers, in a process of its own."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).parent / "volumes_child.py"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    order = Order(path=str(lab.home.path), mark=lab.home.mark, request=request)
    said, _ = await asyncio.wait_for(child.communicate(msgspec.json.encode(order) + b"\n"), 90)
    return said.decode()


async def test_two_daemons_have_no_pool_together(lab: VolumesLab) -> None:
    pool = pool_on(lab.home.path / "shared")
    await lab.ask(OpenPool(pool=pool), PoolStatus)
    data = await lab.create(new_volume(pool="far"))
    other = VolumesLab()
    try:
        assert "is open in another daemon" in await said_by_another_daemon(other, OpenPool(pool=pool))
        # Whoever serves the first one's volumes outlives its daemon; the locks of their files keep the second out of them.
        file = (await lab.attach(data, "inst_vm", Isolation.UNIKERNEL)).path
        await lab.wing.close()
        assert "done" in await said_by_another_daemon(other, OpenPool(pool=pool))
        second = DirectoryDriver(Path(pool.spec.path))
        await second.open()
        with pytest.raises(Conflict, match="open"):
            await second.resize(data.id, 128 * MIB)
        await lab.reopen()
        async with guest_of(file) as guest:
            await guest.write(b"still the only one")
        await second.close()
    finally:
        await other.end()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools are tried soon here; what the healthy one may take to answer is still more than a busy machine needs."""
    monkeypatch.setattr(stalls, "LONG", 0.5)
    monkeypatch.setattr(stalls, "PATIENCE", 20.0)


@pytest.mark.usefixtures("hasty")
async def test_a_pool_that_stands_still_holds_up_nobody_else_and_goes_on(lab: VolumesLab, disk: Disk) -> None:
    await opened(lab, disk)
    data = await lab.create(new_volume(pool="far"))
    file = (await lab.attach(data, "inst_vm", Isolation.UNIKERNEL)).path
    async with guest_of(file) as guest:
        await guest.write(b"before")
        disk.freeze()
        # More at once than the loop has threads of its own.
        made = [new_volume(f"v{number}", pool="far") for number in range(40)]
        asked = [*(lab.create(one) for one in made), lab.take(data, snapshot=(snapshot := new_snapshot(data)))]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(one, Unavailable) and "does not answer" in str(one) for one in answers), answers
        assert ("pool.stalled", "far") in [event[:2] for event in lab.events]
        assert (await lab.wing.pool_status("far")).phase is StoragePhase.FAILED
        # Nobody waits for it now, and other pools are as they were.
        with pytest.raises(Unavailable, match="does not answer"):
            await lab.delete(data)
        near = await lab.create(ext4_volume("near"))
        (await lab.attach(near, "inst_two")).path.joinpath("file").write_text("goes on")
        report = await lab.ask(CheckStorage(volumes=[data, near], snapshots=[]), Report)
        assert [finding.subject for finding in report.findings] == ["far"], problems(report)
        # A write that was acknowledged is there; one that waits is done when the pool is back.
        writing = asyncio.ensure_future(guest.write(b"during", 4096))
        await asyncio.sleep(0.5)
        disk.thaw()
        await asyncio.wait_for(writing, 90)
        await happened(lab, "pool.goes-on", "far")
        for volume in made:
            await lab.create(volume)
        await lab.take(data, snapshot=snapshot)
        assert (await guest.read(6), await guest.read(6, 4096)) == (b"before", b"during")
    await lab.wing.detach("inst_vm")
    assert (await lab.wing.pool_status("far")).phase is StoragePhase.READY
    assert await lab.wing.pool("far").inventory() == {data.id, *(one.id for one in made)}
    report = await lab.ask(CheckStorage(volumes=[data, near, *made], snapshots=[snapshot]), Report)
    assert problems(report) == []


async def happened(lab: VolumesLab, type: str, subject: str) -> None:
    async with asyncio.timeout(90):
        while (type, subject) not in [event[:2] for event in lab.events]:
            await asyncio.sleep(0.05)


async def test_a_storage_process_that_stands_still_is_said_to_and_goes_on(lab: VolumesLab) -> None:
    data, other = await lab.create(new_volume()), await lab.create(new_volume("other"))
    tree = await lab.create(directory_volume())
    file = (await lab.attach(data, "inst_vm", Isolation.UNIKERNEL)).path
    records = [lab.home.run / "storage" / f"{role}.json" for role in ("disks", "doors")]
    pids = [json.loads(record.read_bytes())["pid"] for record in records]
    async with guest_of(file) as guest:
        await guest.write(b"before")
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable, match="did not answer"):
                await lab.attach(other, "inst_other", Isolation.UNIKERNEL)
            # What needs no disk goes on.
            (await lab.attach(tree, "inst_tree")).path.joinpath("file").write_text("goes on")
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        await guest.write(b"during", 4096)
        assert (await guest.read(6), await guest.read(6, 4096)) == (b"before", b"during")
        second = (await lab.attach(other, "inst_other", Isolation.UNIKERNEL)).path
        async with guest_of(second) as another:
            await another.write(b"well")
    await lab.wing.detach("inst_vm")
    await lab.wing.detach("inst_other")
    assert problems(await lab.ask(CheckStorage(volumes=[data, other, tree], snapshots=[]), Report)) == []
