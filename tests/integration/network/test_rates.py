"""Ceilings against real packets: kept from 10 Mbit/s to 1 Gbit/s both ways, changed under a flow, put right, and gone with the port."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Generator
from typing import Any

import pytest
from msgspec.structs import replace
from network_world import NETWORK, World, port

from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import DesiredPort
from lamella.host.network.names import port_name, shaper_name
from lamella.host.network.traffic.plan import bucket

pytestmark = pytest.mark.root
MBIT = 1_000_000
# Frames of a TCP stream here, with time stamps: so many bytes on the link carry so many of the stream.
FRAME, CARRIED = 1514, 1448
PATIENCE = 90.0


class Flow:
    """A stream from one instance to another, as fast as it goes."""

    def __init__(self, world: World, source: str, target: str, address: str) -> None:
        self.received = 0
        listener = world.endpoint(target)
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        self._sender = world.endpoint(source)
        self._sender.settimeout(30)
        self._sender.connect((address, listener.getsockname()[1]))
        self._receiver, _ = listener.accept()
        self._receiver.settimeout(None)
        self.began = time.monotonic()
        self._threads = [threading.Thread(target=body, daemon=True) for body in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        block = bytes(1 << 16)
        with contextlib.suppress(OSError):
            while True:
                self._sender.sendall(block)

    def _receive(self) -> None:
        buffer = bytearray(1 << 18)
        with contextlib.suppress(OSError):
            while count := self._receiver.recv_into(buffer):
                self.received += count

    def frames(self) -> float:
        """Bytes on the link so far."""
        return self.received / CARRIED * FRAME

    def rate(self, seconds: float = 1.0) -> float:
        """Bits a second of frames, over the next *seconds*."""
        at, bytes_before = time.monotonic(), self.frames()
        threading.Event().wait(seconds)
        return (self.frames() - bytes_before) * 8 / (time.monotonic() - at)

    def close(self) -> None:
        for end in (self._sender, self._receiver):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(90)
        self._receiver.close()


@contextlib.contextmanager
def flow(world: World, source: str = "i0", target: str = "i1", address: str = "10.83.0.3") -> Generator[Flow]:
    made = Flow(world, source, target, address)
    try:
        yield made
    finally:
        made.close()


def plug(world: World, *ports: DesiredPort) -> None:
    async def use(driver: BridgeDriver) -> None:
        for index, one in enumerate(ports):
            await driver.attach_namespace(one, world.path(f"i{index}"))

    for index in range(len(ports)):
        world.add(f"i{index}", loopback=False)
    world.run(use)


def queues(world: World) -> dict[str, dict[str, Any]]:
    """The token buckets of the layer, by link."""
    shown = json.loads(world.in_("layer", "tc", "-j", "qdisc", "show"))
    return {each["dev"]: each for each in shown if each["kind"] == "tbf"}


def comes_to(stream: Flow, rate: int) -> bool:
    """Whether the stream is within a twentieth of *rate* over some second, before patience ends."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if 0.95 * rate <= stream.rate() <= 1.05 * rate:
            return True
    return False


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("rate", [10 * MBIT, 100 * MBIT, 1000 * MBIT])
def test_a_ceiling_is_kept(world: World, side: str, rate: int) -> None:
    sender, receiver = port(2), port(3)
    if side == "in":
        receiver = replace(receiver, rate_in=rate)
    else:
        sender = replace(sender, rate_out=rate)
    plug(world, sender, receiver)
    shape = bucket(rate, NETWORK.mtu)
    assert shape is not None
    # The other way nothing holds it back: what this machine can do at all.
    with flow(world, "i1", "i0", "10.83.0.2") as stream:
        fast = rate < 1000 * MBIT or stream.rate() >= 2 * rate
    with flow(world) as stream:
        assert not fast or comes_to(stream, rate)
        stream.rate()
        # Since it began, never more than the bucket lets through; what is short of a full frame is counted as carried.
        passed, seconds = stream.frames(), time.monotonic() - stream.began
        assert passed <= 1.02 * (shape.rate * seconds + shape.burst)


def test_the_other_direction_and_other_ports_are_free(world: World) -> None:
    plug(world, replace(port(2), rate_in=10 * MBIT), replace(port(3), rate_out=10 * MBIT))
    with flow(world) as stream:
        deadline = time.monotonic() + PATIENCE
        while stream.rate(0.2) < 50 * MBIT:
            assert time.monotonic() < deadline


