"""The room, made and joined by processes of the test's own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.host.compute.driver import Home
from lamella.host.linux import mounts
from lamella.host.linux.processes import marked, start_time
from lamella.host.linux.room import Room
from lamella.model.errors import Internal

pytestmark = pytest.mark.root

INSIDE = """
import json, os, sys
from pathlib import Path
from lamella.host.compute.driver import Home
from lamella.host.linux import mounts, syscalls
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.linux.room import Room
home = Home(Path(sys.argv[1]), sys.argv[2])
room = Room(home)
room.ensure()
before = os.getcwd()
room.join()
if len(sys.argv) > 3:
    Path(sys.argv[3]).mkdir()
    syscalls.mount("lamella-test", sys.argv[3], "tmpfs")
print(json.dumps({
    "holder": room.holder(), "mnt": os.readlink("/proc/self/ns/mnt"), "net": os.readlink(room.netns),
    "ours": os.readlink("/proc/self/ns/net"), "moved": os.getcwd() != before,
    "groups": sorted(Cgroups(ROOT, home.mark).trees), "kinds": sorted({e.kind for e in mounts.table() if "cgroup" in e.kind}),
    "points": [e.point for e in mounts.table()], "shared": [e.point for e in mounts.table() if "shared:" in str(e.propagation)],
}))
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "home", f"lamella-test-{os.getpid()}")
    before = sorted(entry.point for entry in mounts.table())
    yield home
    Room(home).destroy()
    assert marked(home.mark) == set()
    assert sorted(entry.point for entry in mounts.table()) == before


def inside(home: Home, *more: str) -> dict[str, object]:
    made = subprocess.run(
        [sys.executable, "-c", INSIDE, str(home.path), home.mark, *more], capture_output=True, text=True, timeout=30
    )
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def test_one_room_for_every_daemon(home: Home, tmp_path: Path) -> None:
    one = inside(home, str(tmp_path / "made"))
    other = inside(home)
    assert one["holder"] == other["holder"]
    assert one["mnt"] == other["mnt"] != str(Path("/proc/self/ns/mnt").readlink())
    assert one["net"] == other["net"] != one["ours"]
    assert str(tmp_path / "made") in other["points"], "what one mounted the next one sees"  # type: ignore[operator]
    assert str(tmp_path / "made") not in [entry.point for entry in mounts.table()], "and the machine does not"
    assert other["shared"] == []
    assert not one["moved"]


def test_the_cgroup_view_is_of_one_version(home: Home) -> None:
    seen = inside(home)
    # The tree of version 2 of a mixture is there under a name that no OCI runtime looks for.
    assert seen["kinds"] == (["cgroup", "cgroup2"] if "cpu" in seen["groups"] else ["cgroup2"])
    assert "/sys/fs/cgroup/unified" not in seen["points"]
    assert inside(home)["groups"] == seen["groups"] != []
    assert sorted({entry.kind for entry in mounts.table() if "cgroup" in entry.kind}) != []


def test_a_dead_holder_is_replaced(home: Home) -> None:
    room = Room(home)
    first = room.ensure()
    assert room.ensure() == first
    os.kill(first, 9)
    os.waitpid(first, 0)
    assert room.holder() is None
    with pytest.raises(Internal, match="not there"):
        _ = room.netns
    second = room.ensure()
    assert second != first
    assert room.netns.exists()


def test_a_holder_that_nobody_wrote_down_is_ended(home: Home) -> None:
    room = Room(home)
    first = room.ensure()
    (home.run / "room").unlink()
    assert room.holder() is None
    second = room.ensure()
    assert first != second
    deadline = time.monotonic() + 30
    while start_time(first) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert start_time(first) is None
    os.waitpid(first, 0)


@pytest.mark.parametrize("text", ["", "x", "1 1", "999999999 5", "12"])
def test_a_file_that_names_somebody_else_is_not_believed(home: Home, text: str) -> None:
    home.run.mkdir(parents=True)
    (home.run / "room").write_text(text)
    assert Room(home).holder() is None
    Room(home).destroy()


def test_it_is_destroyed_twice_without_harm(home: Home) -> None:
    room = Room(home)
    pid = room.ensure()
    room.destroy()
    room.destroy()
    assert start_time(pid) is None
    assert not (home.run / "room").exists()
