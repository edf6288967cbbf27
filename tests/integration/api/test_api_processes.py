"""Exec and attach over a real WebSocket."""

import asyncio
import contextlib
import json
from pathlib import Path

import msgspec
import pytest
from fake_layer import FakeLayer
from websocket_client import WebSocketClient
from wsproto import events
from wsproto.utilities import LocalProtocolError

from lamella.model.stream import ExecSpec, Resize, Signal, Stdin, StdinEnd
from lamella.wire.listener import LARGEST_MESSAGE

EXEC = "/v1/projects/default/instances/web/exec"
ATTACH = "/v1/projects/default/instances/web/attach"


async def started(uds: Path, *command: str) -> WebSocketClient:
    client = await WebSocketClient.open(uds, EXEC)
    await client.send(ExecSpec(command=list(command)))
    return client


async def test_a_process_hears_answers_and_exits(uds: Path) -> None:
    client = await started(uds, "cat")
    await client.send(Stdin(b"hello\x00\xff"))
    assert await client.receive() == ["stdout", b"hello\x00\xff"]
    await client.send(Resize(24, 80))
    assert await client.receive() == ["stderr", b"24x80"]
    await client.send(StdinEnd())
    assert await client.receive() == ["exit", 0, ""]
    assert await client.receive() == 1000
    client.close()


async def test_signals_and_codes(uds: Path) -> None:
    client = await started(uds, "exit", "7")
    assert [await client.receive(), await client.receive()] == [["exit", 7, ""], 1000]
    client = await started(uds, "cat")
    await client.send(Signal(15))
    assert await client.receive() == ["exit", 143, ""]


@pytest.mark.parametrize("start", ["true", "false"])
async def test_attach(uds: Path, layer: FakeLayer, start: str) -> None:
    client = await WebSocketClient.open(uds, f"{ATTACH}?start={start}")
    await client.send(Stdin(b"x"))
    assert await client.receive() == ["stdout", b"x"]
    assert layer.streams[-1].command == ["cat", start.capitalize()]
    client.close()


@pytest.mark.parametrize(
    ("path", "message", "code", "field"),
    [
        ("/v1/projects/default/instances/nobody/exec", {"command": ["true"]}, 4004, ""),
        (EXEC, {"command": []}, 4000, "command"),
        (EXEC, {"command": ["a"], "rows": 0}, 4000, "rows"),
        (EXEC, {"command": ["a"], "unknown": 1}, 4000, ""),
        (EXEC, "nonsense", 4000, ""),
        ("/v1/projects/default/instances/%00/exec", {"command": ["true"]}, 4000, "name"),
        (f"{ATTACH}?start=perhaps", {}, 4000, "start"),
    ],
)
async def test_what_cannot_start_says_why(uds: Path, path: str, message: object, code: int, field: str) -> None:
    client = await WebSocketClient.open(uds, path)
    with contextlib.suppress(LocalProtocolError):
        # It may have been refused before the first message.
        await client.send(message)
    problem = json.loads(await client.receive())
    assert (4000 + problem["status"] - 400, problem["field"]) == (code, field)
    assert await client.receive() == code


async def test_what_is_no_frame_is_refused_and_the_process_let_go(uds: Path, layer: FakeLayer) -> None:
    for event in (
        events.BytesMessage(data=b"\xc1"),
        events.BytesMessage(data=msgspec.msgpack.encode(["stdin", 7])),
        events.BytesMessage(data=msgspec.msgpack.encode(["signal", 900])),
        events.BytesMessage(data=b"\x91" * 100000),
        events.BytesMessage(data=msgspec.msgpack.encode(Stdin(b"x" * 65537))),
        events.TextMessage(data="text"),
    ):
        client = await started(uds, "cat")
        await client.send_raw(event)
        assert json.loads(await client.receive())["code"] == "invalid"
        assert await client.receive() == 4000
        assert layer.streams[-1].closed


async def test_a_message_without_end_is_cut(uds: Path, layer: FakeLayer) -> None:
    client = await started(uds, "cat")
    half = events.BytesMessage(data=b"x" * (1 << 20), message_finished=False)
    with pytest.raises((AssertionError, ConnectionError)):
        for _ in range((LARGEST_MESSAGE >> 20) + 8):
            await client.send_raw(half)
            await asyncio.sleep(0.01)
        assert await client.receive() not in (1009, None)
    await until_closed(layer)


async def test_a_client_that_leaves_ends_its_process(uds: Path, layer: FakeLayer) -> None:
    client = await started(uds, "cat")
    await client.send(Stdin(b"x"))
    assert await client.receive() == ["stdout", b"x"]
    client.close()
    await until_closed(layer)


async def test_a_process_that_vanishes_is_no_success(uds: Path) -> None:
    client = await started(uds, "vanish")
    assert json.loads(await client.receive())["code"] == "unavailable"
    assert await client.receive() == 4103


async def test_a_slow_reader_holds_the_process_back(uds: Path, layer: FakeLayer) -> None:
    client = await started(uds, "flood", str(64 << 20))
    assert (await client.receive())[0] == "stdout"
    await asyncio.sleep(0.5)
    assert layer.streams[-1].sent < 8 << 20
    total = 32768
    while (message := await client.receive())[0] == "stdout":
        total += len(message[1])
    assert (message, total) == (["exit", 0, ""], 64 << 20)


async def test_a_process_that_does_not_read_holds_the_client_back(uds: Path, layer: FakeLayer) -> None:
    client = await started(uds, "deaf")
    sent = 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            while sent < 64 << 20:
                await client.send(Stdin(b"x" * 65536))
                sent += 65536
    assert sent < 8 << 20
    client.close()
    await until_closed(layer)


async def until_closed(layer: FakeLayer) -> None:
    for _ in range(4500):
        if layer.streams[-1].closed:
            return
        await asyncio.sleep(0.02)
    pytest.fail("the process was never let go of")
