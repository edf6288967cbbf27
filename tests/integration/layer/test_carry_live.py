"""Moves, tiers and replicas as a person has them: under a container that writes, and with a daemon that is killed in the middle."""

import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.house import BIN, LayerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.timeout(600, method="thread")]

# What was synced is said afterwards: whoever heard a number has it.
WRITE = (
    "i=$(cat /data/n 2>/dev/null || echo 0); while :; do i=$((i+1));"
    " echo $i | dd of=/data/n conv=notrunc,fsync 2>/dev/null && echo $i; sleep 0.02; done"
)


@pytest.fixture(scope="module", autouse=True)
def far(layer: LayerUnderTest) -> Iterator[Path]:
    """The pool ``far`` beside the default one."""
    place = layer.home / "far"
    layer.lamella("pool", "create", "far", "--driver", "directory", "--path", str(place))
    yield place
    layer.lamella("pool", "rm", "far")


def shown(layer: LayerUnderTest, kind: str, name: str) -> dict[str, Any]:
    return json.loads(layer.out(kind, "show", name, "-o", "json"))


def refused(layer: LayerUnderTest, *arguments: str) -> str:
    """What is said of what cannot be done: two lines, and no trace."""
    done = layer.lamella(*arguments, check=False)
    said = done.stderr.decode()
    assert done.returncode and "Traceback" not in said, said
    return said


