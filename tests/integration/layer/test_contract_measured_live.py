"""What was promised against what was got, as a person reads it: contract, top, events, metrics; and after the daemon was killed."""

import http.client
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.house import LayerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

AT = "/v1/projects/default/instances"


class Api(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=90)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def call(layer: LayerUnderTest, method: str, path: str, body: object = None) -> bytes:
    api = Api(layer.home / "run" / "lamellad.sock")
    api.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"})
    answer = api.getresponse()
    content = answer.read()
    api.close()
    assert answer.status < 300, content
    return content


def until(check: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.25)


def lines(layer: LayerUnderTest, member: str) -> dict[str, dict[str, Any]]:
    contract = json.loads(layer.out("contract", "web", "-o", "json"))
    return {line["subject"]: line for line in contract[member]}


def test_a_contract_says_what_was_measured(layer: LayerUnderTest) -> None:
    # Little is promised: a busy machine has it all the same.
    spec = {
        "image": "busybox",
        "command": ["sh", "-c", "while :; do :; done"],
        "cpu": 500,
        "cpu_guarantee": 10,
        "memory": 64 << 20,
        "memory_guarantee": 8 << 20,
        "nics": [{"network": "default", "rate_in": 10_000_000}],
    }
    call(layer, "POST", f"{AT}?wait=60", {"name": "web", "spec": spec})
    promised = [
        ("guarantees", "cpu"),
        ("guarantees", "memory"),
        ("limits", "cpu"),
        ("limits", "memory"),
        ("limits", "rate in"),
    ]

    def judged() -> bool:
        return all(lines(layer, member)[subject]["verdict"] not in ("not-measured", "") for member, subject in promised)

    until(judged)
    until(lambda: lines(layer, "limits")["cpu"]["verdict"] == "kept")
    until(lambda: lines(layer, "limits")["memory"]["verdict"] == "kept")
    for member, subject in promised:
        line = lines(layer, member)[subject]
        assert [each["window"] for each in line["windows"]] == ["1m", "15m", "24h"]
        assert all(each["evidence"] for each in line["windows"])
    assert lines(layer, "limits")["pids"]["verdict"] == "not-measured", "what nobody measures is not called kept"
    assert "What it got" in layer.out("contract", "web")
    assert "STEAL" in layer.out("top")
    used = json.loads(call(layer, "GET", "/v1/projects/default/usage"))["web"]
    assert used["cpu_waited"] is not None, "the container is in the group that counts pressure"

    def measured() -> float:
        return lines(layer, "limits")["cpu"]["windows"][2]["measured"]

    before = measured()
    assert before >= 10
    layer.lamella("pause", "web")
    time.sleep(2.5)
    layer.lamella("resume", "web")
    until(lambda: measured() >= before, 8)
    metrics = call(layer, "GET", "/v1/metrics").decode()
    assert 'lamella_contract_verdict{project="default",instance="web"' in metrics
    assert 'lamella_instance_cpu_seconds_total{project="default",instance="web"' in metrics
    assert "contract" not in layer.out("events", "--type", "instance", "-o", "json")

    layer.kill()
    layer.start()
    until(judged)
    told = json.loads(layer.out("events", "--type", "contract", "-o", "json"))
    assert all(event["spec"]["type"].startswith("contract.") for event in told)
    layer.lamella("rm", "-f", "web")
