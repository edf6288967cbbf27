"""Page cache of a real group goes when it is told to, its processes' memory stays, and its limit is what it was."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from lamella.host.compute.driver import Limits
from lamella.host.compute.oci import memory
from lamella.host.linux import cgroup_memory
from lamella.host.linux.cgroup import Cgroups
from lamella.host.linux.cgroup_files import read_number

pytestmark = pytest.mark.root

MIB = 1 << 20
# Comes into the group, holds 48 MiB of its own, writes a file of 96 MiB out to disk, says so, and waits.
HOLDER = """
import os, sys
for file in sys.argv[2:]:
    open(file, "w").write(str(os.getpid()))
own = bytearray(os.urandom(1 << 20) * 48)
with open(sys.argv[1], "wb") as file:
    for _ in range(96):
        file.write(os.urandom(1 << 20))
    file.flush()
    os.fsync(file.fileno())
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory of a filesystem on a disk: what a file system in memory holds is no cache."""
    with TemporaryDirectory(prefix="lamella-test-", dir="/var/tmp") as place:
        kind = subprocess.run(
            ["stat", "-f", "-c", "%T", place], check=True, capture_output=True, text=True
        ).stdout.strip()
        if kind in ("tmpfs", "ramfs"):
            pytest.skip(f"/var/tmp is {kind} here: its files are no page cache")
        yield Path(place)


@pytest.mark.parametrize("limit", [512 * MIB, None])
def test_cold_cache_goes_and_the_rest_stays(cgroups: Cgroups, disk: Path, limit: int | None) -> None:
    group = cgroups.group("one")
    group.create(Limits(memory=limit))
    path = group.path("memory")
    words = [sys.executable, "-c", HOLDER, str(disk / "file"), *map(str, group.procs_files())]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        before = cgroup_memory.read(path)
        seen = memory.held(group, paused=False)
        assert seen.used is not None and 48 * MIB < seen.used < seen.held
        # The disk takes what was written when it likes; what is not on it yet cannot go.
        deadline = time.monotonic() + 60
        while cgroup_memory.read(path).used > before.used - 48 * MIB:
            memory.hold(group, seen.used, 32 * MIB)
            assert time.monotonic() < deadline, (before, cgroup_memory.read(path))
        assert group.read_limits().memory == limit
        assert read_number(path / ("memory.low" if cgroups.version == 2 else "memory.soft_limit_in_bytes")) == 32 * MIB
        # Asked for everything, it keeps what its processes hold, and lives.
        memory.hold(group, 0, 0)
        assert cgroup_memory.read(path).used > 48 * MIB
        assert group.oom_kills() == 0
        assert holder.poll() is None
        assert group.read_limits().memory == limit
        holder.stdin.close()
        assert holder.wait(60) == 0
