"""IPv6 between real ports: who reaches whom, and what nobody gets to say."""

import errno
import socket
import struct

import pytest
from dual_stack_world import (
    DUAL,
    UDP,
    advertisement,
    arrives,
    dual,
    endpoint,
    frame,
    packet,
    passes,
    pings,
    plug,
    raw,
    router,
    serve,
    solicitation,
)
from msgspec.structs import replace
from network_world import NETWORK, World, command, port

from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.names import bridge_name
from lamella.host.network.six.plan import link_local
from lamella.model.ids import new_id

pytestmark = pytest.mark.root
ICMP = socket.IPPROTO_ICMPV6
ALL = "33:33:00:00:00:01"


def test_both_families_pass_between_ports_and_to_their_gateway(world: World) -> None:
    plug(world, dual(2), dual(3))
    serve(world, "i1", 80)
    serve(world, "i1", 53, UDP)
    assert pings(world, "i0", "fd90::3") and world.pings("i0", "10.90.0.3")
    assert passes(world, "i0", "fd90::3", 80) and passes(world, "i0", "fd90::3", 53, UDP)
    assert pings(world, "i0", "fd90::1") and world.pings("i0", "10.90.0.1")
    # By their link-local addresses, too.
    assert pings(world, "i0", f"{link_local(dual(3).mac)}%eth0")
    # What is beyond is refused at once: whoever has IPv4, too, goes on with that.
    with pytest.raises(OSError) as refused:
        endpoint(world, "i0").connect(("2001:db8::9", 80))
    assert refused.value.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
    routes = world.in_("i0", "ip", "-6", "route", "show", "default")
    assert "via fd90::1 dev eth0" in routes and routes.count("default") == 1


def test_a_port_without_ipv6_says_nothing_by_it(world: World) -> None:
    """Beside others that have it, on a network that has none: as ever."""
    four = replace(dual(4), address6="")
    plug(world, dual(2), dual(3), four)
    assert pings(world, "i0", "fd90::3")
    world.in_("i2", "ip", "addr", "add", "fd90::4/64", "dev", "eth0", "nodad")
    assert world.pings("i0", "10.90.0.4") and not pings(world, "i2", "fd90::2", patience=0)


def test_nobody_sends_as_somebody_else(world: World) -> None:
    one, two, three = dual(2), dual(3), dual(4)
    plug(world, one, two, three)
    assert pings(world, "i0", "fd90::4") and pings(world, "i1", "fd90::4") and pings(world, "i2", "fd90::2")
    sender, receiver = raw(world, "i0"), raw(world, "i2")
    own, far = str(link_local(one.mac)), "fd90::4"
    echo = struct.pack(">BBHHH", 128, 0, 0, 7, 1)

    def heard(source: str, content: bytes, *, mac: str = one.mac, to: str = far, by: int = ICMP, sign: int) -> bool:
        """Whether it comes; told by a packet that may be sent and comes after it."""
        asked = packet(source, to, by, content)
        proof = packet("fd90::2", far, 17, struct.pack(">HHHHI", 9, 9, 12, 1, sign))
        sender.send(frame(three.mac, mac, asked))
        sender.send(frame(three.mac, one.mac, proof))
        came = False
        while True:
            data, (_, _, kind, *_) = receiver.recvfrom(2000)
            if kind == socket.PACKET_OUTGOING:
                continue
            came = came or data[14:] == asked
            if data[14:] == proof:
                return came

    told = iter(range(1, 1000))
    assert heard("fd90::2", echo, sign=next(told))
    assert heard(own, echo, sign=next(told))
    # Another's address, one that is nobody's, another's MAC, another's link-local address.
    assert not heard("fd90::3", echo, sign=next(told))
    assert not heard("fd90::77", echo, sign=next(told))
    assert not heard("2001:db8::1", echo, sign=next(told))
    assert not heard("fd90::2", echo, mac=two.mac, sign=next(told))
    assert not heard(str(link_local(two.mac)), echo, sign=next(told))
    # Neighbours: what is true of oneself alone.
    assert heard("fd90::2", advertisement("fd90::2", one.mac), sign=next(told))
    assert not heard("fd90::2", advertisement("fd90::3", one.mac), sign=next(told))
    assert not heard("fd90::2", advertisement("fd90::1", one.mac), sign=next(told))
    assert not heard("fd90::2", advertisement("fd90::2", two.mac), sign=next(told))
    assert heard("fd90::2", solicitation(far, one.mac), sign=next(told))
    assert not heard("fd90::2", solicitation(far, two.mac), sign=next(told))
    # The same behind another header, which no neighbour may send.
    hidden = bytes([ICMP, 0, 1, 4, 0, 0, 0, 0]) + packet("fd90::2", far, ICMP, advertisement("fd90::3", one.mac))[40:]
    assert not heard("fd90::2", hidden, by=60, sign=next(told))
    # Detection of duplicates: for one's own address alone.
    assert heard("::", solicitation("fd90::2"), sign=next(told))
    assert not heard("::", solicitation("fd90::3"), sign=next(told))
    # Nobody is a router or a DHCP server.
    assert not heard(own, router(), sign=next(told))
    assert not heard(own, router(), to="ff02::1", sign=next(told))
    redirect = struct.pack(">BBHI", 137, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, "fd90::2") * 2
    assert not heard(own, redirect, sign=next(told))
    assert not heard(own, struct.pack(">HHHHI", 547, 546, 12, 0, 1), by=17, sign=next(told))


