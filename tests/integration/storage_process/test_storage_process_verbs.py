"""Every verb on volumes that nothing bad happens to."""

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from process_lab import MIB, Writer, content, lost, overlay, volume

from lamella.host.compute.driver import Home
from lamella.host.storage.blocks import Counted, Stack
from lamella.host.storage.process.daemon import QemuStorageDaemon
from lamella.model.errors import Conflict, NotFound
from lamella.model.storage import IoLimits


async def test_open_write_close(daemon: QemuStorageDaemon, tmp_path: Path) -> None:
    stack = volume(tmp_path)
    await daemon.add(stack)
    await daemon.add(stack)
    ways = await daemon.export("vol_a")
    assert ways == await daemon.export("vol_a")
    assert ways.file is not None and ways.file.stat().st_size == 64 * MIB == await daemon.size("vol_a")
    assert await daemon.inventory() == {"vol_a"}
    writer = Writer(ways.file)
    await writer.go_on()
    acknowledged = await writer.stop()
    await daemon.flush(["vol_a"])
    await daemon.remove("vol_a")
    await daemon.remove("vol_a")
    assert not ways.file.exists() and await daemon.inventory() == set()
    assert not lost(content(stack.node), acknowledged)


async def test_a_file_that_is_written_by_many_at_once_is_whole(daemon: QemuStorageDaemon, tmp_path: Path) -> None:
    """QEMU 7.2 mixes up writes that are under way together: the kernel is told to send one at a time."""
    await daemon.add(volume(tmp_path))
    file = (await daemon.export("vol_a")).file
    assert file is not None
    wrong = await asyncio.to_thread(_write_directly, file, tmp_path / "vol_a.raw")
    assert wrong == 0


def _write_directly(file: Path, below: Path) -> int:
    import mmap

    buffer = mmap.mmap(-1, 8 * MIB)
    for number in range(2048):
        buffer[number * 4096 : (number + 1) * 4096] = b"%015d\n" % number * 256
    fd = os.open(file, os.O_RDWR | os.O_DIRECT)
    try:
        for part in range(4):
            assert os.pwritev(fd, [buffer], part * 8 * MIB) == 8 * MIB
    finally:
        os.close(fd)
    data = below.read_bytes()
    return sum(data[part * 8 * MIB : (part + 1) * 8 * MIB] != buffer[:] for part in range(4))


async def test_resize_is_seen_by_who_has_it(daemon: QemuStorageDaemon, tmp_path: Path) -> None:
    await daemon.add(volume(tmp_path))
    file = (await daemon.export("vol_a")).file
    assert file is not None
    writer = Writer(file)
    await writer.go_on()
    await daemon.resize("vol_a", 96 * MIB)
    assert await daemon.size("vol_a") == 96 * MIB == (tmp_path / "vol_a.raw").stat().st_size
    for _ in range(1800):
        if file.stat().st_size == 96 * MIB:
            break
        await asyncio.sleep(0.05)
    assert file.stat().st_size == 96 * MIB
    await writer.go_on()
    await writer.stop()


async def test_held_writers_wait_and_go_on(daemon: QemuStorageDaemon, tmp_path: Path) -> None:
    stack = volume(tmp_path)
    await daemon.add(stack)
    file = (await daemon.export("vol_a")).file
    assert file is not None
    writer = Writer(file)
    await writer.go_on()
    await daemon.hold(["vol_a"])
    await daemon.hold(["vol_a"])
    before = len(writer.rounds())
    await asyncio.sleep(2)
    assert len(writer.rounds()) - before <= 3
    await daemon.release(["vol_a", "vol_gone"])
    await writer.go_on(50)
    acknowledged = await writer.stop()
    await daemon.remove("vol_a")
    assert not lost(content(stack.node), acknowledged)


async def test_limits_change_while_it_is_written(daemon: QemuStorageDaemon, tmp_path: Path) -> None:
    await daemon.add(volume(tmp_path))
    await daemon.add(volume(tmp_path, "vol_b"))
    file = (await daemon.export("vol_a")).file
    assert file is not None
    writer = Writer(file)
    await writer.go_on()
    await daemon.limit("vol_a", IoLimits(iops=40))
    await asyncio.sleep(0.5)
    began = time.monotonic()
    before = len(writer.rounds())
    await asyncio.sleep(2)
    await writer.go_on(1)
    made = len(writer.rounds()) - before
    most = 10 * (time.monotonic() - began)
    # A round is four writes and a flush, which is not counted. A busy machine makes fewer, never more.
    assert 1 <= made <= 1.2 * most + 3
    await daemon.limit("vol_a", IoLimits(iops=4000), "project/shared")
    await daemon.limit("vol_b", IoLimits(iops=4000), "project/shared")
    await writer.go_on(50)
    await writer.stop()


