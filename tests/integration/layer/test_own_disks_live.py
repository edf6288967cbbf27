"""An instance's own disk in a pool that fills up: the machine stands still, and goes on by itself when there is room."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.house import LayerUnderTest, layer_in

from lamella.host.linux import syscalls

pytestmark = [pytest.mark.root, pytest.mark.timeout(600, method="thread")]

MIB = 1 << 20
LINE = "0123456789abcde"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The default pool of a layer to be: it has 160 MiB."""
    place = tmp_path_factory.mktemp("small") / "home" / "state" / "pools" / "default"
    place.mkdir(parents=True)
    syscalls.mount("lamella-test", str(place), "tmpfs", 0, f"size={160 * MIB}")
    yield place
    syscalls.umount(str(place))


@pytest.fixture(scope="module")
def small(pool: Path, netns: str, root_tar: Path) -> Iterator[LayerUnderTest]:
    with layer_in(pool.parents[2], netns) as made:
        made.lamella("image", "import", str(root_tar), "--name", "busybox")
        yield made


def free(pool: Path) -> int:
    room = os.statvfs(pool)
    return room.f_bavail * room.f_frsize


def space(layer: LayerUnderTest) -> list[str]:
    """What the default pool's row says of its room."""
    status = json.loads(layer.out("pool", "show", "default", "-o", "json"))["status"]
    return [item["reason"] for item in status["conditions"] if item["type"] == "Space"]


def until(what: Callable[[], bool], layer: LayerUnderTest) -> None:
    deadline = time.monotonic() + 90
    while not what():
        assert time.monotonic() < deadline, (layer.out("events"), layer.log())
        time.sleep(0.2)


def test_a_machine_whose_own_disk_found_no_room_goes_on_when_there_is_some(small: LayerUnderTest, pool: Path) -> None:
    size = 96 * MIB
    script = (
        f"yes {LINE} | head -c {size} > /big && sync && echo 3 > /proc/sys/vm/drop_caches && md5sum /big || echo no"
    )
    small.lamella("run", "-d", "--isolation", "microvm", "--name", "db", "busybox", "--", "sh", "-c", script)
    small.wait_phase("db", "running")
    ballast = pool / "ballast"
    ballast.write_bytes(bytes(free(pool) - 40 * MIB))
    until(lambda: space(small) == ["full"] and free(pool) < MIB, small)
    assert small.out("logs", "db") == ""
    ballast.unlink()
    small.wait_phase("db", "stopped")
    wanted = hashlib.md5(f"{LINE}\n".encode() * (size // 16)).hexdigest()
    assert small.out("logs", "db").split() == [wanted, "/big"]
    until(lambda: "full" not in space(small), small)
    small.lamella("rm", "db")


def layers(pool: Path, volume: str) -> list[str]:
    return sorted(path.name for path in (pool / "volumes" / volume).glob("*") if path.suffix in (".raw", ".qcow2"))


def test_a_snapshot_that_goes_while_its_machine_runs_is_merged_when_that_stops(
    small: LayerUnderTest, pool: Path
) -> None:
    script = "cat /number 2>/dev/null; echo one > /number; sync; sleep 1000"
    begin = ("run", "-d", "--isolation", "microvm", "--name", "db", "--restart", "no")
    small.lamella(*begin, "busybox", "--", "sh", "-c", script)
    volume = small.wait_phase("db", "running")["status"]["volume"]
    until(lambda: small.lamella("exec", "db", "--", "cat", "/number", check=False).stdout == b"one\n", small)
    for name in ("first", "second"):
        small.lamella("snapshot", "create", "db", name, "--instance")
        small.lamella("exec", "db", "--", "sh", "-c", f"echo {name} > /number; echo {name} > /{name}; sync")
    assert len(layers(pool, volume)) == 3
    # Out of what the first one keeps nothing is lost when the second goes, nor when the first does.
    small.lamella("snapshot", "rm", "db@second")
    assert small.out("snapshot", "ls", "-q").split() == ["db@first"]
    assert "volume.merges-later" in small.out("events")
    small.lamella("exec", "db", "--", "sh", "-c", "echo third > /third; sync")
    small.lamella("kill", "db")
    small.wait_phase("db", "stopped")
    until(lambda: len(layers(pool, volume)) == 2, small)
    assert "nothing found" in small.out("fsck")
    small.lamella("start", "db")
    read = ("exec", "db", "--", "cat", "/first", "/second", "/third")
    until(lambda: small.lamella(*read, check=False).stdout == b"first\nsecond\nthird\n", small)
    small.lamella("snapshot", "rm", "db@first")
    small.lamella("kill", "db")
    small.wait_phase("db", "stopped")
    until(lambda: len(layers(pool, volume)) == 1, small)
    small.lamella("start", "db")
    until(lambda: small.lamella(*read, check=False).stdout == b"first\nsecond\nthird\n", small)
    assert small.out("logs", "db").split()[-1] == "one"
    small.lamella("rm", "--force", "db")


def test_a_machine_goes_back_to_its_snapshot(small: LayerUnderTest) -> None:
    script = "cat /number 2>/dev/null || echo none; sync; sleep 1000"
    begin = ("run", "-d", "--isolation", "microvm", "--name", "db", "--restart", "no")
    small.lamella(*begin, "busybox", "--", "sh", "-c", script)
    until(lambda: small.out("logs", "db") == "none\n", small)
    small.lamella("exec", "db", "--", "sh", "-c", "echo monday > /number; sync")
    small.lamella("snapshot", "create", "db", "monday", "--instance")
    small.lamella("exec", "db", "--", "sh", "-c", "echo tuesday > /number; sync")
    refused = small.lamella("snapshot", "restore", "db@monday", check=False)
    assert refused.returncode != 0 and b"lamella stop db" in refused.stderr
    small.lamella("kill", "db")
    small.wait_phase("db", "stopped")
    small.lamella("snapshot", "restore", "db@monday")
    small.lamella("start", "db")
    until(lambda: small.out("logs", "db").split()[-1] == "monday", small)
    small.lamella("rm", "--force", "db")
    assert small.out("snapshot", "ls", "-q").split() == []
