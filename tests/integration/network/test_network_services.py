"""Names and addresses told by the layer on its networks, to real clients in namespaces."""

import asyncio
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from name_questions import resolve
from network_world import NETWORK, World, port
from services_world import BACK, GATEWAY, join, lease, life, on_back, refuses, services_in, until

from lamella.host.linux.processes import start_time
from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import Resident
from lamella.host.network.names import bridge_name
from lamella.host.network.services import process
from lamella.model.firewall import FirewallSpec, Rule
from lamella.model.ids import new_id

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


@pytest.fixture
def served(world: World) -> Iterator[World]:
    with services_in(world):
        yield world


def rules(world: World) -> str:
    words = ("ip", "netns", "exec", world.full("layer"), "nft", "list", "table", "ip", f"{world.home.mark}-s")
    return subprocess.run(words, capture_output=True, text=True, timeout=90, check=False).stdout


def test_names_of_a_network_are_told_on_that_network(served: World) -> None:
    first, second, third = port(2), port(3), on_back(4)
    known = [
        Resident(port=first, name=("web_1.a",)),
        Resident(port=second, name=("db", "shop")),
        Resident(port=third, name=("store",)),
    ]

    async def use(driver: BridgeDriver) -> None:
        await driver.ensure_network(BACK)
        await join(served, driver, first, second, third)
        await driver.serve(known)
        assert await driver.nameservers(NETWORK.id) == [GATEWAY]
        await until(lambda: resolve(served, "i0", GATEWAY, "web-1-a.default.internal") == ["10.83.0.2"])
        await until(lambda: resolve(served, "i0", GATEWAY, "db.shop.default.internal") == ["10.83.0.3"])
        await until(lambda: resolve(served, "i1", GATEWAY, "web-1-a", tcp=True) == ["10.83.0.2"])
        await until(lambda: resolve(served, "i2", BACK.gateway, "store.back.internal") == ["10.85.0.4"])
        for where, server, name in (
            ("i0", GATEWAY, "store.back.internal"),
            ("i0", GATEWAY, "nobody.default.internal"),
            ("i2", BACK.gateway, "web-1-a"),
            # Of another project: bare, it is a name of somebody else's.
            ("i0", GATEWAY, "db.shop"),
            # Isolated: names are no way out either.
            ("i2", BACK.gateway, "example.org"),
        ):
            await until(lambda: refuses(served, where, server, name), name)  # noqa: B023
        # Another network's gateway is an address of the same namespace, and does not answer.
        with pytest.raises(OSError):
            await asyncio.to_thread(resolve, served, "i2", GATEWAY, "web-1-a")

        # They come and go while it runs, and nothing is started anew.
        before = {one.pid for one in process.running(served.home)}
        await driver.serve([Resident(port=second, name=("db",)), known[2]])
        await until(lambda: resolve(served, "i0", GATEWAY, "db") == ["10.83.0.3"])
        await until(lambda: refuses(served, "i0", GATEWAY, "web-1-a"))
        assert {one.pid for one in process.running(served.home)} == before

    life(served, use)