async def test_two_cannot_open_one_file(daemon: QemuStorageDaemon, tmp_path: Path) -> None:
    stack = volume(tmp_path)
    other = Home(tmp_path / "other", daemon.home.mark)
    other.run.mkdir(parents=True)
    await daemon.add(stack)
    second = QemuStorageDaemon(other)
    await second.open()
    try:
        with pytest.raises(Conflict, match="open elsewhere"):
            await second.add(stack)
        assert await second.inventory() == set()
    finally:
        await second.doors.process.end()
        await second.disks.end()
    with pytest.raises(NotFound):
        await daemon.export("vol_b")


async def test_use_is_counted(home: Home, tmp_path: Path) -> None:
    """What is read and written, of each volume by itself; after the daemon and after the process ended, too."""
    daemon = QemuStorageDaemon(home)
    await daemon.open()
    # At once, as after a start: whose thread is whose has to be told all the same.
    ids = [f"vol_{letter}" for letter in "abcdef"]
    await asyncio.gather(*(daemon.add(volume(tmp_path, id)) for id in ids))
    files = {id: (await daemon.export(id)).file for id in ids}
    before = await daemon.counted()
    assert set(before) == set(ids)

    async def used(number: int) -> None:
        for place, id in enumerate(ids):
            argv = [
                "dd",
                "if=/dev/urandom",
                f"of={files[id]}",
                "bs=1M",
                f"count={place * number}",
                "conv=notrunc,fsync",
            ]
            await asyncio.to_thread(subprocess.run, argv, check=True, timeout=90, capture_output=True)

    def grown(seen: dict[str, Counted], since: dict[str, Counted]) -> list[int]:
        return [round((seen[id].bytes - (since[id].bytes if id in since else 0)) / MIB) for id in ids]

    try:
        await used(1)
        seen = await daemon.counted()
        assert grown(seen, before) == [0, 1, 2, 3, 4, 5]
        assert seen["vol_f"].operations > before["vol_f"].operations
        argv = ["dd", f"if={files['vol_a']}", "of=/dev/null", "bs=1M", "count=7", "iflag=direct"]
        await asyncio.to_thread(subprocess.run, argv, check=True, timeout=90, capture_output=True)
        after = await daemon.counted()
        assert grown(after, seen) == [7, 0, 0, 0, 0, 0]
        await daemon.close()
        daemon = QemuStorageDaemon(home)
        await daemon.open()
        again = await daemon.counted()
        assert grown(again, after) == [0, 0, 0, 0, 0, 0] and again["vol_f"].bytes >= after["vol_f"].bytes
        await used(2)
        assert grown(await daemon.counted(), after) == [0, 2, 4, 6, 8, 10]
        pid = daemon.doors.process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(90):
            while daemon.doors.process.pid in (None, pid) or not daemon.revived:
                await asyncio.sleep(0.02)
        fresh = await daemon.counted()
        assert set(fresh) == set(ids) and grown(fresh, {}) == [0, 0, 0, 0, 0, 0]
        await used(1)
        assert grown(await daemon.counted(), fresh) == [0, 1, 2, 3, 4, 5]
    finally:
        await daemon.end()


@pytest.mark.parametrize("kind", ["raw", "luks", "qcow2", "layered"])
async def test_zeros_are_zeros(daemon: QemuStorageDaemon, tmp_path: Path, kind: str) -> None:
    """A hole punched into the file is one or is refused; it is never what was there before, through a cipher or in a part of a cluster."""
    stack = volume(tmp_path, key=b"k" * 32 if kind == "luks" else b"")
    if kind == "luks":
        await daemon.make_luks(stack)
    if kind == "qcow2":
        path = overlay(tmp_path / "layer", 64 * MIB).path
        stack = Stack(id="vol_a", node={"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}})
    await daemon.add(stack)
    file = (await daemon.export("vol_a")).file
    if kind == "layered":  # raw when the file appeared, and a snapshot since
        await daemon.switch({"vol_a": overlay(tmp_path / "layer", 64 * MIB)})
    said = ["qemu-io", "-f", "raw", "-d", "unmap", "-n", "-c", "write -P 65 0 1M"]
    for offset, length in ((4096, 4096), (65536, 262144), (1 << 19, 4096)):
        said += ["-c", f"write -z -u {offset} {length}", "-c", f"read -P 0 {offset} {length}"]
    argv = [*said, "-c", "read -P 65 0 4096", str(file)]
    done = await asyncio.to_thread(subprocess.run, argv, check=True, timeout=90, capture_output=True, text=True)
    assert "fail" not in done.stdout.lower(), done.stdout
    # What may not be punched may be zeroed.
    zero = ["fallocate", "--zero-range", "--keep-size", "--offset", "700000", "--length", "70000", str(file)]
    await asyncio.to_thread(subprocess.run, zero, check=True, timeout=90)
    look = [*said[:3], "-c", "read -P 0 700000 70000", "-c", "read -P 65 770000 4096", str(file)]
    done = await asyncio.to_thread(subprocess.run, look, check=True, timeout=90, capture_output=True, text=True)
    assert "fail" not in done.stdout.lower(), done.stdout
