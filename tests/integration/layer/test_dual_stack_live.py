"""A network of both families as a person has it: what is said of packets is what becomes of them."""

import pytest
from test_firewalls_live import SERVER, reaches, until
from tests.house import LayerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


def shut(layer: LayerUnderTest, name: str, address: str, port: int) -> bool:
    """Whether nobody answers within a second."""
    command = f"nc -w 1 {address} {port} </dev/null"
    return not layer.lamella("exec", name, "--", "sh", "-c", command, check=False).stdout.strip()


def test_instances_reach_each_other_by_both_families(layer: LayerUnderTest) -> None:
    layer.lamella("network", "create", "front", "--subnet", "10.92.0.0/24", "--subnet", "fd92::/64")
    layer.lamella("firewall", "create", "app")
    layer.lamella("firewall", "create", "web", "--allow", "tcp:80", "--allow", "from=firewall:app:tcp:81")
    run = ("run", "-d", "--network", "front")
    serve = ("busybox", "--", "sh", "-c", SERVER)
    layer.lamella(*run, "--name", "w1", "--address6", "fd92::80", "--firewall", "web", *serve)
    layer.lamella(*run, "--name", "friend", "--address", "10.92.0.9", "--firewall", "app", *serve)
    layer.lamella(*run, "--name", "other", *serve)
    four = layer.show("w1")["status"]["address"]
    until(lambda: reaches(layer, "other", "fd92::80", 80) and reaches(layer, "other", four, 80))
    until(lambda: reaches(layer, "friend", "fd92::80", 81))
    layer.lamella(*run, "--isolation", "microvm", "--name", "vm", "--address6", "fd92::33", *serve)
    until(lambda: reaches(layer, "vm", "fd92::80", 80) and reaches(layer, "other", "fd92::33", 80))
    assert shut(layer, "vm", "fd92::80", 81)
    assert shut(layer, "other", "fd92::80", 81) and shut(layer, "other", "fd92::9", 80)
    for words, passes, why in (
        (("other", "fd92::80", "tcp:80"), True, "web of w1 allows tcp:80"),
        (("friend", "fd92::80", "tcp:81"), True, "web of w1 allows from=firewall:app:tcp:81"),
        (("other", "fd92::80", "tcp:81"), False, "no rule of web lets it in to w1"),
        (("other", "fd92::9", "tcp:80"), False, "no rule of app"),
        (("other", "fd92::77", "tcp:80"), False, "nobody has fd92::77 on network front"),
        (("other", "fd92::1", "icmp"), True, "gateway"),
        (("other", "fd92::1", "tcp:80"), False, "gateway"),
        (("other", "2001:db8::1", "tcp:80"), True, "goes out"),
    ):
        done = layer.lamella("network", "trace", *words, check=False)
        assert (done.returncode == 0) == passes and why in done.stdout.decode(), done.stdout
    assert shut(layer, "other", "fd92::77", 80) and shut(layer, "other", "2001:db8::1", 80)

    # Names of both families, and what people see.
    hosts = layer.lamella("exec", "w1", "--", "cat", "/etc/hosts").stdout.decode()
    assert "fd92::80\tw1" in hosts
    until(
        lambda: (
            "fd92::80"
            in layer.lamella("exec", "other", "--", "nslookup", "w1.front.internal", check=False).stdout.decode()
        )
    )
    assert "fd92::9/64" in layer.out("port", "ls") and "fd92::/64" in layer.out("network", "ls")
    two = layer.lamella("network", "create", "x", "--subnet", "fd93::/64", "--subnet", "fd94::/64", check=False)
    assert two.returncode != 0 and b"one subnet of IPv6" in two.stderr
    taken = layer.lamella(*run, "--name", "late", "--address6", "fd92::80", *serve, check=False)
    assert taken.returncode != 0 and b"is taken" in taken.stderr

    # A daemon that is killed changes nothing, and what changes afterwards counts at once.
    layer.kill()
    layer.start()
    assert reaches(layer, "friend", "fd92::80", 81) and shut(layer, "other", "fd92::80", 81)
    layer.lamella("firewall", "set", "web", "--allow", "from=fd92::/64:tcp:81")
    until(lambda: reaches(layer, "other", "fd92::80", 81) and shut(layer, "other", four, 81))
    layer.lamella("restart", "-t", "1s", "w1")
    until(lambda: reaches(layer, "other", "fd92::80", 81))
    assert shut(layer, "other", "fd92::80", 80)
