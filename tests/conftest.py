"""Every run is watched: what bears our mark afterwards, and did not before, fails it."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from tests import ceph as ceph_of_tests
from tests.ceph import Ceph, small_ceph
from tests.debian import Built, build

from lamella.host.linux.processes import all_pids

PREFIX = "lamella-"
GRACE = 90.0

# A busy machine is no reason for a property to fail: no timed assertions.
settings.register_profile("lamella", deadline=None)
settings.load_profile("lamella")

# A run in the background of a shell was told to ignore Ctrl-C, and so would be everything that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def marked() -> set[str]:
    """Processes, namespaces, links, mounts, groups and rules of this machine that bear any layer's mark."""
    found: set[str] = set()
    for pid in all_pids():
        with suppress(OSError):
            if b"\0LAMELLA_MARK=" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if command.strip():
                    found.add(f"process {pid}: {command[:120]}")
    with suppress(OSError):
        found |= {f"netns {path.name}" for path in Path("/run/netns").iterdir() if path.name.startswith(PREFIX)}
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=False).stdout
    found |= {
        f"link {line.split()[1]}"
        for line in links.splitlines()
        if line.split()[1].startswith("la") and "-" in line.split()[1]
    }
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found |= {f"mount {line.split()[1]}" for line in mounts if PREFIX in line.split()[1] and "/run/netns" not in line}
    for top in ("/sys/fs/cgroup", *map(str, Path("/sys/fs/cgroup").glob("*"))):
        with suppress(OSError):
            found |= {f"cgroup {path}" for path in Path(top).iterdir() if path.name.startswith(PREFIX)}
    rules = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
    found |= {f"nft {line}" for line in rules.splitlines() if PREFIX in line}
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = marked()
    yield
    # What is being taken apart at this moment may take a moment more.
    deadline = time.monotonic() + GRACE
    while (left := marked() - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, "left behind:\n" + "\n".join(sorted(left))


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A Debian with a bootable disk, built once."""
    return build(tmp_path_factory.mktemp("debian") / "images")


@pytest.fixture(scope="session")
def debian_disk(debian: Built) -> Path:
    """Its raw disk; never written."""
    return debian.disk.path


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """A cluster of two OSDs, started once; each test has pools of its own there."""
    if reason := ceph_of_tests.missing():
        pytest.skip(reason)
    with small_ceph(tmp_path_factory.mktemp("ceph") / "cluster") as running:
        yield running
