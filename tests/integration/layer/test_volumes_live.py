"""Volumes as a person has them: with real containers, a real storage process, and a daemon that is killed in the middle."""

import json
import subprocess
import time
from typing import Any

import pytest
from tests.house import BIN, LayerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.timeout(600, method="thread")]

MIB = 1 << 20


def shown(layer: LayerUnderTest, kind: str, name: str) -> dict[str, Any]:
    return json.loads(layer.out(kind, "show", name, "-o", "json"))


def run(layer: LayerUnderTest, volume: str, command: str, **options: Any) -> str:
    """What *command* prints in a container of its own with *volume* at /data."""
    return layer.out("run", "--rm", "--volume", f"{volume}:/data", "busybox", "--", "sh", "-c", command, **options)


def test_what_is_written_outlives_the_instance(layer: LayerUnderTest) -> None:
    layer.lamella("volume", "create", "data", "--size", "64MiB")
    layer.lamella("volume", "create", "tree", "--form", "filesystem")
    for name in ("data", "tree"):
        run(layer, name, "echo monday > /data/day && chown 1000:1000 /data/day && sync")
        assert run(layer, name, "cat /data/day && stat -c %u /data/day") == "monday\n1000\n"
        assert shown(layer, "volume", name)["status"]["attached"] == []
    done = layer.lamella("run", "--rm", "--volume", "data:/data:ro", "busybox", "--", "touch", "/data/x", check=False)
    assert done.returncode == 1 and b"Read-only" in done.stderr


def test_two_never_write_to_one_disk_and_many_share_a_tree(layer: LayerUnderTest) -> None:
    for name in ("one", "two"):
        layer.lamella("run", "-d", "--name", name, "--volume", "tree:/data", "busybox", "--", "sleep", "1000")
        layer.lamella("exec", name, "--", "sh", "-c", f"echo {name} >> /data/who")
    assert layer.out("exec", "one", "--", "cat", "/data/who") == "one\ntwo\n"
    layer.lamella("rm", "--force", "one", "two")
    layer.lamella("run", "-d", "--name", "first", "--volume", "data:/data", "busybox", "--", "sleep", "1000")
    done = layer.lamella("run", "--volume", "data:/data", "busybox", "--", "true", check=False)
    assert done.returncode == 125 and b"attached to first" in done.stderr
    assert b"attached to first" in layer.lamella("volume", "rm", "data", check=False).stderr
    contract = layer.out("contract", "first")
    assert "volume data" in contract and "nobody else has it" in contract
    layer.lamella("rm", "--force", "first")


def test_back_to_monday_and_a_clone_of_it(layer: LayerUnderTest) -> None:
    run(layer, "data", "echo monday > /data/day && sync")
    layer.lamella("snapshot", "create", "data", "monday")
    run(layer, "data", "echo tuesday > /data/day && sync")
    layer.lamella("volume", "create", "test", "--from", "data@monday")
    layer.lamella("volume", "create", "now", "--from", "data")
    assert [run(layer, name, "cat /data/day") for name in ("data", "test", "now")] == [
        "tuesday\n",
        "monday\n",
        "tuesday\n",
    ]
    run(layer, "test", "echo elsewhere > /data/day && sync")
    layer.lamella("snapshot", "restore", "data@monday")
    assert run(layer, "data", "cat /data/day") == "monday\n"
    assert run(layer, "now", "cat /data/day") == "tuesday\n"
    done = layer.lamella("snapshot", "rm", "data@monday", check=False)
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    layer.lamella("volume", "rm", "test", "now")
    layer.lamella("snapshot", "rm", "data@monday")
    assert layer.out("snapshot", "ls", "--all", "-q") == ""
    assert run(layer, "data", "cat /data/day") == "monday\n"


def written(layer: LayerUnderTest, name: str, path: str) -> None:
    """Return when there is something at *path* inside."""
    layer.lamella("exec", name, "--", "sh", "-c", f"until [ -s {path} ]; do sleep 0.05; done")


def test_a_snapshot_of_a_running_instance(layer: LayerUnderTest) -> None:
    write = "i=0; while :; do i=$((i+1)); echo $i >/data/next; mv /data/next /data/n; sync; sleep 0.02; done"
    layer.lamella("run", "-d", "--name", "db", "--volume", "data:/data", "busybox", "--", "sh", "-c", write)
    written(layer, "db", "/data/n")
    layer.lamella("snapshot", "create", "data", "live")
    before = int(layer.out("exec", "db", "--", "cat", "/data/n"))
    deadline = time.monotonic() + 90
    while int(layer.out("exec", "db", "--", "cat", "/data/n")) <= before:
        assert time.monotonic() < deadline
    assert b"is running" in layer.lamella("snapshot", "restore", "data@live", check=False).stderr
    layer.lamella("volume", "create", "seen", "--from", "data@live")
    assert 0 < int(run(layer, "seen", "cat /data/n")) <= before
    layer.lamella("rm", "--force", "db")
    layer.lamella("volume", "rm", "seen")
    layer.lamella("snapshot", "rm", "data@live")


