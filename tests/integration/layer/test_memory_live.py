"""What a person sees of memory that is guaranteed: through the API, in the contract, across a daemon that is killed."""

import http.client
import json
import socket
import time
from typing import Any

import pytest
from tests.house import LayerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

MIB = 1 << 20


def create(layer: LayerUnderTest, name: str, spec: dict[str, Any]) -> None:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(layer.home / "run" / "lamellad.sock"))
    body = json.dumps({"name": name, "spec": spec})
    connection.request("POST", "/v1/projects/default/instances?wait=60", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status < 400, answer.read()
    connection.close()


def lines(layer: LayerUnderTest, name: str) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in json.loads(layer.out("contract", name, "-o", "json"))["isolation"]}


def test_a_guaranteed_instance_tells_what_it_has_now(layer: LayerUnderTest) -> None:
    spec = {"image": "busybox", "command": ["sleep", "1000"], "memory": 256 * MIB, "memory_guarantee": 64 * MIB}
    create(layer, "m1", spec)
    layer.lamella("run", "-d", "--name", "plain", "busybox", "--", "sleep", "1000")

    def appears() -> dict[str, Any]:
        # On a busy machine it may not answer in time now and then, which is what the line says then.
        deadline = time.monotonic() + 60
        while "of 256MiB; in use " not in (found := lines(layer, "m1")).get("memory now", {}).get("value", ""):
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        return found

    found = appears()
    assert "page cache" in found["memory taken back"]["value"]
    assert "memory now" not in lines(layer, "plain")
    layer.kill()
    layer.start()
    assert appears()["memory taken back"]["in_force"] is True
    layer.lamella("rm", "--force", "m1", "plain")
