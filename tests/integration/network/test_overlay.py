"""Networks that span hosts, against real packets: two hosts joined by an underlay, each a world of its own with a driver of its own."""

import asyncio
import contextlib
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace
from network_world import NETWORK, World, command, port

from lamella.host.machine import far_port
from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.names import bridge_name, overlay_name
from lamella.model.errors import Unavailable
from lamella.model.firewall import FirewallSpec
from lamella.model.firewall_text import parse
from lamella.model.ids import new_id
from lamella.model.network import Neighbour

pytestmark = pytest.mark.root
T = TypeVar("T")

SPANNING = replace(NETWORK, vni=4711, mtu=1450)
LINK, BRIDGE = overlay_name(SPANNING.id), bridge_name(SPANNING.id)


class Host(World):
    """One of two: its underlay's address is 192.0.2.*number*; ``i`` is the namespace of its one port."""

    def __init__(self, directory: Path, number: int) -> None:
        directory.mkdir()
        super().__init__(directory)
        self.address = f"192.0.2.{number}"
        self.port = port(number)
        self.specs: dict[str, FirewallSpec] = {}
        self.neighbours: list[Neighbour] = []
        self.add("i", loopback=False)
        self.serve("i", 80, f"host{number}")

    def neighbour(self, **more: Any) -> Neighbour:
        """The port as the other host is told of it."""
        one = Neighbour(
            port=self.port.id,
            network=SPANNING.id,
            address=self.port.address,
            mac=self.port.mac,
            host=self.address,
            firewalls=self.port.firewalls,
        )
        return replace(one, **more)

    def life(self, use: Callable[[BridgeDriver], Coroutine[Any, Any, T]], *, underlay: str | None = None) -> T:
        """Of a daemon: what it is told at its start, then *use*."""

        async def body() -> T:
            own = self.address if underlay is None else underlay
            driver = BridgeDriver(self.home, self.path("layer"), underlay=own)
            await driver.open()
            try:
                await driver.ensure_network(SPANNING)
                await driver.protect(self.specs, [self.port, *map(far_port, self.neighbours)])
                await driver.span(self.neighbours)
                return await use(driver)
            finally:
                await driver.close()

        return self.inside("host", lambda: asyncio.run(body()))

    def join(self) -> None:
        async def use(driver: BridgeDriver) -> None:
            await driver.attach_namespace(self.port, self.path("i"))

        self.life(use)

    def again(self) -> None:
        async def use(driver: BridgeDriver) -> None:
            pass

        self.life(use)

    def end(self) -> None:
        async def use(driver: BridgeDriver) -> None:
            await driver.teardown()

        self.inside("host", lambda: asyncio.run(use(BridgeDriver(self.home, self.path("layer")))))


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    """Told of each other, their ports attached."""
    with contextlib.ExitStack() as stack:
        one, two = (Host(tmp_path / f"host{number}", number) for number in (2, 3))
        stack.callback(one.close)
        stack.callback(two.close)
        near, far = (f"u{secrets.token_hex(3)}" for _ in range(2))
        command(
            "ip",
            "-n",
            one.full("host"),
            "link",
            "add",
            near,
            "type",
            "veth",
            "peer",
            "name",
            far,
            "netns",
            two.full("host"),
        )
        for host, link in ((one, near), (two, far)):
            command("ip", "-n", host.full("host"), "addr", "add", f"{host.address}/24", "dev", link)
            command("ip", "-n", host.full("host"), "link", "set", link, "up")
        tell(one, two)
        for host in (one, two):
            host.join()
        yield one, two


def tell(one: Host, two: Host) -> None:
    one.neighbours, two.neighbours = [two.neighbour()], [one.neighbour()]


def said(host: Host, address: str, bind: str = "") -> str:
    """What the server there answers, asked for half a minute; nothing when it does not."""
    deadline = time.monotonic() + 90
    while True:
        with contextlib.suppress(OSError):
            return host.ask("i", address, 80, bind=bind)
        if time.monotonic() >= deadline:
            return ""


def answers(host: Host, address: str) -> bool:
    return bool(said(host, address))


def stopped(host: Host, address: str) -> bool:
    client = host.endpoint("i")
    client.settimeout(0.4)
    with contextlib.suppress(OSError):
        client.connect((address, 80))
        return not client.recv(100)
    return True


def both_ways(one: Host, two: Host) -> None:
    assert answers(one, "10.83.0.3") and answers(two, "10.83.0.2")


