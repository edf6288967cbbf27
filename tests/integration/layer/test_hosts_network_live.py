"""One network on two hosts, each a daemon in a namespace of its own, under one control: packets, names, firewalls, and what is left."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_two_processes import HostDaemon, issue
from tests.house import LayerUnderTest, named_netns

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

CONTROL = "192.0.2.1:7443"
ADDRESSES = {"alpha": "192.0.2.1", "beta": "192.0.2.2"}


class Hosts:
    """The layer's ``control`` runs beside alpha."""

    def __init__(self, control: LayerUnderTest, alpha: HostDaemon, beta: HostDaemon) -> None:
        self.control, self.alpha, self.beta = control, alpha, beta

    def sh(self, name: str, command: str) -> subprocess.CompletedProcess[bytes]:
        return self.control.lamella("exec", name, "--", "sh", "-c", command, check=False)

    def until(self, name: str, command: str, *, succeeds: bool = True) -> str:
        """What *command* says in an instance, tried again for half a minute."""
        deadline = time.monotonic() + 90
        while True:
            done = self.sh(name, command)
            if (done.returncode == 0) == succeeds:
                return done.stdout.decode()
            assert time.monotonic() < deadline, (name, command, done)
            time.sleep(0.2)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, root_tar: Path) -> Iterator[Hosts]:
    with contextlib.ExitStack() as stack:
        names = [stack.enter_context(named_netns(f"lamella-x{os.getpid()}-{name}")) for name in ADDRESSES]
        link = (
            "ip",
            "-n",
            names[0],
            "link",
            "add",
            "under",
            "type",
            "veth",
            "peer",
            "name",
            "under",
            "netns",
            names[1],
        )
        subprocess.run(link, check=True)
        for netns, address in zip(names, ADDRESSES.values(), strict=True):
            subprocess.run(["ip", "-n", netns, "addr", "add", f"{address}/24", "dev", "under"], check=True)
            subprocess.run(["ip", "-n", netns, "link", "set", "under", "up"], check=True)
        directory = tmp_path_factory.mktemp("hosts")
        (directory / "control").mkdir(mode=0o700)
        control = LayerUnderTest(directory / "control", names[0])
        stack.callback(control.purge)
        control.start("--role", "control", "--listen", CONTROL)
        made: list[HostDaemon] = []
        for netns, (name, address) in zip(names, ADDRESSES.items(), strict=True):
            home = directory / name
            home.mkdir(mode=0o700)
            listen = f"{address}:7444"
            bundle = str(issue(control, name))
            host = HostDaemon(
                home, netns, "--control", CONTROL, "--listen", listen, "--bundle", bundle, "--underlay", address
            )
            stack.callback(host.purge)
            if made:
                # Images stay on the host that brought them: this one is carried by hand.
                shutil.copytree(made[0].home / "state" / "images", home / "state" / "images", symlinks=True)
            host.start()
            made.append(host)
            if len(made) == 1:
                control.lamella("image", "import", str(root_tar), "--name", "busybox")
        yield Hosts(control, *made)


def test_a_network_is_one_on_two_hosts(hosts: Hosts) -> None:
    control = hosts.control
    assert "network.underlay" in control.out("doctor")
    serve = "while :; do echo $HOSTNAME | nc -l -p 80; done"
    for name in ("one", "two"):
        control.lamella("run", "-d", "--name", name, "busybox", "--", "sh", "-c", serve)
    seen = {name: control.wait_phase(name, "running")["status"] for name in ("one", "two")}
    assert seen["one"]["host"] != seen["two"]["host"]
    assert "1450" in control.out("network", "ls")
    for name, other in (("one", "two"), ("two", "one")):
        address = seen[other]["address"]
        assert hosts.sh(name, "cat /sys/class/net/eth0/mtu").stdout == b"1450\n"
        assert other in hosts.until(name, f"nc -w 5 {address} 80 </dev/null | grep .")
        if shutil.which("dnsmasq"):
            hosts.until(name, f"nc -w 5 {other}.default.internal 80 </dev/null | grep .")
    said = control.out("network", "trace", "one", "two", "tcp:80")
    assert "VXLAN carries it there" in said and "DROPPED" not in said

    # Members of a firewall on another host are members, as they come and go.
    control.lamella("firewall", "create", "app", "--allow", "tcp:80")
    control.lamella("firewall", "create", "web", "--allow", "from=firewall:app:tcp:80")
    control.lamella("firewall", "attach", "web", "two")
    ask = f"nc -w 2 {seen['two']['address']} 80 </dev/null | grep ."
    hosts.until("one", ask, succeeds=False)
    control.lamella("firewall", "attach", "app", "one")
    hosts.until("one", ask)
    control.lamella("firewall", "detach", "app", "one")
    hosts.until("one", ask, succeeds=False)
    control.lamella("firewall", "detach", "web", "two")
    hosts.until("one", ask)

    # A daemon that is killed has no part in what is sent, and the next one hears of what it missed.
    hosts.alpha.kill()
    hosts.beta.kill()
    hosts.beta.start()
    hosts.alpha.start()
    hosts.until("one", ask)
    control.lamella("rm", "--force", "two")
    hosts.until("one", ask, succeeds=False)

    def tunnels() -> str:
        """Of both layers; the namespace of each is that of whoever keeps its room."""
        return "".join(inside(host, "ip", "-o", "link", "show", "type", "vxlan") for host in (hosts.alpha, hosts.beta))

    until(lambda: tunnels() == "")
    # It is reached at its new place, which may be the old one.
    control.lamella("run", "-d", "--name", "two", "busybox", "--", "sh", "-c", serve)
    address = control.wait_phase("two", "running")["status"]["address"]
    hosts.until("one", f"nc -w 5 {address} 80 </dev/null | grep .")
    assert len(tunnels().splitlines()) == 2
    control.lamella("rm", "--force", "one", "two")
    until(lambda: tunnels() == "")


def inside(host: HostDaemon, *words: str) -> str:
    """What *words* say in the layer's namespace of a host."""
    keeper = (host.home / "run" / "room").read_text().split()[0]
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{keeper}/ns/net", *words], capture_output=True, text=True, timeout=90
    )
    return done.stdout
