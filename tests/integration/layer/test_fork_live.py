"""Copies of a running microVM: they go on where it is, as machines of their own; all of them or none, wherever the daemon is killed."""

import json
import threading
import time
from collections.abc import Callable

import pytest
from tests.counting import Seen, begin, later, now, steps
from tests.house import LayerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


def until(what: Callable[[], bool], layer: LayerUnderTest) -> None:
    deadline = time.monotonic() + 90
    while not what():
        assert time.monotonic() < deadline, (layer.out("events"), layer.log())
        time.sleep(0.2)


def memories(layer: LayerUnderTest) -> list[str]:
    """Memories of snapshots that lie on the host."""
    return sorted(path.name for path in (layer.home / "state" / "memory").rglob("snap_*"))


def snapshots(layer: LayerUnderTest) -> list[str]:
    return layer.out("snapshot", "ls", "--all", "-q").split()


def names(layer: LayerUnderTest) -> list[str]:
    return sorted(layer.out("ps", "-a", "-q").split())


def nothing_left(layer: LayerUnderTest) -> None:
    until(lambda: not snapshots(layer) and not memories(layer), layer)
    assert "nothing found" in layer.out("fsck")


def test_copies_go_on_as_machines_of_their_own(layer: LayerUnderTest) -> None:
    before = begin(layer, "web")
    assert not memories(layer)
    done = layer.lamella("fork", "web", "--count", "3")
    copies = ["web-1", "web-2", "web-3"]
    assert done.stdout.decode().split() == copies and b"web stood still for" in done.stderr
    parent = later(layer, "web", before)
    found: list[Seen] = [later(layer, name, before) for name in copies]
    assert {seen.word for seen in (parent, *found)} == {before.word}
    for name in copies:
        assert later(layer, name, found[copies.index(name)]).word == before.word
        written = steps(layer, name)
        assert written == list(range(1, len(written) + 1))
    shown = [layer.show(name)["status"] for name in ("web", *copies)]
    for field in ("address", "mac", "pid", "volume", "id_base"):
        assert len({status[field] for status in shown}) == 4, field
    for number, name in enumerate(copies, 1):
        assert layer.out("exec", name, "--", "hostname") == f"{name}\n"
        inside = layer.out("exec", name, "--", "ip", "address")
        assert shown[number]["address"] in inside and shown[number]["mac"] in inside
    drawn = ["head -c 16 /dev/urandom | od -An -tx1"]
    assert len({layer.out("exec", name, "--", "sh", "-c", *drawn) for name in ("web", *copies)}) == 4
    # Their memory is not needed any more; their disks stand on the snapshot, and the parent may go first.
    until(lambda: not memories(layer), layer)
    layer.lamella("rm", "--force", "web")
    assert names(layer) == copies
    layer.lamella("exec", "web-1", "--", "sh", "-c", "sync; echo own > /own; sync")
    layer.lamella("restart", "--time", "1s", "web-1")
    until(lambda: now(layer, "web-1") is not None, layer)
    assert layer.out("exec", "web-1", "--", "cat", "/own") == "own\n"
    assert layer.lamella("exec", "web-2", "--", "cat", "/own", check=False).returncode
    for name in copies:
        layer.lamella("rm", "--force", name)
    nothing_left(layer)
    assert not layer.out("volume", "ls", "--all", "-q").split()


def test_a_daemon_killed_in_the_midst_of_a_fork_leaves_all_copies_or_none(layer: LayerUnderTest) -> None:
    before = begin(layer, "web")
    for round in range(2):
        asked = threading.Thread(target=layer.lamella, args=("fork", "web", "--count", "2"), kwargs={"check": False})
        asked.start()
        time.sleep(0.4 + round)
        layer.kill()
        asked.join()
        layer.start()

        def over() -> bool:
            listed = json.loads(layer.out("operation", "ls", "-o", "json"))
            return all(item["status"]["phase"] != "running" for item in listed)

        until(over, layer)
        copies = [name for name in names(layer) if name != "web"]
        assert copies in ([], ["web-1", "web-2"])
        before = later(layer, "web", before)
        for name in copies:
            assert later(layer, name, Seen("", 0)).word == before.word
            layer.lamella("rm", "--force", name)
        nothing_left(layer)
    layer.lamella("rm", "--force", "web")


def test_what_cannot_be_copied_is_refused(layer: LayerUnderTest) -> None:
    layer.lamella("run", "-d", "--name", "box", "busybox", "--", "sleep", "1000")
    refused = layer.lamella("fork", "box", check=False)
    assert refused.returncode and b"a container cannot be copied while it runs" in refused.stderr
    layer.lamella("rm", "--force", "box")
    assert not snapshots(layer)
