"""Names and metadata as instances have them, at two levels of isolation."""

import time
from collections.abc import Callable

import pytest
from tests.house import LayerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


def until(check: Callable[[], bool], seconds: float = 90) -> None:
    """Services hear of a change a moment later."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def said(layer: LayerUnderTest, name: str, command: str) -> str:
    return layer.lamella("exec", name, "--", "sh", "-c", command, check=False).stdout.decode()


def test_instances_know_each_other_by_name_and_themselves(layer: LayerUnderTest) -> None:
    layer.lamella("network", "create", "names", "--subnet", "10.77.0.0/24")
    for name, level in (("ns1", "container"), ("ns2", "microvm")):
        run = ("run", "-d", "--isolation", level, "--name", name, "--network", "names", "busybox")
        layer.lamella(*run, "--", "sleep", "1000")
    addresses = {name: layer.show(name)["status"]["address"] for name in ("ns1", "ns2")}
    for asking, asked in (("ns1", "ns2"), ("ns2", "ns1")):
        assert said(layer, asking, "cat /etc/resolv.conf").split() == ["nameserver", "10.77.0.1"]
        for name in (asked, f"{asked}.names.internal"):
            until(lambda: addresses[asked] in said(layer, asking, f"nslookup {name}"))  # noqa: B023
    assert "network.dns" in layer.out("doctor")
    for name in ("ns1", "ns2"):
        # What each is told of itself: by the daemon, which begins to listen a moment after the network is made.
        for path, told in (
            ("instance-id", layer.show(name)["id"]),
            ("local-ipv4", addresses[name]),
            ("hostname", name),
        ):
            request = rf"GET /latest/meta-data/{path} HTTP/1.0\r\n\r\n"
            command = f"printf '{request}' | nc -w 30 169.254.169.254 80 | tail -n 1"
            until(lambda: said(layer, name, command) == told)  # noqa: B023

    # A daemon that is killed takes no name with it, and one that starts again tells the names of what comes.
    layer.kill()
    layer.start()
    assert addresses["ns1"] in said(layer, "ns2", "nslookup ns1")
    layer.lamella("run", "-d", "--name", "ns3", "--network", "names", "busybox", "--", "sleep", "1000")
    third = layer.show("ns3")["status"]["address"]
    until(lambda: third in said(layer, "ns2", "nslookup ns3"))
    layer.lamella("rm", "--force", "ns3")
    until(lambda: third not in said(layer, "ns2", "nslookup ns3"))
    layer.lamella("rm", "--force", "ns1", "ns2")
    layer.lamella("network", "rm", "names")
