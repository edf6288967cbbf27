"""Ceilings as a person has them: asked for, changed while the instance runs, and read in its contract."""

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.house import LayerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


def until(check: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def buckets(layer: LayerUnderTest, id: str) -> dict[str, int]:
    """Bits a second that the buckets of the port *id* let through, by the first letters of their links."""
    holder = (layer.home / "run" / "room").read_text().split()[0]
    words = ["nsenter", f"--net=/proc/{holder}/ns/net", "tc", "-j", "qdisc", "show"]
    shown = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    return {
        each["dev"][:3]: each["options"]["rate"] * 8
        for each in shown
        if each["kind"] == "tbf" and each["dev"].endswith(id[-12:])
    }


def limits(layer: LayerUnderTest, name: str) -> dict[str, dict[str, Any]]:
    contract = json.loads(layer.out("contract", name, "-o", "json"))
    return {line["subject"]: line for line in contract["limits"]}


def test_ceilings_are_asked_for_changed_and_read(layer: LayerUnderTest) -> None:
    rates = ("--rate-in", "100Mbit", "--rate-out", "50Mbit")
    layer.lamella("run", "-d", "--name", "w1", *rates, "busybox", "--", "sleep", "1000")
    layer.lamella("run", "-d", "--name", "free", "busybox", "--", "sleep", "1000")
    port = layer.show("w1")["status"]["port"]
    assert buckets(layer, port) == {"lap": 100_000_000, "laq": 50_000_000}
    assert buckets(layer, layer.show("free")["status"]["port"]) == {}
    lines = limits(layer, "w1")
    assert lines["rate in"]["asked"] == "100Mbit/s" and lines["rate out"]["asked"] == "50Mbit/s"
    assert lines["rate in"]["value"].startswith("100Mbit/s; ") and "pass now" in lines["rate in"]["value"]
    assert "token bucket" in lines["rate out"]["enforced_by"]
    assert not [subject for subject in limits(layer, "free") if subject.startswith("rate")]

    # `set` comes back when it is so; what else the NIC is stays.
    layer.lamella("set", "w1", "--rate-in", "10Mbit")
    assert buckets(layer, port) == {"lap": 10_000_000, "laq": 50_000_000}
    layer.lamella("set", "w1", "--rate-out", "none", "--pids", "77")
    assert buckets(layer, port) == {"lap": 10_000_000}
    shown = layer.show("w1")
    assert shown["status"]["port"] == port and shown["spec"]["pids"] == 77
    assert "rate in" in layer.out("explain", "w1")

    # A daemon that is killed changes nothing, and the next one puts right what somebody took away.
    layer.kill()
    holder = (layer.home / "run" / "room").read_text().split()[0]
    words = ["nsenter", f"--net=/proc/{holder}/ns/net", "tc", "qdisc", "del", "dev", f"lap{port[-12:]}", "root"]
    subprocess.run(words, check=True)
    layer.start()
    until(lambda: buckets(layer, port) == {"lap": 10_000_000})
    layer.lamella("restart", "-t", "1s", "w1")
    assert buckets(layer, port) == {"lap": 10_000_000}

    layer.lamella("stop", "-t", "1s", "w1")
    line = limits(layer, "w1")["rate in"]
    assert line["value"] == "not running: nothing to read" and line["asked"] == "10Mbit/s"
    layer.lamella("rm", "--force", "w1", "free")
    assert buckets(layer, port) == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("set", "still", "--rate-in", "fast"), b"not a number of bits a second"),
        (("set", "still", "--rate-out", "1kbit"), b"cannot be kept"),
        (("set", "still", "--rate-in", "1Mbit", "--nic", "nic7"), b"no NIC 'nic7'"),
        (("set", "still", "--nic", "nic"), b"nothing of the NIC"),
        (("set", "alone", "--rate-in", "1Mbit"), b"has no network"),
        (("run", "--network", "none", "--rate-in", "1Mbit", "busybox"), b"no rate-in without a network"),
    ],
)
def test_what_cannot_be_is_said(layer: LayerUnderTest, words: tuple[str, ...], said: bytes) -> None:
    for name, network in (("still", "default"), ("alone", "none")):
        if layer.lamella("show", name, check=False).returncode:
            layer.lamella("create", "--name", name, "--network", network, "busybox")
    done = layer.lamella(*words, check=False)
    assert done.returncode and said in done.stderr, done.stderr
