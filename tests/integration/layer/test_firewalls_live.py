"""Firewalls as a person has them, at two levels of isolation."""

import json
import time
from collections.abc import Callable

import pytest
from tests.house import LayerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

SERVER = "while :; do echo served | nc -l -p 80; done & while :; do echo other | nc -l -p 81; done"


def reaches(layer: LayerUnderTest, name: str, address: str, port: int) -> bool:
    command = f"nc -w 3 {address} {port} </dev/null"
    return bool(layer.lamella("exec", name, "--", "sh", "-c", command, check=False).stdout.strip())


def until(check: Callable[[], bool], seconds: float = 90) -> None:
    """Hosts hear of a change a moment later."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline


@pytest.mark.parametrize("isolation", ["container", "microvm"])
def test_a_firewall_lets_in_what_it_says(layer: LayerUnderTest, isolation: str) -> None:
    layer.lamella("firewall", "create", "app")
    layer.lamella("firewall", "create", "web", "--allow", "tcp:80", "--allow", "from=firewall:app:tcp:81")
    run = ("run", "-d", "--isolation", isolation)
    layer.lamella(*run, "--name", "w1", "--firewall", "web", "busybox", "--", "sh", "-c", SERVER)
    layer.lamella("run", "-d", "--name", "friend", "--firewall", "app", "busybox", "--", "sh", "-c", SERVER)
    layer.lamella("run", "-d", "--name", "other", "busybox", "--", "sh", "-c", SERVER)
    address = {name: layer.show(name)["status"]["address"] for name in ("w1", "friend", "other")}
    until(lambda: reaches(layer, "other", address["w1"], 80))
    until(lambda: reaches(layer, "friend", address["w1"], 81))
    assert not reaches(layer, "other", address["w1"], 81) and not reaches(layer, "other", address["friend"], 80)
    assert reaches(layer, "w1", address["other"], 80)
    # What is said of packets is what has become of them.
    for words, passes, why in (
        (("other", "w1", "tcp:80"), True, "web of w1 allows tcp:80"),
        (("friend", "w1", "tcp:81"), True, "web of w1 allows from=firewall:app:tcp:81"),
        (("other", "w1", "tcp:81"), False, "no rule of web lets it in to w1"),
        (("other", address["friend"], "tcp:80"), False, "no rule of app"),
        (("w1", "other", "tcp:80"), True, "no firewall guards other"),
        (("other", "169.254.169.254", "tcp:80"), True, "metadata"),
        (("other", "169.254.169.253", "tcp:80"), False, "link-local"),
        (("other", "10.83.0.1", "icmp"), True, "gateway"),
    ):
        done = layer.lamella("network", "trace", *words, check=False)
        assert (done.returncode == 0) == passes and why in done.stdout.decode(), done.stdout

    shown = layer.out("firewall", "show", "web")
    assert "from=firewall:app:tcp:81" in shown and "guards w1" in shown
    assert "web" in layer.out("port", "ls")
    done = layer.lamella("firewall", "rm", "app", check=False)
    assert done.returncode == 1 and b"guards friend" in done.stderr

    # Changes count at once, and a daemon that starts again neither opens nor closes anything.
    layer.lamella("firewall", "attach", "app", "other")
    until(lambda: reaches(layer, "other", address["w1"], 81))
    layer.lamella("firewall", "set", "web", "--allow", "tcp:81")
    until(lambda: not reaches(layer, "other", address["w1"], 80))
    layer.kill()
    layer.start()
    assert reaches(layer, "other", address["w1"], 81) and not reaches(layer, "other", address["w1"], 80)
    layer.lamella("restart", "-t", "1s", "w1")
    until(lambda: reaches(layer, "other", address["w1"], 81))
    assert not reaches(layer, "other", address["w1"], 80)

    layer.lamella("rm", "--force", "w1", "friend", "other")
    layer.lamella("firewall", "rm", "web", "app")
    assert json.loads(layer.out("firewall", "ls", "-o", "json")) == []