def test_a_flow_goes_on_while_its_ceiling_changes(world: World) -> None:
    one, two = replace(port(2), rate_out=10 * MBIT), port(3)
    plug(world, one, two)

    def shape(*wanted: DesiredPort) -> None:
        async def use(driver: BridgeDriver) -> None:
            for each in wanted:
                await driver.shape(each)

        world.run(use)

    with flow(world) as stream:
        assert comes_to(stream, 10 * MBIT)
        shape(replace(one, rate_out=50 * MBIT))
        assert comes_to(stream, 50 * MBIT)
        shape(replace(one, rate_out=None), replace(two, rate_in=20 * MBIT))
        assert comes_to(stream, 20 * MBIT)
        assert shaper_name(one.id) not in world.links("layer")
        shape(replace(two, rate_in=None))
        deadline = time.monotonic() + PATIENCE
        while stream.rate(0.2) < 100 * MBIT:
            assert time.monotonic() < deadline
    assert queues(world) == {}
    assert "clsact" not in world.in_("layer", "tc", "qdisc", "show")


def test_what_is_in_force_is_told_with_what_passes(world: World) -> None:
    one, two = replace(port(2), rate_out=20 * MBIT), replace(port(3), rate_in=500 * MBIT)
    plug(world, one, two)

    async def look(driver: BridgeDriver) -> tuple[Any, Any]:
        return await driver.rates(one.id), await driver.rates(two.id)

    with flow(world) as stream:
        assert comes_to(stream, 20 * MBIT)
        deadline = time.monotonic() + PATIENCE
        while True:
            first, second = world.run(look)
            assert first.into is None and second.out_of is None
            assert (first.out_of.ceiling, second.into.ceiling) == (20 * MBIT, 500 * MBIT)
            measured = first.out_of.measured, second.into.measured
            if all(0.9 * 20 * MBIT <= each <= 1.1 * 20 * MBIT for each in measured):
                break
            assert time.monotonic() < deadline, measured


@pytest.mark.parametrize("damage", ["queue", "other queue", "ifb", "hooks", "other hook", "down"])
def test_somebody_takes_it_away_and_repair_puts_it_back(world: World, damage: str) -> None:
    one = replace(port(2), rate_in=30 * MBIT, rate_out=40 * MBIT)
    plug(world, one)
    link, ifb = port_name(one.id), shaper_name(one.id)
    before = queues(world)
    assert {link, ifb} == set(before)
    tc, elsewhere = ("tc",), ("action", "mirred", "egress", "redirect", "dev", "lo")
    words = {
        "queue": (*tc, "qdisc", "del", "dev", link, "root"),
        "other queue": (*tc, "qdisc", "replace", "dev", link, "root", "handle", "1:", "pfifo"),
        "ifb": ("ip", "link", "del", ifb),
        "hooks": (*tc, "qdisc", "del", "dev", link, "clsact"),
        "other hook": (
            *tc,
            *f"filter add dev {link} ingress prio 1 protocol all u32 match u32 0 0".split(),
            *elsewhere,
        ),
        "down": ("ip", "link", "set", ifb, "down"),
    }
    world.in_("layer", *words[damage])

    async def repair(driver: BridgeDriver) -> None:
        await driver.repair([NETWORK], [one])

    world.run(repair)
    assert queues(world).keys() == before.keys()
    filters = world.in_("layer", "tc", "filter", "show", "dev", link, "ingress")
    assert filters.count("mirred") == 1 and f"Redirect to device {ifb}" in filters
    assert f"{ifb}: <BROADCAST,NOARP,UP" in world.in_("layer", "ip", "link", "show", "dev", ifb)
    world.run(repair)
    assert world.in_("layer", "tc", "filter", "show", "dev", link, "ingress") == filters


def test_it_goes_with_the_port_whoever_removes_it(world: World) -> None:
    one, two = (replace(port(number), rate_in=30 * MBIT, rate_out=40 * MBIT) for number in (2, 3))
    plug(world, one, two)

    async def detach(driver: BridgeDriver) -> set[str]:
        await driver.detach(one.id)
        return await driver.inventory()

    assert world.run(detach) == {two.id}
    assert shaper_name(one.id) not in world.links("layer")
    # The instance is gone with its end of the link; its ifb still tells whose it was.
    world.in_("layer", "ip", "link", "del", port_name(two.id))

    async def sweep(driver: BridgeDriver) -> set[str]:
        for id in await driver.inventory():
            await driver.detach(id)
        return await driver.inventory()

    assert world.run(sweep) == set()
    assert shaper_name(two.id) not in world.links("layer")


def test_a_machines_link_is_held_back_too(world: World) -> None:
    one = replace(port(2), rate_in=30 * MBIT, rate_out=40 * MBIT)

    async def use(driver: BridgeDriver) -> list[str]:
        assert [each.available for each in await driver.findings() if each.name == "network.rate"] == [True]
        _, descriptor = await driver.attach_tap(one)
        try:
            return sorted(queues(world))
        finally:
            os.close(descriptor)
            await driver.detach(one.id)

    assert world.run(use) == sorted([port_name(one.id), shaper_name(one.id)])
    assert queues(world) == {}
