"""A peer that greets like an agent and then does whatever a test tells it: what a guest that owns its agent could do."""

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.guest.fields import Tag, body
from lamella.host.compute.guest.frames import GREETING_GUEST, Frame, FrameType, encode


class Peer:
    """The guest's end. ``sent`` counts bytes that the host's end took."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.seal = 0
        self.sent = 0

    async def greet(self) -> None:
        _, _, nonce, _ = struct.unpack("<16sIQI", await self.reader.readexactly(32))
        self.seal = nonce & 0xFFFF_FFFF
        await self.write(struct.pack("<16sIQI", GREETING_GUEST, 1, nonce, 0))
        await self.frame(Frame(0, FrameType.HELLO, body((Tag.VERSION, 1), (Tag.AGENT_MODE, "init"), (Tag.KERNEL, "6"))))

    async def frame(self, frame: Frame) -> None:
        await self.write(encode(frame, self.seal))

    async def receive(self) -> tuple[int, bytes]:
        """Type and payload of the next frame from the host."""
        size, _, kind, _, _ = struct.unpack("<IIBBH", await self.reader.readexactly(12))
        return kind, (await self.reader.readexactly(size + 4))[:size]

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        self.sent += len(data)


@asynccontextmanager
async def conversation(behave: Callable[[Peer], Awaitable[None]]) -> AsyncGenerator[tuple[GuestClient, Peer]]:
    """A client that talks to a peer which greets and then does *behave*."""
    ours, theirs = socket.socketpair()
    peer = Peer(*await asyncio.open_connection(sock=theirs))

    async def act() -> None:
        try:
            await peer.greet()
            await behave(peer)
            await asyncio.sleep(3600)
        except (OSError, EOFError):
            pass

    task = asyncio.create_task(act())
    client: GuestClient | None = None
    try:
        client = await GuestClient.over(*await asyncio.open_connection(sock=ours), timeout=90)
        yield client, peer
    finally:
        if client is not None:
            await client.close()
        task.cancel()
        await asyncio.wait([task])
        # A transport that is gone already may not be aborted: it has no loop any more.
        if not peer.writer.transport.is_closing():
            peer.writer.transport.abort()
