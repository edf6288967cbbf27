"""The storage process is killed under a microVM that writes, twice seen by the daemon and once not: the guest waits, and goes on."""

import json
import os
import signal
import time

import pytest
from tests.house import LayerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.timeout(600, method="thread")]

# A number is told when the disk has it; a write that fails ends the guest.
WRITER = (
    "i=0; while :; do i=$((i+1)); "
    "echo $i >> /data/lines && sync /data/lines && echo $i || { echo failed; exit 9; }; sleep 0.01; done"
)


def told(layer: LayerUnderTest) -> list[str]:
    return layer.out("logs", "db").split()


def goes_on(layer: LayerUnderTest) -> None:
    """It writes more than can be on its way to the log."""
    deadline = time.monotonic() + 90
    before = len(told(layer))
    while len(told(layer)) < before + 40:
        assert time.monotonic() < deadline, (layer.show("db")["status"], layer.log())
        time.sleep(0.1)


def kill_doors(layer: LayerUnderTest, role: str = "machine-*") -> None:
    """The process that serves the guest's volume, or the one below it."""
    (record,) = (layer.home / "run" / "storage").glob(f"{role}.json")
    os.kill(json.loads(record.read_bytes())["pid"], signal.SIGKILL)


def test_a_guest_writes_on_after_the_storage_process_was_killed(layer: LayerUnderTest) -> None:
    layer.lamella("volume", "create", "data", "--size", "64MiB")
    begin = ("run", "-d", "--isolation", "microvm", "--restart", "no", "--name", "db", "--volume", "data:/data")
    layer.lamella(*begin, "busybox", "--", "sh", "-c", WRITER)
    epoch = layer.wait_phase("db", "running")["status"]["epoch"]
    goes_on(layer)
    assert "served over NBD" in layer.out("contract", "db")
    for role in ("machine-*", "disks", "machine-*"):
        kill_doors(layer, role)
        goes_on(layer)
    # And while nobody is there to see it.
    layer.kill()
    kill_doors(layer)
    time.sleep(1)
    layer.start()
    goes_on(layer)
    seen = layer.wait_phase("db", "running")["status"]
    assert (seen["epoch"], seen["restarts"]) == (epoch, 0)
    layer.lamella("stop", "db")
    numbers = told(layer)
    assert numbers == [str(n + 1) for n in range(len(numbers))]
    layer.lamella("rm", "db")
    kept = layer.out("run", "--rm", "--volume", "data:/data", "busybox", "--", "cat", "/data/lines").split()
    assert kept[: len(numbers)] == numbers and len(kept) <= len(numbers) + 1
    layer.lamella("volume", "rm", "data")
    assert "nothing found" in layer.out("fsck")
