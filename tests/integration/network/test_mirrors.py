"""Mirrors of real packets: both directions once, through restarts of either end, and nothing left when it is over."""

import json
import socket
import time
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from network_world import NETWORK, World, port

from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import DesiredPort
from lamella.host.network.names import port_name

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
UDP = socket.SOCK_DGRAM
PATIENCE = 90.0


class Ear:
    """Hears every frame that comes to an instance, as a program that watches the wire does."""

    def __init__(self, world: World, name: str) -> None:
        self._socket = world.inside(name, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        self._socket.bind(("eth0", 0))
        self._socket.settimeout(0.2)
        world.sockets.append(self._socket)

    def hears(self, ask: Callable[[], object], *wanted: bytes) -> list[int]:
        """How often each of *wanted* is in what comes while *ask* is called, from the first call that brings something on."""
        heard = [0] * len(wanted)
        deadline = time.monotonic() + PATIENCE
        while not any(heard) and time.monotonic() < deadline:
            ask()
            heard = self.counts(*wanted)
        while not all(heard) and time.monotonic() < deadline:
            heard = [sum(pair) for pair in zip(heard, self.counts(*wanted), strict=True)]
        return heard

    def counts(self, *wanted: bytes) -> list[int]:
        found = [0] * len(wanted)
        try:
            while True:
                frame = self._socket.recv(2048)
                found = [count + (words in frame) for count, words in zip(found, wanted, strict=True)]
        except TimeoutError:
            return found


def plug(world: World, *ports: DesiredPort) -> None:
    async def use(driver: BridgeDriver) -> None:
        for index, one in enumerate(ports):
            await driver.attach_namespace(one, world.path(f"i{index}"))

    for index in range(len(ports)):
        world.add(f"i{index}", loopback=False)
    world.run(use)


def ask(world: World, size: int = 10) -> None:
    """A question from i0 to i1 with words of its own, of *size* bytes, and the answer."""
    client = world.endpoint("i0", UDP)
    client.sendto(b"a question".ljust(size), ("10.83.0.3", 53))
    assert client.recv(100).startswith(b"an answer")


def shape(world: World, *ports: DesiredPort) -> None:
    async def use(driver: BridgeDriver) -> None:
        for one in ports:
            await driver.shape(one)

    world.run(use)


@pytest.mark.parametrize("rate", [None, 100_000_000])
def test_both_directions_are_copied_once(world: World, rate: int | None) -> None:
    one, two, ids = replace(port(2), rate_out=rate), port(3), port(4)
    plug(world, one, two, ids)
    world.serve("i1", 53, "an answer", UDP)
    ear = Ear(world, "i2")
    for _ in range(3):
        ask(world)
    assert ear.counts(b"a question", b"an answer") == [0, 0]

    shape(world, replace(one, mirror=ids.id))
    assert ear.hears(lambda: ask(world), b"a question", b"an answer") == [1, 1]

    shape(world, one)
    ear.counts()
    for _ in range(3):
        ask(world)
    assert ear.counts(b"a question", b"an answer") == [0, 0]
    assert ("clsact" in world.in_("layer", "tc", "qdisc", "show")) == (rate is not None)


def test_it_comes_with_whichever_end_starts_last(world: World) -> None:
    two, ids = port(3), port(4)
    one = replace(port(2), mirror=ids.id)
    plug(world, one, two)
    world.serve("i1", 53, "an answer", UDP)
    ask(world)

    async def start(driver: BridgeDriver) -> None:
        await driver.shape(one)
        await driver.attach_namespace(ids, world.path("i2"))

    world.add("i2", loopback=False)
    world.run(start)
    assert Ear(world, "i2").hears(lambda: ask(world), b"a question") == [1]

    # The one that listens is started anew: its link is another one.
    async def again(driver: BridgeDriver) -> None:
        await driver.shape(one)
        await driver.detach(ids.id)
        ask(world)
        await driver.attach_namespace(ids, world.path("i3"))

    world.add("i3", loopback=False)
    world.run(again)
    assert Ear(world, "i3").hears(lambda: ask(world), b"a question", b"an answer") == [1, 1]


def test_repair_puts_it_back(world: World) -> None:
    two, ids = port(3), port(4)
    one = replace(port(2), mirror=ids.id)
    plug(world, one, two, ids)
    shape(world, one)
    filters = [
        world.in_("layer", "tc", "filter", "show", "dev", port_name(one.id), side) for side in ("ingress", "egress")
    ]
    assert all(f"Mirror to device {port_name(ids.id)}" in shown for shown in filters)
    world.in_("layer", "tc", "filter", "del", "dev", port_name(one.id), "egress")

    async def repair(driver: BridgeDriver) -> None:
        await driver.repair([NETWORK], [one, two, ids])

    world.run(repair)
    world.serve("i1", 53, "an answer", UDP)
    assert Ear(world, "i2").hears(lambda: ask(world), b"a question", b"an answer") == [1, 1]


def test_a_mirror_stops_nobody(world: World) -> None:
    ids = replace(port(4), rate_in=64_000)
    one, two = replace(port(2), mirror=ids.id), port(3)
    plug(world, one, two, ids)
    shape(world, one)
    world.serve("i1", 53, "an answer", UDP)
    ear = Ear(world, "i2")
    # Far more than the one that listens may be brought: what is too much of the copies is lost, not of the packets.
    for _ in range(200):
        ask(world, 1400)
    shown = json.loads(world.in_("layer", "tc", "-s", "-j", "qdisc", "show", "dev", port_name(ids.id)))
    assert sum(each["drops"] for each in shown if each["kind"] == "tbf") > 0
    assert ear.counts(b"a question") >= [1]
