"""qemu-guest-agent's side played by whoever means harm: floods, lies, stale answers, silence."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.guest.qga import Ended, Info, QgaClient, QgaError
from lamella.model.errors import Corrupt, DeadlineExceeded, Forbidden, LamellaError, NotFound, Unavailable, Unsupported

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def synchronize(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, before: bytes = b"") -> None:
    line = await reader.readline()
    number = msgspec.json.decode(line.lstrip(b"\xff"))["arguments"]["id"]
    writer.write(before + b"\xff" + msgspec.json.encode({"return": number}) + b"\n")


@asynccontextmanager
async def against(peer: Peer, *, timeout: float = 90) -> AsyncIterator[QgaClient]:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=theirs)

    async def play() -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await peer(reader, writer)

    playing = asyncio.create_task(play())
    try:
        client = await QgaClient.over(*await asyncio.open_connection(sock=ours), timeout=timeout)
        try:
            yield client
        finally:
            await client.close()
    finally:
        playing.cancel()
        writer.close()


def answering(*answers: bytes) -> Peer:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronize(reader, writer)
        for answer in answers:
            await reader.readline()
            writer.write(answer)
            await writer.drain()
        await reader.read()

    return peer


@given(st.binary(max_size=200), st.lists(st.integers(0, 1 << 62), max_size=5))
def test_what_a_former_conversation_left_is_passed_over(noise: bytes, stale: list[int]) -> None:
    before = noise + b"".join(b'\xff{"return": %d}\n' % number for number in stale)

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronize(reader, writer, before + b"\n")
        await reader.readline()
        writer.write(b'{"return": {}}\n')
        await reader.read()

    async def talk() -> None:
        async with against(peer) as client:
            await client.ping()

    asyncio.run(talk())


@given(st.binary(max_size=300))
def test_whatever_it_answers_is_an_answer_or_an_error_of_ours(answer: bytes) -> None:
    async def talk() -> None:
        async with against(answering(answer + b"\n")) as client:
            try:
                await client.call("guest-info", Info, timeout=0.05)
            except LamellaError:
                return

    asyncio.run(talk())


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["exited", "exitcode", "signal", "out-data", "err-data", "out-truncated", "x"]),
                inner,
                max_size=5,
            )
        ),
        max_leaves=8,
    )
)
def test_whatever_it_says_of_a_process_is_an_end_or_an_error(value: object) -> None:
    async def talk() -> None:
        async with against(answering(msgspec.json.encode({"return": value}) + b"\n")) as client:
            try:
                ended = await client.ended(1)
            except Corrupt:
                return
            assert ended is None or (isinstance(ended, Ended) and 0 <= ended.code <= 255)

    asyncio.run(talk())


async def test_a_flood_ends_it() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronize(reader, writer)
        while True:
            writer.write(b"{}\n" * 20_000)
            await writer.drain()

    async with against(peer) as client:
        async with asyncio.timeout(90):
            await client.closed.wait()
        with pytest.raises(Corrupt, match="nobody asked for"):
            await client.ping()


async def test_a_line_without_end_ends_it() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronize(reader, writer)
        await reader.readline()
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async with against(peer) as client:
        with pytest.raises(Corrupt, match="longer line"):
            await client.ping()


async def test_noise_before_it_introduces_itself_ends_it() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"\xff{}\n" * 20_000)
            await writer.drain()

    with pytest.raises(Corrupt):
        async with against(peer):
            pass


async def test_a_deep_answer_is_an_error() -> None:
    async with against(answering(b'{"return": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n")) as client:
        with pytest.raises(Corrupt):
            await client.info()


@pytest.mark.parametrize(
    ("kind", "said", "error"),
    [
        ("CommandNotFound", "The command guest-x has been disabled", Unsupported),
        ("GenericError", "failed to open file '/x': No such file or directory", NotFound),
        ("GenericError", "failed to open file '/x': Permission denied", Forbidden),
        ("GenericError", "child process has already exited", QgaError),
    ],
)
async def test_a_refusal_is_the_error_that_it_stands_for(kind: str, said: str, error: type[LamellaError]) -> None:
    answer = msgspec.json.encode({"error": {"class": kind, "desc": said}}) + b"\n"
    async with against(answering(answer, b'{"return": {}}\n')) as client:
        with pytest.raises(error, match=said.split(":")[-1].strip()):
            await client.ping()
        await client.ping()  # the conversation goes on


async def test_silence_is_told_and_the_conversation_is_over() -> None:
    async with against(answering(b"", b"")) as client:
        with pytest.raises(DeadlineExceeded, match=r"guest-ping in 0\.1 s"):
            await client.ping(timeout=0.1)
        assert client.closed.is_set()


async def test_nobody_is_told() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    with pytest.raises(DeadlineExceeded, match="did not answer"):
        async with against(peer, timeout=0.1):
            pass


async def test_who_goes_away_is_gone() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronize(reader, writer)
        await reader.readline()
        writer.close()

    async with against(peer) as client:
        with pytest.raises(Unavailable, match="closed by the other end"):
            await client.ping()


async def test_shutting_down_is_done_when_nobody_answers_any_more() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronize(reader, writer)
        assert msgspec.json.decode(await reader.readline())["arguments"] == {"mode": "reboot"}
        writer.close()

    async with against(peer) as client:
        await client.shutdown("reboot")