def test_other_names_are_asked_of_the_hosts_resolvers(served: World) -> None:
    one = port(2)

    def answer() -> None:
        """Of every name, the address 192.0.2.7."""
        server = served.endpoint("internet", 2)
        server.bind(("203.0.113.9", 53))
        server.settimeout(None)
        while True:
            try:
                asked, caller = server.recvfrom(512)
            except OSError:
                return
            if not asked:
                return
            end = asked.index(b"\0", 12) + 5
            head = asked[:2] + b"\x81\x80\0\1\0\1\0\0\0\0"
            server.sendto(head + asked[12:end] + b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\xc0\0\2\7", caller)

    async def use(driver: BridgeDriver) -> None:
        await join(served, driver, one)
        await driver.serve([Resident(port=one, name=("w1",))])
        await until(lambda: refuses(served, "i0", GATEWAY, "www.example.org"))
        (served.home.path / "resolv.conf").write_text("nameserver 203.0.113.9\n")
        # Read again with whatever else is asked.
        await driver.serve([Resident(port=one, name=("w2",))])
        await until(lambda: resolve(served, "i0", GATEWAY, "www.example.org") == ["192.0.2.7"])
        assert refuses(served, "i0", GATEWAY, "nobody.default.internal")

    threading.Thread(target=answer, daemon=True).start()
    life(served, use)


@pytest.mark.parametrize("guarded", [False, True])
def test_a_port_is_leased_its_own_address_and_no_other(served: World, guarded: bool) -> None:
    firewall = {new_id("firewall"): FirewallSpec(inbound=[Rule()])} if guarded else {}
    first, second = (replace(one, firewalls=list(firewall)) for one in (port(2), port(3)))

    async def use(driver: BridgeDriver) -> None:
        await driver.protect(firewall, [first, second])
        await join(served, driver, first, second)
        for where in ("i0", "i1"):
            served.in_(where, "ip", "addr", "flush", "dev", "eth0")
        await driver.serve([Resident(port=first, name=("w1",))])
        told = await until(lambda: lease(served, "i0"))
        assert told["ip"] == "10.83.0.2" and told["mask"] == "16" and told["mtu"] == "1500" and told["hostname"] == "w1"
        assert told["router"] == told["dns"] == GATEWAY
        assert told["staticroutes"].split() == ["169.254.169.254/32", GATEWAY, "0.0.0.0/0", GATEWAY]
        # One that is not known is not answered; nor is one that says it is another.
        assert not await asyncio.to_thread(lease, served, "i1")
        served.in_("i1", "ip", "link", "set", "eth0", "address", first.mac)
        assert not await asyncio.to_thread(lease, served, "i1")

    life(served, use)


def declined(world: World, mac: str, address: str, *, to: str) -> None:
    """A DHCPDECLINE (RFC 2131) of *address* by *mac*, as i1 sends it."""
    head = struct.pack("!BBBBIHH16x", 1, 1, 6, 0, 7, 0, 0) + bytes.fromhex(mac.replace(":", "")).ljust(16, b"\0")
    options = b"\x35\1\4\x36\4" + socket.inet_aton(GATEWAY) + b"\x32\4" + socket.inet_aton(address) + b"\xff"
    client = world.endpoint("i1", socket.SOCK_DGRAM)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    client.bind(("", 68))
    client.sendto(head + bytes(192) + b"\x63\x82\x53\x63" + options, (to, 67))


def test_nobody_gives_back_what_is_anothers(served: World) -> None:
    first, second = port(2), port(3)

    async def use(driver: BridgeDriver) -> None:
        await join(served, driver, first, second)
        served.in_("i0", "ip", "addr", "flush", "dev", "eth0")
        await driver.serve([Resident(port=first, name=("w1",)), Resident(port=second, name=("w2",))])
        assert (await until(lambda: lease(served, "i0")))["ip"] == "10.83.0.2"
        declined(served, first.mac, "10.83.0.2", to=GATEWAY)
        served.in_("i1", "ip", "addr", "flush", "dev", "eth0")
        declined(served, first.mac, "10.83.0.2", to="255.255.255.255")
        # Its own it may: it was heard after the others, and has none for a while.
        declined(served, second.mac, "10.83.0.3", to="255.255.255.255")
        await until(lambda: not lease(served, "i1"))
        assert (await until(lambda: lease(served, "i0")))["ip"] == "10.83.0.2"

    life(served, use)


def test_what_ends_is_back_and_outlives_the_daemon(served: World) -> None:
    one = port(2)
    pids: list[int] = []

    async def begin(driver: BridgeDriver) -> None:
        await join(served, driver, one)
        await driver.serve([Resident(port=one, name=("w1",))])
        await until(lambda: resolve(served, "i0", GATEWAY, "w1") == ["10.83.0.2"])
        (first,) = process.running(served.home)
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: first.pid not in {each.pid for each in process.running(served.home)})
        await until(lambda: resolve(served, "i0", GATEWAY, "w1") == ["10.83.0.2"])
        # A network that is no more has none.
        await driver.ensure_network(BACK)
        await until(lambda: len(process.running(served.home)) == 2)
        await driver.keep_networks({NETWORK.id})
        await until(lambda: len(process.running(served.home)) == 1)
        pids.append(process.running(served.home)[0].pid)

    life(served, begin)
    assert resolve(served, "i0", GATEWAY, "w1") == ["10.83.0.2"]
    assert start_time(pids[0]) is not None

    async def again(driver: BridgeDriver) -> None:
        # What it was told meanwhile is told to the one that runs.
        await driver.serve([Resident(port=one, name=("w2",))])
        await until(lambda: resolve(served, "i0", GATEWAY, "w2") == ["10.83.0.2"])
        assert [each.pid for each in process.running(served.home)] == pids

    life(served, again)


def test_rules_and_bridges_that_somebody_takes_are_put_right(served: World) -> None:
    one = port(2)

    async def use(driver: BridgeDriver) -> None:
        await join(served, driver, one)
        await driver.serve([Resident(port=one, name=("w1",))])
        await until(lambda: resolve(served, "i0", GATEWAY, "w1") == ["10.83.0.2"])
        served.in_("layer", "nft", "flush", "ruleset")
        await driver.repair([NETWORK], [one])
        await until(lambda: GATEWAY in rules(served))
        assert resolve(served, "i0", GATEWAY, "w1") == ["10.83.0.2"]
        # Its own rules alone: nobody says so, it looks by itself.
        served.in_("layer", "nft", "flush", "set", "ip", f"{served.home.mark}-s", "resolvers")
        await until(lambda: GATEWAY in rules(served))
        served.in_("layer", "ip", "link", "del", bridge_name(NETWORK.id))
        await driver.repair([NETWORK], [one])
        await until(lambda: resolve(served, "i0", GATEWAY, "w1") == ["10.83.0.2"])

    life(served, use)


def test_a_process_sees_nothing_of_the_host(served: World) -> None:
    one = port(2)

    async def use(driver: BridgeDriver) -> None:
        await join(served, driver, one)
        await driver.serve([Resident(port=one, name=("w1",))])
        await until(lambda: resolve(served, "i0", GATEWAY, "w1") == ["10.83.0.2"])
        (running,) = process.running(served.home)
        root = Path(f"/proc/{running.pid}/root")
        assert {path.name for path in root.iterdir()} == {"dnsmasq", "files", "dev", "usr", "lib64"}
        status = Path(f"/proc/{running.pid}/status").read_text()
        assert f"Uid:\t{process.USER}\t{process.USER}" in status and "NoNewPrivs:\t1" in status
        assert "CapBnd:\t0000000000003400" in status

    life(served, use)
