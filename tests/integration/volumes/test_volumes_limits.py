"""Limits seen through a mount, also by who only writes to the page cache; a pool that fills up under a writer."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from volumes_lab import MIB, VolumesLab, ext4_volume, new_volume

from lamella.host.linux import syscalls
from lamella.host.storage.process.daemon import QemuStorageDaemon
from lamella.model.errors import Unsupported
from lamella.model.instance import Isolation
from lamella.model.resource import new_resource
from lamella.model.storage import IoLimits, PoolSpec, PoolStatus, VolumeForm, VolumeSpec, VolumeStatus
from lamella.model.storage_requests import LimitVolume, OpenPool

RATE = 16 * MIB


def written(path: Path, size: int, *, seconds: float = 90) -> float:
    """Write *size* bytes through the page cache, and wait until they are in the volume: for how long, in seconds."""
    began = time.monotonic()
    block = os.urandom(MIB)
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(block)
            assert time.monotonic() - began < seconds
        file.flush()
        os.fsync(file.fileno())
    return time.monotonic() - began


async def test_buffered_writes_are_held_to_the_limit_and_a_new_one_counts_at_once(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume(size=256 * MIB, limits=IoLimits(bandwidth=RATE)))
    mounted = await lab.attach(data, "inst_one")
    took = await asyncio.to_thread(written, mounted.path / "slow", 48 * MIB)
    # One second's worth may go at once.
    assert took >= (48 * MIB / RATE) - 1.2, f"{48 / took:.1f} MiB/s are more than {RATE // MIB}"
    data.spec.limits = IoLimits()
    await lab.ask(LimitVolume(volume=data), type(None))
    fast = await asyncio.to_thread(written, mounted.path / "fast", 48 * MIB)
    assert fast < took / 1.5
    # A volume keeps its limits over a restart of the daemon, and only one that can be limited takes any.
    tree = new_resource(
        "volume", "tree", VolumeSpec(form=VolumeForm.FILESYSTEM, limits=IoLimits(iops=10)), VolumeStatus()
    )
    with pytest.raises(Unsupported, match="limited"):
        await lab.create(tree)


@contextmanager
def small_filesystem(place: Path, size: int) -> Iterator[Path]:
    """A filesystem of *size* bytes of its own."""
    place.mkdir()
    syscalls.mount("lamella-test", str(place), "tmpfs", 0, f"size={size}")
    try:
        yield place
    finally:
        syscalls.umount(str(place))


@pytest_asyncio.fixture
async def tight(lab: VolumesLab) -> AsyncIterator[VolumesLab]:
    """Its pool ``tight`` has 256 MiB."""
    with small_filesystem(lab.home.path / "small", 256 * MIB) as place:
        pool = new_resource("pool", "tight", PoolSpec(path=str(place / "pool"), warn_below=0.4), PoolStatus())
        await lab.ask(OpenPool(pool=pool), PoolStatus)
        yield lab
        await lab.wing.teardown()
        await lab.wing.parts.pools.let_go("tight")


async def heard(lab: VolumesLab, type: str) -> str:
    async with asyncio.timeout(90):
        while True:
            for kind, subject, message in lab.events:
                if (kind, subject) == (type, "tight"):
                    return message
            await asyncio.sleep(0.05)


async def test_a_pool_that_fills_up_holds_its_writer_until_there_is_room(tight: VolumesLab) -> None:
    # Promised more than there is.
    data = await tight.create(ext4_volume(size=512 * MIB, pool="tight", limits=IoLimits(bandwidth=64 * MIB)))
    mounted = await tight.attach(data, "inst_one")
    ballast = tight.home.path / "small" / "ballast"
    ballast.write_bytes(bytes(96 * MIB))
    content = [os.urandom(MIB) for _ in range(4)]

    def write() -> None:
        with (mounted.path / "file").open("wb") as file:
            for number in range(160):
                file.write(content[number % 4])
                if number % 8 == 7:
                    file.flush()
                    os.fsync(file.fileno())

    writer = asyncio.ensure_future(asyncio.to_thread(write))
    assert "left" in await heard(tight, "pool.low")
    await heard(tight, "pool.full")
    await asyncio.sleep(0.5)
    assert not writer.done()
    left = os.statvfs(ballast.parent).f_bavail * os.statvfs(ballast.parent).f_frsize
    assert left > 0, "it was held too late"
    ballast.unlink()
    async with asyncio.timeout(90):
        await writer
    await heard(tight, "pool.room")
    assert (mounted.path / "file").read_bytes() == b"".join(content * 40)
    await tight.wing.detach("inst_one")
    mounted = await tight.attach(data, "inst_one")
    assert (mounted.path / "file").read_bytes() == b"".join(content * 40)


async def test_what_a_deleted_volume_held_is_in_no_new_one(tight: VolumesLab) -> None:
    """Space is used again many times over: nothing of the one before is ever seen, in clear or under another key."""
    mark = b"FOREIGN-" + os.urandom(8).hex().encode()
    for turn in range(12):
        data = await tight.create(new_volume(f"v{turn}", 100 * MIB, pool="tight"))
        disk = await tight.attach(data, "inst_vm", Isolation.UNIKERNEL)

        def look_and_write(path: Path = disk.path) -> int:
            with path.open("r+b") as file:
                found = sum(block.count(mark) for block in iter(lambda: file.read(4 * MIB), b""))
                file.seek(0)
                for _ in range(60):
                    file.write((mark * (MIB // len(mark)))[:MIB])
                file.flush()
                os.fsync(file.fileno())
            return found

        assert await asyncio.to_thread(look_and_write) == 0
        await tight.wing.detach("inst_vm")
        await tight.delete(data)


async def test_what_a_former_daemon_held_goes_on_when_there_is_room(tight: VolumesLab) -> None:
    data = await tight.create(ext4_volume(pool="tight", limits=IoLimits(bandwidth=64 * MIB)))
    mounted = await tight.attach(data, "inst_one")
    ballast = tight.home.path / "small" / "ballast"
    room = os.statvfs(ballast.parent)
    ballast.write_bytes(bytes(room.f_bavail * room.f_frsize - 4 * MIB))
    await heard(tight, "pool.full")
    assert await settled(tight, data.id, held=True)
    await tight.wing.close()
    ballast.unlink()
    await tight.reopen()
    spec = PoolSpec(path=str(ballast.parent / "pool"), warn_below=0.4)
    await tight.wing.use_pools([new_resource("pool", "tight", spec, PoolStatus())])
    assert await settled(tight, data.id, held=False)
    async with asyncio.timeout(90):
        await asyncio.to_thread(written, mounted.path / "file", 8 * MIB)


async def settled(lab: VolumesLab, id: str, *, held: bool) -> IoLimits:
    """Its limits, when the storage process has it so."""
    daemon = lab.wing.parts.daemon
    assert isinstance(daemon, QemuStorageDaemon)
    async with asyncio.timeout(90):
        while (opened := daemon.known(id)).held is not held:
            await asyncio.sleep(0.05)
    return opened.limits
