"""A hostile guest hurts nobody but itself: whatever it sends, every verb ends, with a LamellaError, and little is held."""

import asyncio
import contextlib
import os
import socket
import struct
import time

import pytest
from hostile_peer import Peer, conversation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.guest.fields import Fields, Tag, Verb, body
from lamella.host.compute.guest.frames import LARGEST_PAYLOAD, WINDOW, Frame, FrameType, encode
from lamella.host.compute.guest.setup import GuestIdentity, GuestNetwork
from lamella.model.errors import Conflict, Corrupt, DeadlineExceeded, LamellaError, NotFound, Unavailable
from lamella.model.stream import ExecSpec

payloads = st.one_of(
    st.binary(max_size=64),
    st.sampled_from([bytes(8), b"\1", b"\1x", struct.pack("<I", 0xFFFF_FFFF), bytes(LARGEST_PAYLOAD)]),
    st.lists(st.tuples(st.sampled_from(list(Tag)), st.integers(0, (1 << 64) - 1)), max_size=4).map(lambda p: body(*p)),
)
sealed = st.builds(Frame, st.integers(0, 9), st.sampled_from(list(FrameType)), payloads)
noise = st.binary(min_size=1, max_size=200)


async def every_verb(client: GuestClient) -> list[object]:
    """Results or errors of many verbs at once."""

    async def drain_logs() -> None:
        async for _ in client.logs():
            pass

    async def drain_file() -> None:
        async for _ in client.read_file("/x"):
            pass

    async def drain_exec() -> None:
        stream = await client.exec(ExecSpec(command=["x"]))
        while await stream.receive() is not None:
            pass

    verbs = [client.state(), drain_exec(), drain_logs(), drain_file(), client.list_directory("/"), client.usage()]
    verbs += [client.hold(None), client.renew(GuestIdentity(entropy=bytes(32), hostname="x")), client.release()]
    return await asyncio.gather(*verbs, return_exceptions=True)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(sealed, noise), max_size=12))
async def test_whatever_it_sends_every_verb_ends_as_it_should(script: list[Frame | bytes]) -> None:
    async def behave(peer: Peer) -> None:
        await peer.receive()  # the requests are on their way
        for piece in script:
            await peer.write(encode(piece, peer.seal) if isinstance(piece, Frame) else piece)
        peer.writer.close()

    async with conversation(behave) as (client, _):
        async with asyncio.timeout(90):
            results = await every_verb(client)
    assert all(not isinstance(result, Exception) or isinstance(result, LamellaError) for result in results), results
    assert client.closed.is_set()


async def test_more_than_was_granted_ends_the_channel() -> None:
    async def behave(peer: Peer) -> None:
        await peer.receive()
        await peer.frame(Frame(1, FrameType.CREDIT, bytes(4)))
        while True:
            await peer.frame(Frame(1, FrameType.DATA, b"\1" + bytes(32 << 10)))

    async with conversation(behave) as (client, peer):
        stream = await client.exec(ExecSpec(command=["yes"]))  # and nobody reads it
        async with asyncio.timeout(90):
            await client.closed.wait()
        assert peer.sent < WINDOW + (2 << 20)  # the socket's buffers come on top
        with pytest.raises(Corrupt, match="more than it was granted"):
            await client.state()
        await stream.close()


async def test_many_tiny_pieces_cost_their_frames_too() -> None:
    async def behave(peer: Peer) -> None:
        flood = encode(Frame(1, FrameType.DATA, b"\1x"), peer.seal) * 4096
        await peer.receive()
        await peer.frame(Frame(1, FrameType.CREDIT, bytes(4)))
        while True:
            await peer.write(flood)

    async with conversation(behave) as (client, _):
        stream = await client.exec(ExecSpec(command=["yes"]))
        async with asyncio.timeout(90):
            await client.closed.wait()
        frames = 0
        while await stream.receive() is not None:
            frames += 1
        assert frames <= WINDOW // 18


async def test_an_endless_listing_is_cut_off() -> None:
    entry = body((Tag.PATH, "/" + "x" * 4000), (Tag.FILE_TYPE, 0))

    async def behave(peer: Peer) -> None:
        credit = WINDOW
        await peer.receive()
        while True:
            while credit < len(entry) + 16:
                kind, payload = await peer.receive()
                if kind == FrameType.CREDIT:
                    credit += struct.unpack("<I", payload)[0]
            credit -= len(entry) + 16
            await peer.frame(Frame(1, FrameType.ITEM, entry))

    async with conversation(behave) as (client, _):
        async with asyncio.timeout(90):
            with pytest.raises(LamellaError, match="too many entries"):
                await client.list_directory("/")


