"""Packets go where they should and nowhere else."""

import os
import select
import socket
import struct
import subprocess
from ipaddress import IPv4Interface
from pathlib import Path

import pytest
from network_world import NETWORK, World, port

from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import DesiredPort
from lamella.model.instance import Publish

pytestmark = pytest.mark.root
UDP = socket.SOCK_DGRAM


def connect(world: World, *ports: DesiredPort) -> None:
    """Give each port an instance namespace i0, i1, … and publish what it publishes."""

    async def use(driver: BridgeDriver) -> None:
        for index, one in enumerate(ports):
            attachment = await driver.attach_namespace(one, world.path(f"i{index}"))
            assert (attachment.mac, attachment.address, attachment.gateway) == (one.mac, one.address, "10.83.0.1")
            assert await driver.publish(one) == one.publish

    for index in range(len(ports)):
        world.add(f"i{index}", loopback=False)
    world.run(use)


def test_instances_talk_to_each_other_by_their_own_addresses(world: World) -> None:
    connect(world, port(2), port(3))
    world.serve("i1", 80, "two")
    assert world.ask("i0", "10.83.0.3", 80) == "two 10.83.0.2"
    assert world.pings("i0", "10.83.0.1")
    assert world.pings("i0", "127.0.0.1")


def test_outbound_takes_the_hosts_address(world: World) -> None:
    connect(world, port(2))
    world.serve("internet", 80, "web")
    world.serve("internet", 53, "dns", UDP)
    assert world.ask("i0", "203.0.113.9", 80) == "web 203.0.113.1"
    assert world.ask("i0", "203.0.113.9", 53, UDP) == "dns 203.0.113.1"
    assert world.pings("i0", "203.0.113.9")