def test_a_guest_finds_that_its_address_is_its_own(world: World) -> None:
    """Detection of duplicates as kernels do it: an address that is nobody's passes, one that somebody has does not."""
    plug(world, dual(2), dual(3))
    assert pings(world, "i0", "fd90::3")
    # Of its own address it asks again.
    world.in_("i1", "ip", "addr", "del", "fd90::3/64", "dev", "eth0")
    world.in_("i1", "ip", "addr", "add", "fd90::3/64", "dev", "eth0")
    assert pings(world, "i1", "fd90::2") and "dadfailed" not in world.in_("i1", "ip", "-6", "addr")
    receiver = raw(world, "i0")
    asked = packet("::", "ff02::1:ff00:3", ICMP, solicitation("fd90::3"))
    sender = raw(world, "i1")
    sender.send(frame("33:33:ff:00:00:03", dual(3).mac, asked))
    assert arrives(receiver, asked, 30.0)


def test_networks_do_not_reach_each_other(world: World) -> None:
    other = replace(
        DUAL, id=new_id("network"), name="other", subnet="10.91.0.0/24", gateway="10.91.0.1",
        subnet6="fd91::/64", gateway6="fd91::1",
    )  # fmt: skip
    far = replace(port(9), network=other.id, address="10.91.0.9/24", address6="fd91::9/64")

    async def use(driver: BridgeDriver) -> None:
        await driver.ensure_network(DUAL)
        await driver.ensure_network(other)
        await driver.attach_namespace(dual(2), world.add("i0", loopback=False))
        await driver.attach_namespace(far, world.add("i1", loopback=False))

    world.run(use)
    assert pings(world, "i0", "fd90::1") and pings(world, "i1", "fd91::1")
    assert not pings(world, "i0", "fd91::9", patience=0)


def test_another_daemon_finds_it_and_a_detached_port_leaves_nothing(world: World) -> None:
    ports = [dual(2), dual(3)]
    plug(world, *ports)

    async def again(driver: BridgeDriver) -> None:
        await driver.ensure_network(DUAL)
        assert await driver.inventory() == {one.id for one in ports}
        await driver.detach(ports[0].id)

    world.run(again)
    rules = world.in_("layer", "nft", "list", "ruleset")
    assert ports[0].id not in rules and ports[1].id in rules and pings(world, "i1", "fd90::1")

    async def gone(driver: BridgeDriver) -> None:
        await driver.detach(ports[1].id)
        await driver.keep_networks(set())
        text = world.in_("layer", "nft", "list", "ruleset")
        assert ports[1].id not in text and DUAL.id not in text
        assert bridge_name(DUAL.id) not in world.links("layer")
        await driver.teardown()

    world.run(gone)
    assert world.home.mark not in world.in_("layer", "nft", "list", "tables")


def test_what_somebody_flushes_is_put_right(world: World) -> None:
    one, two = dual(2), dual(3)
    plug(world, one, two)

    async def use(driver: BridgeDriver) -> None:
        await driver.ensure_network(DUAL)
        await driver.repair([NETWORK, DUAL], [one, two])
        assert await driver.look() == []
        table = f"{world.home.mark}-6"
        for text in (f"delete table bridge {table}", f"flush set bridge {table} known", f"delete table ip6 {table}"):
            world.in_("layer", "nft", text)
            assert await driver.look() != []
            assert await driver.look() == []
            assert pings(world, "i0", "fd90::3") and pings(world, "i0", "fd90::1")
        command("ip", "-n", world.full("layer"), "link", "del", bridge_name(DUAL.id))
        assert await driver.look() != []
        assert pings(world, "i0", "fd90::3") and pings(world, "i0", "fd90::1")

    world.run(use)


def test_without_a_network_of_ipv6_there_is_nothing_of_it(world: World) -> None:
    plain = port(2)

    async def use(driver: BridgeDriver) -> None:
        await driver.attach_namespace(plain, world.add("i0", loopback=False))

    world.run(use)
    tables = world.in_("layer", "nft", "list", "tables")
    assert "ip6" not in tables and f"{world.home.mark}-6" not in tables
