"""Captures of real packets: what passes is in the file, it ends as it was asked to, and nothing listens afterwards."""

import asyncio
import socket
import struct
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from msgspec.structs import replace
from network_world import World, port

from lamella.host.linux.processes import command_line, marked, start_time
from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import DesiredPort
from lamella.model.capture import CaptureSpec
from lamella.model.errors import Invalid, LamellaError, NotFound

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
UDP = socket.SOCK_DGRAM
PATIENCE = 90.0


def packets(data: bytes) -> list[bytes]:
    """The frames of a capture file (pcap-savefile(5)); a last one that is not whole is left out."""
    assert data[:4] == b"\xd4\xc3\xb2\xa1" and data[20:24] == b"\1\0\0\0"
    found: list[bytes] = []
    offset = 24
    while offset + 16 <= len(data):
        _, _, length, _ = struct.unpack_from("=4I", data, offset)
        if offset + 16 + length > len(data):
            break
        found.append(data[offset + 16 : offset + 16 + length])
        offset += 16 + length
    return found


def ends(frame: bytes) -> tuple[str, str]:
    return str(IPv4Address(frame[26:30])), str(IPv4Address(frame[30:34]))


def listening(world: World) -> set[int]:
    return {pid for pid in marked(world.home.mark) if any(b"tcpdump" in word for word in command_line(pid))}


def plug(world: World) -> tuple[DesiredPort, DesiredPort]:
    # A ceiling leads what an instance sends over another link: it is seen once all the same.
    one, two = replace(port(2), rate_out=100_000_000), port(3)

    async def use(driver: BridgeDriver) -> None:
        for index, each in enumerate((one, two)):
            await driver.attach_namespace(each, world.path(f"i{index}"))

    for name in ("i0", "i1"):
        world.add(name, loopback=False)
    world.run(use)
    world.serve("i1", 53, "one", UDP)
    world.serve("i1", 54, "two", UDP)
    return one, two


class Talk:
    """Asks i1 from i0 at both ports, over and over."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go, daemon=True)

    def _go(self) -> None:
        while not self._over.wait(0.05):
            for number in (53, 54):
                self._world.ask("i0", "10.83.0.3", number, UDP)

    def __enter__(self) -> "Talk":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(90)


def captured(world: World, id: str, wish: CaptureSpec, enough: Callable[[bytes], bool] = lambda data: False) -> bytes:
    """What a capture gave until it ended or was *enough*."""

    async def use(driver: BridgeDriver) -> bytes:
        data = b""
        async with asyncio.timeout(PATIENCE), aclosing(_generator(driver, id, wish)) as pieces:
            async for piece in pieces:
                data += piece
                if enough(data):
                    break
        return data

    return world.run(use, fresh=False)


def _generator(driver: BridgeDriver, id: str, wish: CaptureSpec) -> AsyncGenerator[bytes]:
    return driver.capture(id, wish)


def test_both_directions_are_in_the_file_once(world: World) -> None:
    one, _ = plug(world)
    with Talk(world):
        data = captured(world, one.id, CaptureSpec(filter="udp port 53", packets=6))
    frames = packets(data)
    assert len(frames) == 6
    # A question and its answer in turns: nothing twice, though what i0 sends takes the way over its ifb.
    pairs = [ends(frame) for frame in frames]
    questions, answers = pairs.count(("10.83.0.2", "10.83.0.3")), pairs.count(("10.83.0.3", "10.83.0.2"))
    assert questions + answers == 6 and abs(questions - answers) <= 1
    assert not listening(world)


def test_it_ends_when_its_time_is_up_or_nobody_reads(world: World) -> None:
    one, _ = plug(world)
    assert packets(captured(world, one.id, CaptureSpec(duration=0.2))) == []
    with Talk(world):
        data = captured(world, one.id, CaptureSpec(), lambda data: len(packets(data)) >= 3)
    assert len(packets(data)) >= 3
    assert not listening(world)


def test_it_ends_with_the_instance(world: World) -> None:
    one, _ = plug(world)

    async def use(driver: BridgeDriver) -> bytes:
        data, gone = b"", False
        wish = CaptureSpec(filter="udp port 53")
        async with asyncio.timeout(PATIENCE), aclosing(_generator(driver, one.id, wish)) as pieces:
            async for piece in pieces:
                if not data:
                    await asyncio.to_thread(world.ask, "i0", "10.83.0.3", 53, UDP)
                data += piece
                if len(packets(data)) == 2 and not gone:
                    gone = True
                    await driver.detach(one.id)
        return data

    # What passed before it went is in the file.
    assert len(packets(world.run(use))) == 2
    assert not listening(world)


def test_what_cannot_be_captured_is_said(world: World) -> None:
    one, two = plug(world)
    with pytest.raises(Invalid, match="filter"):
        captured(world, one.id, CaptureSpec(filter="sentence without sense"))
    with pytest.raises(Invalid):
        captured(world, one.id, CaptureSpec(filter="-w /tmp/elsewhere"))
    with pytest.raises(NotFound):
        captured(world, port(9).id, CaptureSpec())

    async def many(driver: BridgeDriver) -> LamellaError:
        going = [_generator(driver, two.id, CaptureSpec()) for _ in range(9)]
        try:
            for each in going:
                await anext(each)
        except LamellaError as error:
            return error
        finally:
            for each in going:
                await each.aclose()
        raise AssertionError("there is no end to captures")

    assert "8 captures" in world.run(many).message
    assert not listening(world)


def test_it_listens_as_nobody_and_dies_with_the_thread_that_began_it(world: World) -> None:
    one, _ = plug(world)

    async def leave(driver: BridgeDriver) -> list[str]:
        pieces = _generator(driver, one.id, CaptureSpec())
        await anext(pieces)
        (pid,) = listening(world)
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        # Nobody tells it: the thread ends, as it does when a daemon is killed.
        await driver.close()
        async with asyncio.timeout(PATIENCE):
            while start_time(pid) is not None:
                await asyncio.sleep(0.05)
        await pieces.aclose()
        return status

    status = world.run(leave)
    raw = 1 << 13
    assert [line.split()[1] for line in status if line.startswith("Uid")] == ["65534"]
    assert [int(line.split()[1], 16) for line in status if line.startswith("CapEff")] == [raw]
    assert not listening(world)
