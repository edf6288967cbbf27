"""Networks as a person has them: made, used by instances, changed while they are used, removed."""

import json
import subprocess
import time
from typing import Any

import pytest
from tests.house import LayerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

SERVER = "while :; do echo $(hostname) | nc -l -p 80; done"


def reaches(layer: LayerUnderTest, name: str, address: str) -> str:
    done = layer.lamella("exec", name, "--", "sh", "-c", f"nc -w 2 {address} 80 </dev/null", check=False)
    return done.stdout.decode().strip()


def listed(layer: LayerUnderTest, *words: str) -> list[dict[str, Any]]:
    return json.loads(layer.out(*words, "-o", "json"))


def inside(layer: LayerUnderTest, *words: str) -> bytes:
    """What a program says in the layer's network namespace."""
    holder = (layer.home / "run" / "room").read_text().split()[0]
    return subprocess.run(
        ["nsenter", f"--net=/proc/{holder}/ns/net", *words], capture_output=True, check=True, timeout=90
    ).stdout


def bridges(layer: LayerUnderTest) -> set[str]:
    return {link["ifname"] for link in json.loads(inside(layer, "ip", "-j", "link", "show", "type", "bridge")) if link}


def test_a_network_of_ones_own(layer: LayerUnderTest) -> None:
    before = bridges(layer)
    layer.lamella("network", "create", "front", "--subnet", "10.10.0.0/24")
    layer.lamella("network", "create", "back", "--isolated")
    for name, *words in (("w1", "front", "--address", "10.10.0.7"), ("w2", "front"), ("db", "back")):
        layer.lamella("run", "-d", "--name", name, "--network", *words, "busybox", "--", "sh", "-c", SERVER)
    assert layer.show("w1")["status"]["address"] == "10.10.0.7"
    db = layer.show("db")["status"]["address"]
    assert reaches(layer, "w2", "10.10.0.7") == "w1"
    assert reaches(layer, "w2", db) == "" and reaches(layer, "db", "10.10.0.7") == ""

    ports = {row["spec"]["address"] for row in listed(layer, "port", "ls", "--network", "front")}
    assert "10.10.0.7/24" in ports and len(ports) == 2
    assert "w1" in layer.out("port", "ls") and "w1" in layer.out("network", "show", "front")

    refused = layer.lamella("network", "rm", "front", check=False)
    assert refused.returncode == 1 and b"in use by w1, w2" in refused.stderr

    # A daemon that starts again finds it all, and what changed meanwhile comes into force.
    layer.kill()
    layer.start()
    assert reaches(layer, "w2", "10.10.0.7") == "w1" and reaches(layer, "w2", db) == ""

    # Somebody flushes all rules: that is noticed, and mended.
    inside(layer, "nft", "flush", "ruleset")
    deadline = time.monotonic() + 90
    while "somebody changed the layer's network" not in layer.log():
        assert time.monotonic() < deadline, layer.log()
        time.sleep(0.2)
    assert reaches(layer, "w2", "10.10.0.7") == "w1" and reaches(layer, "w2", db) == ""

    layer.lamella("rm", "--force", "w1", "w2", "db")
    layer.lamella("network", "rm", "front", "back")
    # Hosts hear of it a moment later.
    deadline = time.monotonic() + 90
    while bridges(layer) != before:
        assert time.monotonic() < deadline, bridges(layer)
        time.sleep(0.1)
    assert [row["name"] for row in listed(layer, "network", "ls")] == ["default"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("create", "x", "--subnet", "10.83.4.0/24"), b"which network default has"),
        (("create", "x", "--subnet", "10.1.2.3/24"), b"did you mean 10.1.2.0/24?"),
        (("create", "x", "--subnet", "everything"), b"no subnet"),
        (("create", "X"), b"not a name"),
        (("create", "x", "--mtu", "9"), b"576"),
        (("rm", "default"), b"stays"),
        (("rm", "nothing"), b"no network"),
        (("set", "default"), b"nothing to change"),
    ],
)
def test_what_cannot_be_is_said(layer: LayerUnderTest, words: tuple[str, ...], said: bytes) -> None:
    done = layer.lamella("network", *words, check=False)
    assert done.returncode != 0 and said in done.stderr, done.stderr
    assert b"Traceback" not in done.stderr
    assert [row["name"] for row in listed(layer, "network", "ls")] == ["default"]
