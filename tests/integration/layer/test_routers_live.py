"""Routers and floating addresses as a person has them."""

import json
import subprocess
import time
from collections.abc import Callable

import pytest
from tests.house import LayerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

SERVER = "while :; do echo $(hostname) | nc -l -p 80; done"


def reaches(layer: LayerUnderTest, name: str, address: str) -> str:
    done = layer.lamella("exec", name, "--", "sh", "-c", f"nc -w 3 {address} 80 </dev/null", check=False)
    return done.stdout.decode().strip()


def until(check: Callable[[], bool], seconds: float = 90) -> None:
    """Hosts hear of a change a moment later."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline


def outside(layer: LayerUnderTest, address: str) -> str:
    """What is answered there to the daemon's host."""
    words = ["nsenter", f"--net=/run/netns/{layer.netns}", "timeout", "3"]
    words += ["bash", "-c", f"cat < /dev/tcp/{address}/80"]
    return subprocess.run(words, capture_output=True, check=False).stdout.decode().strip()


def test_a_router_joins_what_it_says(layer: LayerUnderTest) -> None:
    layer.lamella("network", "create", "front", "--subnet", "10.10.0.0/24")
    layer.lamella("network", "create", "back", "--subnet", "10.20.0.0/24", "--isolated")
    for name, *words in (("w1", "front", "--address", "10.10.0.7"), ("db", "back")):
        layer.lamella("run", "-d", "--name", name, "--network", *words, "busybox", "--", "sh", "-c", SERVER)
    db = layer.show("db")["status"]["address"]
    assert reaches(layer, "w1", db) == ""
    layer.lamella("router", "create", "edge", "--network", "front", "--network", "back", "--uplink")
    until(lambda: reaches(layer, "w1", db) == "db")
    shown = layer.out("router", "show", "edge")
    assert "front (10.10.0.0/24), gateway 10.10.0.1" in shown and "uplink   yes" in shown

    # A network with the same subnet as one without a router has to be behind one from the beginning.
    layer.lamella("router", "create", "other", "--uplink")
    layer.lamella("network", "create", "twin", "--subnet", "10.10.0.0/24", "--router", "other")
    words = ("--name", "w2", "--network", "twin", "--address", "10.10.0.7", "busybox", "--", "sh", "-c", SERVER)
    layer.lamella("run", "-d", *words)
    assert layer.show("w2")["status"]["address"] == layer.show("w1")["status"]["address"]
    assert reaches(layer, "w2", db) == ""

    # An address from outside, which leads to one and then to the other.
    layer.lamella("network", "create", "public", "--subnet", "198.51.100.0/28", "--external")
    address = layer.out("address", "create", "--attach", "w1").strip()
    until(lambda: outside(layer, address) == "w1")
    until(lambda: reaches(layer, "w2", address) == "w1" and reaches(layer, "w1", address) == "w1")
    # What is said of packets is what has become of them.
    for sender, to, where in (("w1", db, "router edge carries it"), ("w2", address, "lead floating address")):
        assert where in layer.out("network", "trace", sender, to, "tcp:80")
    layer.kill()
    layer.start()
    until(lambda: outside(layer, address) == "w1")
    layer.lamella("address", "detach", address)
    layer.lamella("address", "attach", address, "w2")
    until(lambda: outside(layer, address) == "w2")
    assert "w2" in layer.out("address", "ls")

    layer.lamella("rm", "--force", "w1", "w2", "db")
    until(lambda: "w2" not in layer.out("address", "ls"))
    layer.lamella("address", "rm", address)
    layer.lamella("network", "rm", "twin", "public")
    layer.lamella("router", "rm", "edge", "other")
    layer.lamella("network", "rm", "front", "back")
    assert json.loads(layer.out("router", "ls", "-o", "json")) == []
    until(lambda: not list((layer.home / "run" / "network" / "routers").iterdir()))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("router", "create", "x", "--network", "nothing"), b"no network is called"),
        (("router", "create", "x", "--route", "10.0.0.0/24"), b"no route"),
        (("router", "create", "x", "--route", "10.9.0.0/24=10.8.0.1"), b"on no network of the router"),
        (("router", "set", "nothing", "--uplink", "yes"), b"no router is called"),
        (("address", "create"), b"no external network"),
        (("address", "detach", "198.51.100.9"), b"no address is called"),
    ],
)
def test_what_cannot_be_is_said(layer: LayerUnderTest, words: tuple[str, ...], said: bytes) -> None:
    done = layer.lamella(*words, check=False)
    assert done.returncode == 1 and said in done.stderr, done.stderr
