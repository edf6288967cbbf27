"""Connections through a router that has led them: what it allows no more, or leads elsewhere, ends; all others go on."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from msgspec.structs import replace
from network_world import World
from test_routers import FLOAT, OTHER, Routed, led_in, network, on, two_networks

from lamella.host.network.bridge import BridgeDriver
from lamella.model.instance import Publish

pytestmark = pytest.mark.root

Pair = tuple[socket.socket, socket.socket]
PORT = 7000


class Calls:
    """Connections of a world, and whether what is said on them comes to the other end."""

    def __init__(self, world: World, *servers: str) -> None:
        self.world = world
        self.servers = {name: world.endpoint(name) for name in servers}
        for server in self.servers.values():
            server.bind(("0.0.0.0", PORT))
            server.listen()
            server.settimeout(30.0)

    def open(self, name: str, to: str, address: str, port: int = PORT) -> Pair:
        client = self.world.endpoint(name)
        client.settimeout(30.0)
        client.connect((address, port))
        peer, _ = self.servers[to].accept()
        peer.settimeout(30.0)
        self.world.sockets.append(peer)
        return client, peer

    def goes_on(self, *pairs: Pair) -> bool:
        for client, peer in pairs:
            for sender, receiver in ((client, peer), (peer, client)):
                sender.send(b"?")
                if receiver.recv(100) != b"?":
                    return False
        return True

    def ended(self, *pairs: Pair) -> bool:
        """Neither side hears anything of the other, or hears that nobody knows of it."""
        for client, peer in pairs:
            for sender, receiver in ((client, peer), (peer, client)):
                with suppress(ConnectionError, BrokenPipeError):
                    sender.send(b"?")
                receiver.settimeout(1.0)
                with suppress(TimeoutError, ConnectionError):
                    if receiver.recv(100):
                        return False
        return True


@contextmanager
def routed_world(world: World, **router: object) -> Iterator[tuple[Routed, Calls]]:
    routed = two_networks(world, **router)
    routed.networks[1] = replace(routed.networks[1], isolated=False)
    led_in(world)
    routed.life()
    # Nothing is opened on a path that has yet to be found.
    assert routed.ask("w1", "203.0.113.9") and routed.ask("db", "203.0.113.9") and routed.ask("w1", "10.20.0.2")
    yield routed, Calls(world, "internet", "w1", "w2", "db")


def test_what_a_network_may_do_no_more_ends_and_the_rest_goes_on(world: World) -> None:
    with routed_world(world) as (routed, calls):
        out, inside = calls.open("w1", "internet", "203.0.113.9"), calls.open("w1", "db", "10.20.0.2")
        other = calls.open("db", "internet", "203.0.113.9")
        routed.life()  # a daemon that starts again ends nothing
        assert calls.goes_on(out, inside, other)
        front, back = routed.networks
        routed.networks = [front, replace(back, isolated=True)]
        routed.life()
        assert calls.ended(other) and calls.goes_on(out, inside)
        routed.routers = [replace(routed.routers[0], uplink=False)]
        routed.life()
        assert calls.ended(out) and calls.goes_on(inside)


def test_it_ends_as_well_while_the_daemon_runs(world: World) -> None:
    with routed_world(world, floating={FLOAT: "10.10.0.2"}) as (routed, calls):
        front, back = routed.networks
        out, other = calls.open("w1", "internet", "203.0.113.9"), calls.open("db", "internet", "203.0.113.9")

        async def use(driver: BridgeDriver) -> None:
            await routed.settle(driver)
            assert calls.goes_on(out, other)
            routed.networks = [front, replace(back, isolated=True)]
            await routed.settle(driver)
            assert calls.goes_on(out) and calls.ended(other)
            # What is known by the address that it leaves by is known by another one, or none.
            routed.routers = [replace(routed.routers[0], floating={})]
            await routed.settle(driver)
            assert calls.ended(out)

        world.run(use, fresh=False)


def test_who_has_a_floating_address_no_more_is_not_reached_by_it(world: World) -> None:
    with routed_world(world, floating={FLOAT: "10.10.0.2", OTHER: "10.20.0.2"}) as (routed, calls):
        assert routed.ask("internet", FLOAT) and routed.ask("internet", OTHER) and routed.ask("w2", FLOAT)
        moved, kept = calls.open("internet", "w1", FLOAT), calls.open("internet", "db", OTHER)
        within, turned = calls.open("w2", "w1", FLOAT), calls.open("db", "w1", FLOAT)
        routed.life()
        assert calls.goes_on(moved, kept, within, turned)
        routed.routers = [replace(routed.routers[0], floating={FLOAT: "10.10.0.3", OTHER: "10.20.0.2"})]
        routed.life()
        assert calls.ended(moved, within, turned) and calls.goes_on(kept)
        again = calls.open("internet", "w2", FLOAT)
        routed.routers = [replace(routed.routers[0], floating={OTHER: "10.20.0.2"})]
        routed.life()
        assert calls.ended(again) and calls.goes_on(kept)


def test_a_published_port_goes_on_whatever_else_changes(world: World) -> None:
    with routed_world(world) as (routed, calls):
        routed.ports["w1"] = replace(routed.ports["w1"], publish=[Publish(host_port=8080, port=PORT)])
        routed.life()
        published = calls.open("internet", "w1", "203.0.113.1", 8080)
        front, back = routed.networks
        routed.networks = [replace(front, isolated=True), back]
        routed.routers = [replace(routed.routers[0], uplink=False)]
        routed.life()
        assert calls.goes_on(published)


def test_a_network_without_a_router_ends_what_left_it_too(world: World) -> None:
    plain = network("plain", "10.30.0")
    routed = Routed(world, [plain], [])
    world.serve("internet", 80, "web")
    for number, name in ((2, "p1"), (3, "p2")):
        routed.add(name, on(plain, number))
    routed.life("p1", "p2")
    assert routed.ask("p1", "203.0.113.9") and routed.ask("p1", "10.30.0.3")
    calls = Calls(world, "internet", "p2")
    out, inside = calls.open("p1", "internet", "203.0.113.9"), calls.open("p1", "p2", "10.30.0.3")
    routed.life()
    assert calls.goes_on(out, inside)
    routed.networks = [replace(plain, isolated=True)]
    routed.life()
    assert calls.ended(out) and calls.goes_on(inside)


def test_what_comes_for_an_address_that_nobody_has_is_not_sent_back(world: World) -> None:
    """Both the host and those outside would send it to each other until its hops are used up."""
    routed = two_networks(world, floating={FLOAT: "10.10.0.2"})
    led_in(world)
    routed.outside = ["198.51.100.0/24", "198.51.100.0/28"]
    world.in_("host", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    def came_back() -> int:
        """Packets for the free address that the internet got of the host."""
        listing = world.in_("internet", "nft", "list", "chain", "ip", "seen", "came")
        return int(listing.split("packets ")[1].split()[0])

    world.in_(
        "internet",
        "nft",
        f"add table ip seen; add chain ip seen came {{ type filter hook prerouting priority 0; }};"
        f" add rule ip seen came ip daddr {OTHER} counter",
    )

    async def use(driver: BridgeDriver) -> None:
        for outside, loops in ((routed.outside, False), ([], True), (routed.outside, False)):
            routed.outside = outside
            await routed.settle(driver)
            before = came_back()
            client = world.endpoint("internet", socket.SOCK_DGRAM)
            client.sendto(b"?", (OTHER, 9))
            # Behind it, by the same way: when this is answered, that one was dealt with.
            assert routed.ask("internet", FLOAT) == "w1 203.0.113.9"
            assert (came_back() > before) == loops
        await driver.repair(routed.networks, routed.ports.values())
        before = came_back()
        client.sendto(b"?", (OTHER, 9))
        assert routed.ask("internet", FLOAT) == "w1 203.0.113.9" and came_back() == before

    world.run(use, fresh=False)