def test_ports_on_two_hosts_are_on_one_network(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    both_ways(one, two)
    assert one.pings("i", "10.83.0.3") and two.pings("i", "10.83.0.2")
    # Each is seen under its own address, with the MAC that control told: nobody learned it.
    assert said(one, "10.83.0.3") == "host3 10.83.0.2"
    assert two.port.mac in one.in_("i", "ip", "neigh", "show", "10.83.0.3")
    # The gateway is the one of the own host: both have it.
    assert one.pings("i", "10.83.0.1") and two.pings("i", "10.83.0.1")


def test_a_packet_as_large_as_told_passes_and_no_larger_one(hosts: tuple[Host, Host]) -> None:
    one, _ = hosts
    assert one.pings("i", "10.83.0.3")
    assert "mtu 1450" in one.in_("i", "ip", "link", "show", "eth0")
    one.in_("i", "ping", "-c3", "-i0.2", "-W5", "-M", "do", "-s", str(1450 - 28), "10.83.0.3")
    with pytest.raises(subprocess.CalledProcessError):
        one.in_("i", "ping", "-c1", "-W1", "-M", "do", "-s", str(1451 - 28), "10.83.0.3")


def test_firewalls_hold_across_hosts(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    app, web = new_id("firewall"), new_id("firewall")
    specs = {
        app: FirewallSpec(),
        web: FirewallSpec(inbound=[parse(f"from=firewall:{app}:tcp:80")]),
    }
    one.specs = two.specs = specs
    two.port = replace(two.port, firewalls=[web])
    tell(one, two)
    for host in (one, two):
        host.again()
    assert two.pings("i", "10.83.0.2")
    assert stopped(one, "10.83.0.3") and not one.pings("i", "10.83.0.3", patience=0)
    one.port = replace(one.port, firewalls=[app])
    tell(one, two)
    for host in (one, two):
        host.again()
    # A member on another host is a member.
    assert answers(one, "10.83.0.3") and not one.pings("i", "10.83.0.3", patience=0)
    assert stopped(two, "10.83.0.2")


def test_the_host_of_the_asked_one_decides_alone(hosts: tuple[Host, Host]) -> None:
    """The other may not know of its firewall yet."""
    one, two = hosts
    web = new_id("firewall")
    two.specs, two.port = {web: FirewallSpec(inbound=[parse("tcp:443")])}, replace(two.port, firewalls=[web])
    two.again()
    assert two.pings("i", "10.83.0.2") and stopped(one, "10.83.0.3")


def test_nobody_takes_a_foreign_place(hosts: tuple[Host, Host]) -> None:
    """Not by another address, not by another MAC; and what a host sends that has none of its ports is dropped where it arrives."""
    one, two = hosts
    both_ways(one, two)
    # By its own host it could not send so at all: that one is made blind.
    blind = f"nft insert rule bridge {one.home.mark} prerouting accept"
    one.in_("layer", *blind.split())
    one.in_("i", "ip", "addr", "add", "10.83.0.77/16", "dev", "eth0")
    two.in_("layer", "ip", "neigh", "replace", "10.83.0.77", "lladdr", one.port.mac, "dev", BRIDGE, "nud", "permanent")
    with pytest.raises(OSError):
        one.ask("i", "10.83.0.3", 80, bind="10.83.0.77")
    assert said(one, "10.83.0.3", bind="10.83.0.2")
    # Two believes that its neighbour is on a third host.
    two.neighbours = [one.neighbour(host="192.0.2.9")]
    two.again()
    seen = [
        line
        for line in two.in_("host", "nft", "list", "table", "ip", f"{two.home.mark}-x").splitlines()
        if "drop" in line
    ]
    assert len(seen) == 1 and "192.0.2.9" in seen[0]
    assert stopped(one, "10.83.0.3")
    two.neighbours = [one.neighbour()]
    two.again()
    both_ways(one, two)


def test_broadcasts_stay_on_their_host(hosts: tuple[Host, Host]) -> None:
    """They would come before what is sent behind them."""
    one, two = hosts
    both_ways(one, two)
    receiver, sender = two.endpoint("i", socket.SOCK_DGRAM), one.endpoint("i", socket.SOCK_DGRAM)
    receiver.bind(("", 9999))
    receiver.settimeout(1.0)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    heard = b""
    deadline = time.monotonic() + 90
    while not heard and time.monotonic() < deadline:
        for address, word in (("10.83.255.255", b"all"), ("255.255.255.255", b"all"), ("10.83.0.3", b"you")):
            sender.sendto(word, (address, 9999))
        with contextlib.suppress(TimeoutError):
            heard = receiver.recv(100)
    assert heard == b"you"


def test_what_somebody_undid_is_done_again(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    both_ways(one, two)

    async def use(driver: BridgeDriver) -> None:
        await driver.attach_namespace(one.port, one.path("i"))
        await driver.look()
        assert await driver.look() == []
        for namespace, *words in (
            ("layer", "ip", "link", "del", LINK),
            ("layer", "ip", "link", "set", LINK, "down"),
            ("layer", "ip", "link", "set", LINK, "nomaster"),
            ("layer", "bridge", "fdb", "del", two.port.mac, "dev", LINK, "dst", two.address, "self"),
            ("layer", "bridge", "fdb", "del", two.port.mac, "dev", LINK, "master"),
            ("layer", "bridge", "link", "set", "dev", LINK, "learning", "on"),
            ("layer", "ip", "neigh", "del", "10.83.0.3", "dev", BRIDGE),
            ("layer", "nft", "flush", "ruleset"),
            ("layer", "nft", "flush", "set", "bridge", f"{one.home.mark}-x", "far"),
            ("host", "nft", "delete", "table", "ip", f"{one.home.mark}-x"),
            ("layer", "ip", "link", "del", BRIDGE),
        ):
            await asyncio.to_thread(one.in_, namespace, *words)
            found = await driver.look()
            assert found, words
            assert await driver.look() == [], words
            await asyncio.to_thread(both_ways, one, two)

    one.life(use)


def test_another_daemon_finds_it_and_makes_the_difference(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    both_ways(one, two)
    link = one.in_("layer", "ip", "-o", "link", "show", LINK).partition(":")[0]
    one.again()
    assert one.in_("layer", "ip", "-o", "link", "show", LINK).partition(":")[0] == link
    # What an earlier one left on the way.
    one.in_("layer", "bridge", "fdb", "add", "02:00:00:00:00:99", "dev", LINK, "dst", "192.0.2.77", "self")
    one.in_("layer", "bridge", "fdb", "add", "02:00:00:00:00:99", "dev", LINK, "master", "static")
    one.in_(
        "layer", "ip", "neigh", "add", "10.83.0.99", "lladdr", "02:00:00:00:00:99", "dev", BRIDGE, "nud", "permanent"
    )
    one.in_("layer", "ip", "link", "set", LINK, "down")
    one.again()
    assert "02:00:00:00:00:99" not in one.in_("layer", "bridge", "fdb", "show") + one.in_(
        "layer", "ip", "neigh", "show"
    )
    both_ways(one, two)
    # Whoever is on no other host any more needs no tunnel.
    one.neighbours = []
    one.again()
    assert LINK not in one.links("layer") and two.port.mac not in one.in_("layer", "ip", "neigh", "show")
    assert stopped(one, "10.83.0.3")
    for namespace in ("layer", "host"):
        assert f"{one.home.mark}-x" not in one.in_(namespace, "nft", "list", "tables")
    one.neighbours = [two.neighbour()]
    one.again()
    both_ways(one, two)


def test_a_port_moves_to_another_host(hosts: tuple[Host, Host]) -> None:
    """With its MAC and address: entries lead there."""
    one, two = hosts
    both_ways(one, two)
    moved = two.neighbour()
    two.life(lambda driver: driver.detach(two.port.id))
    two.in_("i", "true")
    one.add("second", loopback=False)
    one.serve("second", 80, "moved")
    one.neighbours = []

    async def use(driver: BridgeDriver) -> None:
        await driver.attach_namespace(two.port, one.path("second"))

    one.life(use)
    assert said(one, "10.83.0.3").startswith("moved")
    two.port = port(4)
    two.neighbours = [one.neighbour(), replace(moved, host=one.address)]
    one.neighbours = [two.neighbour()]
    two.join()
    one.again()
    assert said(two, "10.83.0.3").startswith("moved")


def test_a_network_that_goes_takes_its_tunnel_along(hosts: tuple[Host, Host]) -> None:
    one, _ = hosts

    async def use(driver: BridgeDriver) -> None:
        await driver.detach(one.port.id)
        await driver.keep_networks(set())
        await driver.span([])

    one.life(use)
    assert not {LINK, BRIDGE} & one.links("layer")


def test_teardown_leaves_nothing(hosts: tuple[Host, Host]) -> None:
    for host in hosts:
        host.end()
        assert not any(link.startswith(("la", "vxlan")) for link in host.links("layer"))
        for namespace in ("layer", "host"):
            assert host.home.mark not in host.in_(namespace, "nft", "list", "tables")


def test_a_number_that_others_have_is_refused_with_a_sentence(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    one.neighbours = []
    one.again()
    one.in_(
        "host", "ip", "link", "add", "other", "type", "vxlan", "id", "4711", "dstport", "4789", "local", one.address
    )
    one.neighbours = [two.neighbour()]
    with pytest.raises(Unavailable, match="VXLAN 4711 is in use on this one"):
        one.again()
    one.in_("host", "ip", "link", "del", "other")
    one.again()
    both_ways(one, two)


def test_a_host_without_an_underlay_says_so(hosts: tuple[Host, Host]) -> None:
    one, _ = hosts

    async def finding(driver: BridgeDriver) -> tuple[bool, str]:
        found = next(one for one in await driver.findings() if one.name == "network.underlay")
        assert (driver.underlay is None) == (not found.available)
        return found.available, found.reason

    available, said = one.life(finding)
    assert available and "MTU 1500" in said
    assert one.life(finding, underlay="192.0.2.200") == (False, "no link of this host has 192.0.2.200")
    assert LINK not in one.links("layer")
    available, said = one.life(finding, underlay="")
    assert not available and "--underlay" in said
