"""A disk that remembers every write: a filesystem on a loop device over a file (FUSE) of a qemu-storage-daemon, whose node logs.

While it runs everything is real: the filesystem's journal, the kernel's page cache, flushes. After :meth:`PowerDisk.stop` the disk that a
power cut at any moment would have left is mounted at the same place (:meth:`PowerDisk.after`), where its journal is replayed.
"""

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from power_log import Replay, copy_sparsely

from lamella.host.storage import loop
from lamella.host.storage.process import fuse

MIB = 1 << 20
DEADLINE = 90.0


@dataclass(frozen=True)
class Filesystem:
    """How it is made and mounted: so that nothing is written before it has to be."""

    kind: str
    make: tuple[str, ...]
    size: int
    options: str


# Without auto_da_alloc ext4 does not mend programs that rename without fsync; commit is how many seconds it keeps its journal to itself.
EXT4 = Filesystem("ext4", ("mkfs.ext4", "-q", "-F", "-m0"), 512 * MIB, "noatime,noauto_da_alloc,commit=300")
# A former disk may be mounted still, in a mount namespace that another program made meanwhile: XFS would refuse the same one twice.
XFS = Filesystem("xfs", ("mkfs.xfs", "-q", "-f"), 512 * MIB, "noatime,nouuid")
BTRFS = Filesystem("btrfs", ("mkfs.btrfs", "-q", "-f"), 768 * MIB, "noatime,commit=300")


@dataclass
class Tally:
    """What the cuts were: ``between`` fell after a request and before its acknowledgement; ``lost`` of ``cached`` pieces of 4 KiB were not
    on the disk."""

    cuts: int = 0
    between: int = 0
    cached: int = 0
    lost: int = 0

    def __str__(self) -> str:
        return (
            f"{self.cuts} power cuts, {self.between} between request and acknowledgement; "
            f"{self.lost} of {self.cached} unflushed pieces lost"
        )


class PowerDisk:
    """Mounted at ``place`` from :meth:`start` to :meth:`stop`; ``log`` grows with every request that is complete."""

    def __init__(self, scratch: Path, filesystem: Filesystem) -> None:
        self.place = scratch / "disk"
        self.place.mkdir()
        self.tally = Tally()
        self._filesystem = filesystem
        self._image, self._before, self.log = scratch / "image", scratch / "before", scratch / "log"
        self._cut = scratch / "cut"
        self._file = scratch / "file"
        self._device = Path()
        self._qsd: subprocess.Popen[bytes] | None = None
        self._replay: Replay | None = None

    def start(self) -> None:
        with self._image.open("wb") as file:
            file.truncate(self._filesystem.size)
        self._run(*self._filesystem.make, str(self._image))
        with self._image.open("rb") as file:
            copy_sparsely(file.fileno(), self._before)
        self.log.touch()
        self._file.touch()
        self._qsd = subprocess.Popen(
            [
                "qemu-storage-daemon",
                *("--blockdev", f"driver=file,node-name=data,filename={self._image}"),
                *("--blockdev", f"driver=file,node-name=log,filename={self.log}"),
                *("--blockdev", "driver=blklogwrites,node-name=disk,file=data,log=log,log-sector-size=512"),
                *("--export", f"type=fuse,id=disk,node-name=disk,mountpoint={self._file},writable=on"),
            ],
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + DEADLINE
        while not fuse.mounted(self._file):
            assert self._qsd.poll() is None, "the storage daemon of the disk ended"
            assert time.monotonic() < deadline, "the disk's file does not appear"
            time.sleep(0.01)
        fuse.make_safe(self._file)
        self._device, descriptor = loop.attach(self._file)
        try:
            self._mount(self._device)
        finally:
            os.close(descriptor)

    def moment(self) -> int:
        """How long the log is now: every request that was complete before is in it."""
        return self.log.stat().st_size

    def stop(self) -> None:
        """Take the disk away; from now on there are cuts."""
        below = loop.backing_of(self._device)
        self._unmount()
        assert below is None or loop.wait_cleared(self._device, below, DEADLINE), f"{self._device} is held"
        assert self._qsd is not None
        fuse.release(self._file)
        self._qsd.terminate()
        self._qsd.wait(DEADLINE)
        self._qsd = None
        self._replay = Replay(self.log, self._before)

    def moments(self, after: int, until: int) -> list[int]:
        assert self._replay is not None
        return self._replay.moments(after, until)

    @contextmanager
    def after(self, moment: int, keep: float, chance: random.Random, *, between: bool) -> Iterator[Path]:
        """The disk after a cut at *moment*, mounted; ask in rising order. What is done to it is forgotten afterwards."""
        assert self._replay is not None
        # A file of its own: whoever holds the former disk still, in a mount namespace of another program, does not write to this one.
        self._cut.unlink(missing_ok=True)
        cached, lost = self._replay.cut(moment, self._cut, keep, chance)
        self.tally.cuts += 1
        self.tally.between += between
        self.tally.cached += cached
        self.tally.lost += lost
        device, descriptor = loop.attach(self._cut)
        try:
            self._mount(device)
        finally:
            os.close(descriptor)
        try:
            yield self.place
        finally:
            self._unmount()

    def close(self) -> None:
        """After a failure too."""
        if self.place.is_mount():
            subprocess.run(["umount", "-l", str(self.place)], check=False, timeout=DEADLINE)
        if self._qsd is not None:
            fuse.release(self._file)
            self._qsd.kill()
            self._qsd.wait(DEADLINE)
        if self._replay is not None:
            self._replay.close()

    def _mount(self, device: Path) -> None:
        self._run("mount", "-t", self._filesystem.kind, "-o", self._filesystem.options, str(device), str(self.place))

    def _unmount(self) -> None:
        self._run("umount", str(self.place))

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, timeout=DEADLINE)
        assert not done.returncode, f"{command}: {(done.stderr + done.stdout).decode(errors='replace')[-2000:]}"


Start = Callable[[Filesystem], PowerDisk]
