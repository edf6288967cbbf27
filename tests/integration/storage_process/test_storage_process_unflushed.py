"""What was written and acknowledged and not flushed, when ``disks`` is killed: it is in the kernel's hands where the file is raw, and
qcow2 keeps where it lies to itself until somebody flushes."""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

from process_lab import MIB, overlay, volume
from test_storage_process_crashes import kill, settled

from lamella.host.storage.process.daemon import QemuStorageDaemon

# Writes past the page cache, tells, waits for a word, flushes, and tells how many of its blocks are not what it wrote.
_WRITER = """
import mmap, os, sys
file, first = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT), int(sys.argv[2])
page = mmap.mmap(-1, 4096)
for number in range(32):
    page[:] = bytes([first + number]) * 4096
    os.pwrite(file, page, number * 256 * 1024)
if sys.argv[3] == "flush":
    os.fsync(file)
print("written", flush=True)
sys.stdin.readline()
os.fsync(file)
lost = 0
for number in range(32):
    os.preadv(file, [page], number * 256 * 1024)
    lost += page[:] != bytes([first + number]) * 4096
print(lost, flush=True)
"""


async def lost(daemon: QemuStorageDaemon, file: Path, first: int, flush: str) -> int:
    """How many of 32 blocks were lost when ``disks`` was killed after they were acknowledged."""
    arguments = [sys.executable, "-c", _WRITER, str(file), str(first), flush]
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*arguments, stdin=pipe, stdout=pipe)
    try:
        assert child.stdin is not None and child.stdout is not None
        assert await asyncio.wait_for(child.stdout.readline(), 90) == b"written\n"
        kill(daemon.disks.process.pid)
        await settled(daemon)
        child.stdin.write(b"go on\n")
        return int(await asyncio.wait_for(child.stdout.readline(), 90))
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await asyncio.wait_for(child.wait(), 90)


async def test_what_was_not_flushed_when_disks_is_killed(daemon: QemuStorageDaemon, tmp_path: Path) -> None:
    heard: list[tuple[str, str]] = []
    daemon.on_event(lambda kind, id, text: heard.append((kind, id)))
    await daemon.add(volume(tmp_path, size=64 * MIB))
    file = (await daemon.export("vol_a")).file
    assert file is not None
    assert await lost(daemon, file, 1, "") == 0
    assert ("volume.unflushed", "vol_a") not in heard
    await daemon.switch({"vol_a": overlay(tmp_path / "layer.qcow2", 64 * MIB)})
    assert await lost(daemon, file, 50, "flush") == 0
    # What is there already is written in its place; new clusters are not found again.
    assert await lost(daemon, file, 100, "") == 0
    await daemon.switch({"vol_a": overlay(tmp_path / "another.qcow2", 64 * MIB)})
    heard.clear()
    if await lost(daemon, file, 150, ""):
        assert ("volume.unflushed", "vol_a") in heard, "it is lost, and nobody was told"
