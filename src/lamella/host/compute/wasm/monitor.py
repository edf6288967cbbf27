"""Packets between the daemon and an instance's monitor; native/wasm/monitor.c tells what each means."""

import asyncio
import os
import socket
import struct
from enum import Enum
from pathlib import Path

import msgspec

from lamella.model.errors import Unavailable

LARGEST = 1 + (64 << 10)
_HELLO = struct.Struct("=cii")


class Kind(Enum):
    """First byte of a packet from the monitor."""

    HELLO = b"H"
    READY = b"R"
    BEGUN = b"B"
    FAILED = b"F"
    STALE = b"D"
    ATTACHED = b"A"
    OUTPUT = b"O"
    ERRORS = b"E"
    GROWN = b"G"
    ENDED = b"X"


class Lost(Unavailable):
    """A monitor ended before it said a word: its fork server died with our request, say. To ask again is right."""


class Packet(msgspec.Struct, frozen=True):
    """``code`` and ``text`` are set for what tells of an end or a failure, ``data`` for output; ``state`` for the hello."""

    kind: Kind
    data: bytes = b""
    code: int = 0
    text: str = ""
    state: str = ""
    worker: int = 0


def parse(data: bytes) -> Packet:
    """:raise Unavailable: when this is no packet of a monitor's."""
    try:
        kind = Kind(data[:1])
    except ValueError as error:
        raise Unavailable(f"a monitor sent {data[:1]!r}, which means nothing") from error
    body = data[1:]
    if kind in (Kind.OUTPUT, Kind.ERRORS):
        return Packet(kind, data=body)
    if kind is Kind.HELLO:
        if len(body) != _HELLO.size:
            raise Unavailable("a monitor sent half a greeting")
        state, _, worker = _HELLO.unpack(body)
        return Packet(kind, state=state.decode(errors="replace"), worker=worker)
    if len(body) >= 4:
        return Packet(
            kind, code=int.from_bytes(body[:4], "little", signed=True), text=body[4:].decode(errors="replace")
        )
    return Packet(kind)


def listening(path: Path) -> socket.socket:
    """A socket that a monitor will accept from, at *path*, however long that is."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            server.bind(f"/proc/self/fd/{directory}/{path.name}")
            server.listen(16)
        except BaseException:
            server.close()
            raise
        return server
    finally:
        os.close(directory)


class Connection:
    """One connection to a monitor. One task reads, one writes."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    @classmethod
    async def connect(cls, path: Path) -> "Connection":
        """:raise Unavailable: when nobody listens there."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, f"/proc/self/fd/{directory}/{path.name}")
            finally:
                os.close(directory)
        except OSError as error:
            sock.close()
            raise Unavailable("the monitor of the instance does not answer") from error
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def receive(self) -> Packet | None:
        """The next packet; ``None`` when the monitor is gone."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, LARGEST)
        except OSError:
            return None
        return parse(data) if data else None

    async def send(self, data: bytes) -> None:
        """Waits while the monitor takes nothing.

        :raise Unavailable: when it is gone.
        """
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, data)
        except OSError as error:
            raise Unavailable("the instance has ended") from error

    def close(self) -> None:
        self._socket.close()


async def start(connection: Connection) -> None:
    await connection.send(b"S")


async def interrupt(connection: Connection, signal: int) -> None:
    await connection.send(b"K" + bytes([signal]))