def until(true: Callable[[], bool], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def heard(layer: LayerUnderTest) -> int:
    """The newest number that the writer said."""
    lines = layer.out("logs", "--tail", "1", "db").split()
    return int(lines[-1]) if lines else 0


def goes_on(layer: LayerUnderTest) -> None:
    """Twenty numbers more."""
    known = heard(layer)
    until(lambda: heard(layer) >= known + 20, "the writer does not go on")


def begin(layer: LayerUnderTest, volume: str = "data") -> None:
    layer.lamella("run", "-d", "--name", "db", "--volume", f"{volume}:/data", "busybox", "--", "sh", "-c", WRITE)
    until(lambda: heard(layer) > 5, "the writer does not begin")


def end(layer: LayerUnderTest) -> int:
    """The number that it said last."""
    layer.lamella("stop", "db")
    last = heard(layer)
    layer.lamella("rm", "--force", "db")
    return last


def read(layer: LayerUnderTest, volume: str) -> int:
    return int(layer.out("run", "--rm", "--volume", f"{volume}:/data", "busybox", "--", "cat", "/data/n"))


def replicated(layer: LayerUnderTest, phase: str = "current") -> None:
    def there() -> bool:
        return shown(layer, "replication", "data")["status"]["phase"] == phase

    until(there, f"replication data is not {phase}")


def test_a_move_there_and_back_under_a_writer(layer: LayerUnderTest) -> None:
    layer.lamella("volume", "create", "data", "--size", "64MiB")
    begin(layer)
    for pool in ("far", "default"):
        assert layer.out("volume", "move", "data", "--pool", pool, "-q") == "data\n"
        assert shown(layer, "volume", "data")["spec"]["pool"] == pool
        goes_on(layer)
    assert "is in pool default already" in refused(layer, "volume", "move", "data", "--pool", "default")
    layer.lamella("snapshot", "create", "data", "s")
    assert "which do not move" in refused(layer, "volume", "move", "data", "--pool", "far")
    layer.lamella("snapshot", "rm", "data@s")
    last = end(layer)
    assert read(layer, "data") >= last > 0


def test_a_policy_moves_by_itself(layer: LayerUnderTest) -> None:
    layer.lamella("pool", "create", "cold", "--driver", "directory", "--path", str(layer.home / "cold"))
    begin(layer)
    assert "at least 60" in refused(layer, "volume", "tier", "data", "--policy", "hot=far,cold=cold,after=5s")
    assert "--policy hot=fast" in refused(layer, "volume", "tier", "data", "--policy", "hot=far")
    assert layer.out("volume", "tier", "data", "--policy", "hot=far,cold=cold,after=60s") == "data\n"
    assert shown(layer, "volume", "data")["spec"]["tier"] == {"hot": "far", "cold": "cold", "after": 60}
    until(lambda: shown(layer, "volume", "data")["spec"]["pool"] == "far", "it was not moved")
    goes_on(layer)
    layer.lamella("volume", "tier", "data", "--off")
    assert shown(layer, "volume", "data")["spec"].get("tier") is None
    end(layer)
    layer.lamella("volume", "move", "data", "--pool", "default", "-q")
    layer.lamella("pool", "rm", "cold")


def test_an_asynchronous_replica_from_its_creation_to_its_promotion(layer: LayerUnderTest) -> None:
    begin(layer)
    assert "--to pool:NAME" in refused(layer, "replication", "create", "data", "--to", "far")
    assert "is in pool default itself" in refused(layer, "replication", "create", "data", "--to", "pool:default")
    assert layer.out("replication", "create", "data", "--to", "pool:far", "--every", "1s") == "data\n"
    assert "replicated already" in refused(layer, "replication", "create", "data", "--to", "pool:far")
    replicated(layer)
    head, row = layer.out("replication", "ls").splitlines()
    assert [row.split()[at] for at in (0, 1, 2, 3, 4, 5, 6)] == [
        *("data", "current", "async", "data", "data-replica", "far", "1s"),
    ]
    assert head.split()[7:9] == ["RPO", "WORST"]
    assert "volume: data\n" in layer.out("replication", "show", "data")

    def as_promised() -> bool:
        [kept] = json.loads(layer.out("contract", "db", "-o", "json"))["replicas"]
        assert kept["replica"] == "data-replica" and (not kept["kept"] or kept["achieved"] <= kept["promised"])
        return kept["kept"]

    # A busy machine is late now and then, and says so.
    until(as_promised, "its replica is never as new as was promised")
    layer.lamella("replication", "pause", "data")
    assert "BROKEN" in layer.out("contract", "db") and "it is paused" in layer.out("contract", "db")
    layer.lamella("replication", "resume", "data")
    replicated(layer)
    for force in ([], ["--force"]):
        assert "is open" in refused(layer, "replication", "promote", "data", *force)
    assert "replica of data" in refused(layer, "run", "--volume", "data-replica:/x", "busybox", "--", "true")
    last = end(layer)
    assert layer.out("replication", "promote", "data") == "data-replica\n"
    assert read(layer, "data-replica") >= last
    assert "its replica data-replica took its place" in refused(
        layer, "run", "--volume", "data:/x", "busybox", "--", "true"
    )
    assert [line.split()[:2] for line in layer.out("volume", "ls").splitlines()[1:]] == [
        ["data", "replaced"],
        ["data-replica", "ready"],
    ]
    layer.lamella("replication", "rm", "data")
    layer.lamella("volume", "rm", "data")
    layer.lamella("volume", "rename", "data-replica", "data")
    layer.lamella("volume", "move", "data", "--pool", "default", "-q")


def test_a_pair_of_a_volume_in_use(layer: LayerUnderTest, far: Path) -> None:
    begin(layer)
    layer.lamella("replication", "create", "data", "--to", "pool:far", "--mode", "sync")
    replicated(layer)
    assert "both have a write before it is acknowledged" in layer.out("contract", "db")
    goes_on(layer)
    layer.lamella("volume", "resize", "data", "96MiB")
    assert shown(layer, "volume", "data")["status"]["size"] == 96 << 20
    layer.lamella("snapshot", "create", "data", "s")
    goes_on(layer)
    layer.lamella("snapshot", "rm", "data@s")
    goes_on(layer)
    layer.lamella("replication", "pause", "data")
    replicated(layer, "degraded")
    [broken] = json.loads(layer.out("contract", "db", "-o", "json"))["replicas"]
    assert not broken["kept"] and "it is paused" in broken["why"]
    last = end(layer)
    assert "were acknowledged that the replica does not have" in refused(layer, "replication", "promote", "data")
    layer.lamella("replication", "resume", "data")
    replicated(layer)
    begin(layer)
    goes_on(layer)
    layer.lamella("replication", "rm", "data")
    goes_on(layer)
    assert end(layer) > last
    assert list((far / "volumes").iterdir()) == []


def test_a_daemon_that_is_killed_in_the_middle_of_all_of_it(layer: LayerUnderTest, far: Path) -> None:
    begin(layer)
    chance = random.Random(os.getpid())
    names = {"current", "promoted"}

    def cut(*arguments: str) -> None:
        """The daemon ends at some moment of the command, and the next one has what was asked done, or not at all."""
        asked = subprocess.Popen(
            [str(BIN / "lamella"), *arguments],
            env=layer.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(chance.uniform(0.1, 0.9))
        layer.kill()
        asked.wait(90)
        layer.start()

    def settled() -> None:
        operations = json.loads(layer.out("operation", "ls", "-o", "json"))
        assert all(item["status"]["phase"] != "running" or item["spec"]["verb"] == "move" for item in operations)
        until(lambda: '"running"' not in layer.out("operation", "ls", "-o", "json"), "an operation goes on for ever")

    def removed() -> bool:
        done = layer.lamella("replication", "rm", "data", check=False)
        return not done.returncode or b"no replication is called" in done.stderr

    layer.wait_phase("db", "running")
    for _ in range(2):
        pool = {"default": "far", "far": "default"}[shown(layer, "volume", "data")["spec"]["pool"]]
        cut("volume", "move", "data", "--pool", pool, "-q")
        settled()
        goes_on(layer)
    if shown(layer, "volume", "data")["spec"]["pool"] == "far":
        layer.lamella("volume", "move", "data", "--pool", "default", "-q")
    for mode in ("async", "sync"):
        create = ("replication", "create", "data", "--to", "pool:far", "--mode", mode, "--every", "1s")
        cut(*create)
        layer.lamella(*create, check=False)
        replicated(layer)
        goes_on(layer)
        cut("replication", "rm", "data")
        # There may be none any more; and what the killed daemon left under way may have to end before it can be asked for.
        until(removed, "the replication cannot be removed")
        until(lambda: layer.out("replication", "ls", "-q") == "", "the replication does not end")
        until(lambda: list((far / "volumes").iterdir()) == [], "a replica is left")
        goes_on(layer)
    layer.lamella("replication", "create", "data", "--to", "pool:far", "--every", "1s")
    replicated(layer)
    last = end(layer)
    cut("replication", "promote", "data")
    until(lambda: shown(layer, "replication", "data")["status"]["phase"] in names, "it is neither")
    layer.lamella("replication", "promote", "data")
    assert read(layer, "data-replica") >= last
    layer.lamella("replication", "rm", "data")
    layer.lamella("volume", "rm", "data", "data-replica")
    assert layer.out("volume", "ls", "-q") == ""
    assert list((far / "volumes").iterdir()) == []
    assert "nothing found" in layer.out("fsck")
