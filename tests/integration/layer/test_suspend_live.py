"""A microVM whose memory is written down: it goes on where it was; one whose memory is damaged; one that goes back to a memory."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.counting import Seen, begin, later, now, steps
from tests.house import LayerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


def until(what: Callable[[], bool], layer: LayerUnderTest) -> None:
    deadline = time.monotonic() + 90
    while not what():
        assert time.monotonic() < deadline, (layer.out("events"), layer.log())
        time.sleep(0.2)


def is_over(pid: int) -> bool:
    """Whether nothing of the process runs; who has to reap it may not have done so."""
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def memories(layer: LayerUnderTest) -> list[Path]:
    """What is kept of instances that are suspended, and of snapshots."""
    kept = (layer.home / "state" / "memory").rglob("*")
    return [path for path in kept if path.name.startswith(("suspended-", "snap_"))]


def unbroken(layer: LayerUnderTest, name: str) -> None:
    written = steps(layer, name)
    assert written == list(range(1, len(written) + 1))


def test_what_is_suspended_does_not_run_and_goes_on_after_a_crash_of_the_daemon(layer: LayerUnderTest) -> None:
    before = begin(layer, "web")
    pid = layer.show("web")["status"]["pid"]
    layer.lamella("suspend", "web")
    assert layer.show("web")["status"]["phase"] == "suspended"
    until(lambda: is_over(pid), layer)
    refused = layer.lamella("exec", "web", "--", "true", check=False)
    assert refused.returncode and b"lamella resume web" in refused.stderr
    layer.kill()
    layer.start()
    layer.wait_phase("web", "suspended")
    layer.lamella("resume", "web")
    after = later(layer, "web", before)
    assert after.word == before.word and layer.show("web")["status"]["epoch"] == 1
    assert layer.out("exec", "web", "--", "cat", "/ram/word") == f"{before.word}\n"
    unbroken(layer, "web")
    assert abs(int(layer.out("exec", "web", "--", "date", "+%s")) - time.time()) < 60
    layer.lamella("suspend", "web")
    layer.lamella("stop", "web")
    assert layer.show("web")["status"]["phase"] == "stopped" and not memories(layer)
    layer.lamella("rm", "web")
    assert not layer.out("volume", "ls", "--all", "-q").split()


def test_a_memory_that_is_damaged_is_refused_and_stays(layer: LayerUnderTest) -> None:
    before = begin(layer, "web")
    layer.lamella("suspend", "web")
    (kept,) = memories(layer)
    file = kept / "memory"
    with file.open("r+b") as pages:
        at = os.lseek(pages.fileno(), 0, os.SEEK_DATA)
        was = os.pread(pages.fileno(), 4096, at)
        os.pwrite(pages.fileno(), bytes(255 - byte for byte in was), at)
    # The next daemon reads it anew.
    layer.kill()
    layer.start()
    refused = layer.lamella("resume", "web", check=False)
    assert refused.returncode and b"not what was written" in refused.stderr, refused.stderr
    layer.wait_phase("web", "suspended")
    with file.open("r+b") as pages:
        os.pwrite(pages.fileno(), was, at)
    layer.lamella("start", "web")
    assert later(layer, "web", before).word == before.word
    layer.lamella("suspend", "web")
    layer.lamella("restart", "web")
    until(lambda: (seen := now(layer, "web")) is not None and seen.word != before.word, layer)
    layer.lamella("suspend", "web")
    layer.lamella("stop", "web")
    layer.lamella("rm", "web")
    assert not memories(layer)


def test_a_snapshot_with_a_memory_is_gone_back_to(layer: LayerUnderTest) -> None:
    before = begin(layer, "web")
    assert layer.out("snapshot", "create", "web", "s1", "--memory") == "web@s1\n"
    assert len(memories(layer)) == 1
    after = later(layer, "web", before)
    layer.lamella("exec", "web", "--", "sh", "-c", "echo later > /later; sync")
    layer.lamella("stop", "--time", "1s", "web")
    layer.lamella("snapshot", "restore", "web@s1")
    back = later(layer, "web", Seen("", 0))
    assert back.word == before.word == after.word
    assert layer.lamella("exec", "web", "--", "cat", "/later", check=False).returncode
    unbroken(layer, "web")
    # It can be gone back to again, and goes with its memory.
    layer.lamella("stop", "--time", "1s", "web")
    layer.lamella("snapshot", "restore", "web@s1", "--no-start")
    assert layer.show("web")["status"]["phase"] == "stopped"
    layer.lamella("start", "web")
    assert later(layer, "web", Seen("", 0)).word == before.word
    layer.lamella("rm", "--force", "web")
    until(lambda: not layer.out("snapshot", "ls", "--all", "-q").split(), layer)
    assert not memories(layer)