def test_a_segment_without_flags_does_not_end_a_connection(world: World) -> None:
    connect(world, port(2))
    server = world.endpoint("internet")
    server.bind(("203.0.113.9", 80))
    server.listen()
    world.endpoint("i0").connect(("203.0.113.9", 80))
    peer, (address, number) = server.accept()
    world.sockets.append(peer)
    raw = world.inside("internet", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
    world.sockets.append(raw)
    # What user-mode networks send to tell a window: no flag at all, so connection tracking calls it invalid.
    segment = struct.pack("!HHIIBBHHH", 80, number, 1, 0, 5 << 4, 0, 254, 0, 0)
    ends = socket.inet_aton("203.0.113.9") + socket.inet_aton(address) + struct.pack("!BBH", 0, 6, len(segment))
    total = sum(struct.unpack(f"!{(len(ends) + len(segment)) // 2}H", ends + segment))
    check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    raw.sendto(segment[:16] + struct.pack("!H", check) + segment[18:], (address, 0))
    raw.settimeout(0.3)
    with pytest.raises(TimeoutError):
        # The host would answer with a reset, which not every peer checks as well as Linux does.
        while not raw.recv(100)[20 + 13] & 4:
            pass


def test_a_published_port_is_reached_from_everywhere(world: World) -> None:
    connect(world, port(2, Publish(host_port=8080, port=80), Publish(host_port=5353, port=53, protocol="udp")), port(3))
    world.serve("i0", 80, "web")
    world.serve("i0", 53, "dns", UDP)
    for kind, number, word in ((socket.SOCK_STREAM, 8080, "web"), (UDP, 5353, "dns")):
        # From outside, the instance sees who asks.
        assert world.ask("internet", "203.0.113.1", number, kind) == f"{word} 203.0.113.9"
        assert world.ask("host", "203.0.113.1", number, kind).startswith(word)
        assert world.ask("host", "127.0.0.1", number, kind).startswith(word)
        # From another instance, and from itself, by the host's address.
        assert world.ask("i1", "203.0.113.1", number, kind).startswith(word)
        assert world.ask("i0", "203.0.113.1", number, kind).startswith(word)
    with pytest.raises(OSError):
        world.ask("internet", "203.0.113.1", 8081)


def test_a_specific_host_address_is_the_only_one(world: World) -> None:
    local, outer = (
        Publish(host_address="127.0.0.1", host_port=8080, port=80),
        Publish(host_address="203.0.113.1", host_port=8080, port=81),
    )
    connect(world, port(2, local), port(3, outer))
    world.serve("i0", 80, "local")
    world.serve("i1", 81, "outer")
    assert world.ask("host", "127.0.0.1", 8080).startswith("local")
    assert world.ask("host", "203.0.113.1", 8080).startswith("outer")
    assert world.ask("internet", "203.0.113.1", 8080) == "outer 203.0.113.9"


def test_stolen_addresses_are_dropped(world: World) -> None:
    connect(world, port(2), port(3))
    world.serve("i1", 80, "two")
    assert world.ask("i0", "10.83.0.3", 80) == "two 10.83.0.2"
    world.in_("i0", "ip", "addr", "add", "10.83.0.77/16", "dev", "eth0")
    with pytest.raises(OSError):
        world.ask("i0", "10.83.0.3", 80, bind="10.83.0.77")
    assert world.ask("i0", "10.83.0.3", 80, bind="10.83.0.2") == "two 10.83.0.2"
    world.in_("i0", "ip", "link", "set", "eth0", "address", "02:00:00:00:00:99")
    with pytest.raises(OSError):
        world.ask("i0", "10.83.0.3", 80, bind="10.83.0.2")


def test_forged_arp_does_not_take_the_gateway(world: World) -> None:
    connect(world, port(2), port(3))
    assert world.pings("i1", "10.83.0.1")
    before = world.in_("i1", "ip", "neigh", "show", "10.83.0.1")

    def forge() -> None:
        mine = bytes.fromhex("02000a530002")
        gratuitous = b"\xff" * 6 + mine + bytes.fromhex("0806000108000604" + "0002")
        gratuitous += mine + socket.inet_aton("10.83.0.1") + b"\xff" * 6 + socket.inet_aton("10.83.0.1")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            for _ in range(3):
                raw.send(gratuitous)

    world.inside("i0", forge)
    assert (
        world.in_("i1", "ip", "neigh", "show", "10.83.0.1").split("lladdr")[1].split()[0]
        == (before.split("lladdr")[1].split()[0])
    )
    assert world.pings("i1", "10.83.0.1")


def test_the_layers_and_the_clouds_own_addresses_are_out_of_reach(world: World) -> None:
    connect(world, port(2))
    world.in_("host", "ip", "addr", "add", "169.254.169.254/32", "dev", "lo")
    world.serve("host", 80, "credentials")
    world.serve("layer", 22, "layer")
    assert world.ask("i0", "203.0.113.1", 80).startswith("credentials")
    for address, number in (("169.254.169.254", 80), ("10.83.0.1", 22)):
        with pytest.raises(OSError):
            world.ask("i0", address, number)


def test_nobody_comes_in_from_outside_unpublished(world: World) -> None:
    connect(world, port(2))
    world.serve("i0", 80, "private")
    world.in_("internet", "ip", "route", "add", "10.83.0.0/16", "via", "203.0.113.1")
    uplink = next(link for link in world.links("host") if link.endswith("-h"))
    ours = IPv4Interface(world.in_("host", "ip", "-br", "-4", "addr", "show", uplink).split()[2])
    world.in_("internet", "ip", "route", "add", "100.64.0.0/10", "via", "203.0.113.1")
    world.in_("host", "ip", "route", "add", "10.83.0.0/16", "dev", uplink, "via", str(ours.ip + 1))
    with pytest.raises(OSError):
        world.ask("internet", "10.83.0.2", 80)


def test_a_namespace_owned_by_another_user_namespace(world: World) -> None:
    holder = subprocess.Popen(
        ["unshare", "--user", "--net", "sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        own = Path("/proc/self/ns/net").readlink()
        netns = Path(f"/proc/{holder.pid}/ns/net")
        while netns.readlink() == own:
            pass
        one = port(9)
        world.run(lambda driver: driver.attach_namespace(one, netns))
        assert "10.83.0.9/16" in command_in(holder.pid, "ip", "-4", "addr", "show", "eth0")
        assert "default via 10.83.0.1" in command_in(holder.pid, "ip", "route")
    finally:
        holder.kill()
        holder.wait()


def command_in(pid: int, *words: str) -> str:
    return subprocess.run(
        ["nsenter", "-t", str(pid), "-n", *words], check=True, capture_output=True, text=True, timeout=90
    ).stdout


def test_a_tap_carries_frames(world: World) -> None:
    one, two = port(2), port(3)
    world.add("i0")

    async def use(driver: BridgeDriver) -> int:
        await driver.attach_namespace(one, world.path("i0"))
        attachment, descriptor = await driver.attach_tap(two)
        assert attachment.mac == two.mac and attachment.mtu == NETWORK.mtu
        return descriptor

    descriptor = world.run(use)
    try:
        world.inside("i0", lambda: socket.socket(socket.AF_INET, UDP).sendto(b"x", ("10.83.0.3", 1)))
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        frame = b""
        while frame[12:14] != b"\x08\x06":  # IPv6 has things to say before
            assert poll.poll(2000)
            frame = os.read(descriptor, 4096)[10:]  # after the virtio-net header
        assert frame[:6] == b"\xff" * 6  # somebody asks everybody for our MAC
    finally:
        os.close(descriptor)
    assert not any(link.startswith("lap") and link.endswith(two.id[-12:]) for link in world.links("layer"))


def test_a_udp_client_that_keeps_its_port_follows_what_is_published(world: World) -> None:
    first, second = (port(number, Publish(host_port=5353, port=53, protocol="udp")) for number in (2, 3))
    for name in ("i0", "i1"):
        world.add(name)
        world.serve(name, 53, name, UDP)
    client = world.endpoint("internet", UDP)
    client.bind(("203.0.113.9", 40404))

    def ask() -> str:
        client.sendto(b"?", ("203.0.113.1", 5353))
        return client.recv(100).decode().split()[0]

    async def use(driver: BridgeDriver) -> None:
        await driver.attach_namespace(first, world.path("i0"))
        await driver.attach_namespace(second, world.path("i1"))
        with pytest.raises(OSError):
            ask()
        await driver.publish(first)
        assert ask() == "i0"
        await driver.detach(first.id)
        await driver.publish(second)
        assert ask() == "i1"

    world.run(use)
