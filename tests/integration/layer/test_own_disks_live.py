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

pytestmark = [pytest.mark.root, pytest.mark.timeout(170, method="thread")]

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
    deadline = time.monotonic() + 60
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