def test_it_grows_while_it_is_used_and_is_bounded_at_once(layer: LayerUnderTest) -> None:
    layer.lamella("run", "-d", "--name", "db", "--volume", "data:/data", "busybox", "--", "sleep", "1000")
    measure = "df -k /data | tail -1 | awk '{print $2}'"
    before = int(layer.out("exec", "db", "--", "sh", "-c", measure))
    layer.lamella("volume", "resize", "data", "128MiB")
    assert shown(layer, "volume", "data")["status"]["size"] == 128 * MIB
    layer.lamella("volume", "set", "data", "--bandwidth", "8MiB/s")
    began = time.monotonic()
    layer.lamella("exec", "db", "--", "sh", "-c", "dd if=/dev/zero of=/data/fill bs=1M count=16 && sync")
    bounded = time.monotonic() - began
    assert bounded > 1
    layer.lamella("volume", "set", "data", "--bandwidth", "none")
    # A busy disk may be as slow once, and not always.
    for _ in range(20):
        began = time.monotonic()
        layer.lamella("exec", "db", "--", "sh", "-c", "dd if=/dev/zero of=/data/fill bs=1M count=16 && sync")
        if time.monotonic() - began < bounded:
            break
    else:
        raise AssertionError("it is bounded still")
    layer.lamella("rm", "--force", "db")
    # A kernel that lets nobody grow a mounted ext4 (CAP_SYS_RESOURCE) has it grown with the next attachment.
    assert before < 64 * 1024 < int(run(layer, "data", measure)) < 128 * 1024


def test_what_is_encrypted_cannot_be_read_in_the_pool(layer: LayerUnderTest) -> None:
    layer.lamella("volume", "create", "secret", "--size", "32MiB", "--passphrase-file", "-", stdin=b"correct horse\n")
    layer.lamella("volume", "create", "plain", "--size", "32MiB")
    for name in ("secret", "plain"):
        run(layer, name, "echo needle-in-the-haystack > /data/x && sync")
        assert run(layer, name, "cat /data/x") == "needle-in-the-haystack\n"
    pool = layer.home / "state" / "pools" / "default"
    ids = {name: shown(layer, "volume", name)["id"] for name in ("secret", "plain")}
    found = {
        volume: any(
            b"needle-in-the-haystack" in file.read_bytes()
            for file in pool.rglob("*")
            if file.is_file() and id in str(file)
        )
        for volume, id in ids.items()
    }
    assert found == {"secret": False, "plain": True}
    layer.lamella("volume", "rm", "plain", "secret")


def test_a_daemon_that_is_killed_finds_everything_again(layer: LayerUnderTest) -> None:
    write = "i=0; while :; do i=$((i+1)); echo $i >/data/next; mv /data/next /data/n; sync; sleep 0.02; done"
    layer.lamella("run", "-d", "--name", "db", "--volume", "data:/data", "busybox", "--", "sh", "-c", write)
    written(layer, "db", "/data/n")
    layer.lamella("snapshot", "create", "data", "before")
    layer.kill()
    layer.start()
    layer.wait_phase("db", "running")
    before = int(layer.out("exec", "db", "--", "cat", "/data/n"))
    deadline = time.monotonic() + 90
    while int(layer.out("exec", "db", "--", "cat", "/data/n")) <= before:
        assert time.monotonic() < deadline
    layer.lamella("snapshot", "create", "data", "after")
    layer.lamella("volume", "create", "clone", "--from", "data@after")
    assert int(run(layer, "clone", "cat /data/n")) > before
    layer.lamella("rm", "--force", "db")
    assert int(run(layer, "data", "cat /data/n")) > before
    layer.lamella("volume", "rm", "clone")
    layer.lamella("volume", "rm", "--force", "data")
    layer.lamella("volume", "rm", "tree")
    assert layer.out("volume", "ls", "-q") == layer.out("snapshot", "ls", "-a", "-q") == ""
    assert "nothing found" in layer.out("fsck")


def test_a_pool_of_one_s_own(layer: LayerUnderTest) -> None:
    place = layer.home / "elsewhere"
    layer.lamella("pool", "create", "fast", "--driver", "directory", "--path", str(place))
    layer.lamella("volume", "create", "there", "--pool", "fast", "--size", "32MiB")
    run(layer, "there", "echo far > /data/x && sync")
    layer.kill()
    layer.start()
    assert run(layer, "there", "cat /data/x") == "far\n"
    assert b"has 1 volume" in layer.lamella("pool", "rm", "fast", check=False).stderr
    layer.lamella("volume", "rm", "there")
    layer.lamella("pool", "rm", "fast")
    done = layer.lamella("pool", "create", "none", "--path", "/proc/none", check=False)
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert layer.out("pool", "ls", "-q") == "default\n"


def test_a_daemon_that_is_restarted_goes_on_with_what_goes_on(layer: LayerUnderTest) -> None:
    layer.lamella("pool", "create", "far", "--driver", "directory", "--path", str(layer.home / "far"))
    layer.lamella("volume", "create", "data", "--size", "64MiB")
    run(layer, "data", "dd if=/dev/urandom of=/data/x bs=1M count=32 && echo day > /data/day && sync")
    asked = subprocess.Popen(
        [str(BIN / "lamella"), "volume", "move", "data", "--pool", "far", "--speed", "2MiB/s"],
        env=layer.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 90
    while not (
        moves := [
            item for item in _operations(layer) if item["spec"]["verb"] == "move" and item["status"]["step"] == "copy"
        ]
    ):
        assert time.monotonic() < deadline
    layer.stop()
    asked.wait(90)
    layer.start()
    while (moved := next(item for item in _operations(layer) if item["id"] == moves[0]["id"]))["status"][
        "phase"
    ] == "running":
        assert time.monotonic() < deadline + 60
        time.sleep(0.1)
    assert moved["status"]["phase"] == "done", moved["status"]
    assert shown(layer, "volume", "data")["spec"]["pool"] == "far"
    assert run(layer, "data", "cat /data/day") == "day\n"
    assert "nothing found" in layer.out("fsck")
    layer.lamella("volume", "rm", "data")
    layer.lamella("pool", "rm", "far")


def _operations(layer: LayerUnderTest) -> list[dict[str, Any]]:
    return json.loads(layer.out("operation", "ls", "-o", "json"))