async def test_silence_is_a_deadline() -> None:
    ours, theirs = socket.socketpair()
    started = time.monotonic()
    with theirs:
        with pytest.raises(DeadlineExceeded, match="did not answer"):
            await GuestClient.over(*await asyncio.open_connection(sock=ours), timeout=0.2)
    assert time.monotonic() - started < 60


async def test_noise_without_a_greeting_is_corrupt() -> None:
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=theirs)

    async def babble() -> None:
        with contextlib.suppress(OSError):
            while True:
                writer.write(os.urandom(65536))
                await writer.drain()

    task = asyncio.create_task(babble())
    try:
        with pytest.raises(Corrupt, match="does not greet"):
            await GuestClient.over(*await asyncio.open_connection(sock=ours), timeout=90)
    finally:
        task.cancel()
        await asyncio.wait([task])
        writer.transport.abort()


async def test_a_guest_that_does_not_read_blocks_only_who_asks() -> None:
    async def behave(peer: Peer) -> None:
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]

    async with conversation(behave) as (client, _):
        big = "x" * 100_000
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    await client.exec(ExecSpec(command=["x", big]))
        async with asyncio.timeout(90):
            await client.close()
    with pytest.raises(Unavailable):
        await client.state()


async def test_an_error_keeps_its_class_and_an_unknown_one_does_not_escape() -> None:
    async def behave(peer: Peer) -> None:
        await peer.receive()
        await peer.receive()
        await peer.frame(Frame(1, FrameType.END, body((Tag.ERROR, "not-found"), (Tag.MESSAGE, "/x: nothing"))))
        await peer.frame(Frame(2, FrameType.END, body((Tag.ERROR, "SystemExit"), (Tag.MESSAGE, "boo"))))

    async with conversation(behave) as (client, _):
        first, second = await asyncio.gather(client.stat("/x"), client.stat("/y"), return_exceptions=True)
    assert isinstance(first, NotFound)
    assert first.message == "/x: nothing"
    assert type(second).__name__ == "Internal"


@pytest.mark.parametrize(("deadline", "told"), [(None, 0), (0.0, 1), (1.5, 1500), (1e12, (1 << 31) - 1)])
async def test_only_a_hold_without_a_deadline_has_none(deadline: float | None, told: int) -> None:
    async def behave(peer: Peer) -> None:
        _, request = await peer.receive()
        fields = Fields(request)
        assert fields.number(Tag.VERB) == Verb.HOLD
        answer = (Tag.ERROR, "conflict"), (Tag.MESSAGE, str(fields.number(Tag.TIMEOUT_MS)))
        await peer.frame(Frame(1, FrameType.END, body(*answer)))

    async with conversation(behave) as (client, _):
        with pytest.raises(Conflict, match=f"^{told}$"):
            await client.hold(deadline)


async def test_a_renewal_says_what_was_given_and_nothing_else() -> None:
    heard: list[Fields] = []

    async def behave(peer: Peer) -> None:
        for stream in (1, 2):
            heard.append(Fields((await peer.receive())[1]))
            await peer.frame(Frame(stream, FrameType.END))

    network = GuestNetwork(mac="02:00:00:00:00:01", address="10.0.0.2/8")
    async with conversation(behave) as (client, _):
        await client.renew(GuestIdentity(entropy=bytes(32)))
        await client.renew(
            GuestIdentity(entropy=bytes(32), hostname="x", network=network, former_mac="02:00:00:00:00:02", pids=0)
        )
    given = {Tag.HOSTNAME, Tag.MAC, Tag.ADDRESS, Tag.MTU, Tag.INTERFACE, Tag.FORMER_MAC, Tag.PIDS, Tag.GATEWAY}
    rest = {Tag.TIME_NS, Tag.DROP_NETWORK, Tag.NAMESERVER, Tag.ADDRESS6}
    assert Tag.ENTROPY in heard[0]
    assert not any(tag in heard[0] for tag in given | rest)
    assert all(tag in heard[1] for tag in given)
    assert not any(tag in heard[1] for tag in rest)
