"""Balancers as a person has them."""

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tests.house import LayerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

# Busybox answers every file of /tmp/www.
SERVER = "mkdir -p /tmp/www && hostname >/tmp/www/index.html && echo fine >/tmp/www/healthz && exec httpd -f -p 8080 -h /tmp/www"


def until(check: Callable[[], bool], seconds: float = 90) -> None:
    """Hosts hear of a change a moment later."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def states(layer: LayerUnderTest, name: str = "www") -> dict[str, str]:
    seen: dict[str, list[dict[str, Any]]] = json.loads(layer.out("balancer", "show", name, "-o", "json"))["status"][
        "backends"
    ]
    return {one["instance"]: one["state"] for each in seen.values() for one in each}


def fetched(layer: LayerUnderTest, address: str, times: int = 6) -> Counter[str]:
    once = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 30 {address} 80 | tail -n 1 | grep . || echo nothing"
    loop = f"for n in $(seq {times}); do {once}; done"
    return Counter(layer.lamella("exec", "client", "--", "sh", "-c", loop, check=False).stdout.decode().split())


def test_a_balancer_follows_labels_health_and_intent(layer: LayerUnderTest) -> None:
    run = ("run", "-d", "--label", "role=web", "busybox", "--", "sh", "-c", SERVER)
    for name in ("w1", "w2"):
        layer.lamella("run", "-d", "--name", name, *run[2:])
    layer.lamella("run", "-d", "--name", "client", "busybox", "--", "sleep", "1000")
    layer.lamella(
        *("balancer", "create", "www", "--listen", "tcp:80", "--to", "label:role=web:8080"),
        *("--check", "http:/healthz", "--publish", "18080:80", "--interval", "2"),
    )
    until(lambda: states(layer) == {"w1": "up", "w2": "up"})
    address = json.loads(layer.out("balancer", "show", "www", "-o", "json"))["spec"]["address"]
    until(lambda: fetched(layer, address) == {"w1": 3, "w2": 3})
    shown = layer.out("balancer", "show", "www")
    assert "label:role=web:8080" in shown and "http:/healthz" in shown and "8080->80" in shown
    assert "2/2" in layer.out("balancer", "ls")
    done = layer.lamella("network", "rm", "default", check=False)
    assert done.returncode == 1

    # One that says it is not well gets nothing, and it is an event.
    layer.lamella("exec", "w1", "--", "rm", "/tmp/www/healthz")
    until(lambda: states(layer) == {"w1": "down", "w2": "up"})
    until(lambda: fetched(layer, address, 3) == {"w2": 3})
    assert "it answers 404" in layer.out("balancer", "show", "www")
    assert "balancer.backend.down" in layer.out("events")
    layer.lamella("exec", "w1", "--", "sh", "-c", "echo fine >/tmp/www/healthz")
    until(lambda: states(layer) == {"w1": "up", "w2": "up"})

    # Backends come with their labels, drain when they are asked to, and go when they stop.
    layer.lamella("run", "-d", "--name", "w3", *run[2:])
    until(lambda: states(layer) == {"w1": "up", "w2": "up", "w3": "up"})
    layer.lamella("balancer", "set", "www", "--drain-backend", "w2")
    until(lambda: states(layer)["w2"] == "draining")
    until(lambda: fetched(layer, address) == {"w1": 3, "w3": 3})
    layer.lamella("set", "w3", "--label", "role-")
    until(lambda: states(layer) == {"w1": "up", "w2": "draining"})

    # A daemon that is killed leaves it serving; the next one goes on with it.
    layer.kill()
    layer.start()
    until(lambda: fetched(layer, address, 2) == {"w1": 2})
    layer.lamella("balancer", "set", "www", "--undrain-backend", "w2")
    until(lambda: states(layer) == {"w1": "up", "w2": "up"})
    layer.lamella("stop", "-t", "1s", "w1")
    until(lambda: states(layer) == {"w2": "up"})
    until(lambda: fetched(layer, address, 2) == {"w2": 2})

    layer.lamella("balancer", "rm", "www")
    assert json.loads(layer.out("balancer", "ls", "-o", "json")) == []
    until(lambda: fetched(layer, address, 1) == {"nothing": 1})
    layer.lamella("rm", "--force", "w1", "w2", "w3", "client")
