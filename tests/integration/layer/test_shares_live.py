"""A guarantee is a weight and a core of one's own is a cpuset: both read from the kernel, through everything that may befall them."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.house import LayerUnderTest

from lamella.model.cpulist import parse_list

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

SLEEP = ("busybox", "--", "sleep", "100000")


@pytest.fixture
def neighbour(layer: LayerUnderTest) -> Iterator[str]:
    """Somebody who was promised nothing. Whatever a test has left is removed."""
    layer.lamella("run", "-d", "--name", "neighbour", "--network", "none", *SLEEP)
    yield "neighbour"
    for name in layer.out("ps", "-a", "-q").split():
        layer.lamella("rm", "--force", name)


def group(layer: LayerUnderTest, name: str, controller: str) -> Path:
    """The directory of the instance's group, as the kernel tells it of its process."""
    pid = layer.show(name)["status"]["pid"]
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return Path("/sys/fs/cgroup", controller, path.lstrip("/"))
        if not controllers and not Path("/sys/fs/cgroup/cpu").exists():
            return Path("/sys/fs/cgroup", path.lstrip("/"))
    raise AssertionError(f"{name} is in no {controller} group")


def weight(layer: LayerUnderTest, name: str) -> float:
    """In cores' worth."""
    place = group(layer, name, "cpu")
    shares = place / "cpu.shares"
    return int(shares.read_text()) / 1024 if shares.exists() else int((place / "cpu.weight").read_text()) / 100


def cpus(layer: LayerUnderTest, name: str) -> list[int]:
    """Those that the kernel lets its process run on."""
    return sorted(os.sched_getaffinity(layer.show(name)["status"]["pid"]))


def line_of(layer: LayerUnderTest, name: str, kind: str, subject: str) -> dict[str, str] | None:
    contract = json.loads(layer.out("contract", name, "-o", "json"))
    return next((line for line in contract[kind] if line["subject"] == subject), None)


def until(true, what: str) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_a_guarantee_is_a_weight_that_the_kernel_has(layer: LayerUnderTest, neighbour: str) -> None:
    assert weight(layer, neighbour) == 1
    layer.lamella(
        "run", "-d", "--name", "web", "--cpu", "1", "--cpu-guarantee", "0.5", "--memory", "16MiB..64MiB",
        "--priority", "high", "--network", "none", *SLEEP,
    )  # fmt: skip
    assert weight(layer, "web") == 0.5
    assert 0 < weight(layer, neighbour) <= len(os.sched_getaffinity(0)) - 0.5
    line = line_of(layer, "web", "guarantees", "cpu")
    assert line is not None and line["asked"] == "0.5 cores" and Path(line["enforced_by"]).exists()
    assert line_of(layer, neighbour, "guarantees", "cpu") is None
    assert layer.show("web")["spec"]["memory_guarantee"] == 16 << 20
    assert "share of the host" in layer.out("explain", "web")
    layer.lamella("set", "web", "--cpu", "0.8", "--cpu-guarantee", "0.7")
    assert round(weight(layer, "web"), 2) == 0.7
    refused = layer.lamella("set", "web", "--cpu", "1000", "--cpu-guarantee", "900", check=False)
    assert refused.returncode == 1 and b"guaranteed cores left" in refused.stderr and b"would fit" in refused.stderr
    # Somebody took it away, and the daemon with it: the next one puts it back.
    place = group(layer, "web", "cpu")
    layer.kill()
    next(place / file for file in ("cpu.shares", "cpu.weight") if (place / file).exists()).write_text("100")
    layer.start()
    until(lambda: round(weight(layer, "web"), 2) == 0.7, "the weight did not come back")
    layer.lamella("stop", "-t", "0", "web")
    until(lambda: weight(layer, neighbour) == 1, "the neighbour is not as the kernel has it")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a core of one's own needs a second one for the rest")
def test_a_core_of_ones_own_is_nobody_elses(layer: LayerUnderTest, neighbour: str) -> None:
    everything = sorted(os.sched_getaffinity(0))
    assert cpus(layer, neighbour) == everything
    layer.lamella(
        "run", "-d", "--isolation", "microvm", "--name", "pinned", "--cpu", "1", "--cpu-pin", "--memory", "192MiB",
        "--network", "none", *SLEEP,
    )  # fmt: skip
    own = layer.show("pinned")["status"]["cpus"]
    others = [cpu for cpu in everything if cpu not in own]
    assert own and others and cpus(layer, "pinned") == own
    assert cpus(layer, neighbour) == others
    line = line_of(layer, "pinned", "limits", "cpuset")
    assert line is not None and parse_list(Path(line["enforced_by"]).read_text()) == own
    pid = layer.show("pinned")["status"]["pid"]
    threads = [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]
    assert len(threads) > 1 and all(os.sched_getaffinity(thread) <= set(own) for thread in threads)
    layer.lamella("run", "-d", "--name", "later", "--network", "none", *SLEEP)
    assert cpus(layer, "later") == others
    assert "cores of its own" in layer.out("explain", "pinned") and "pinned" in layer.out("host", "topology")
    refused = layer.lamella(
        "run", "-d", "--cpu", str(len(everything)), "--cpu-pin", "--network", "none", *SLEEP, check=False
    )
    assert refused.returncode != 0 and b"guaranteed cores left" in refused.stderr and b"--cpu" in refused.stderr
    layer.kill()
    layer.start()
    until(
        lambda: cpus(layer, "pinned") == own and cpus(layer, neighbour) == others, "the next daemon forgot who is where"
    )
    layer.lamella("stop", "-t", "0", "pinned")
    until(lambda: cpus(layer, neighbour) == everything, "the core did not come back")
    until(lambda: not layer.show("pinned")["status"]["cpus"], "the core is still claimed")
    layer.lamella("set", "later", "--cpu", "1", "--cpu-pin")
    assert cpus(layer, "later") == layer.show("later")["status"]["cpus"] != []
    assert not set(cpus(layer, "later")) & set(cpus(layer, neighbour))
    layer.lamella("set", "later", "--no-cpu-pin")
    until(lambda: cpus(layer, "later") == cpus(layer, neighbour) == everything, "the core did not come back")
