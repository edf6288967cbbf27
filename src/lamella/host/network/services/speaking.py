"""HTTP as far as metadata needs it (RFC 9112): one small request a connection, within bounds of size, time and number.

Guests write what is read here.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from http import HTTPStatus

from lamella.host.network.namespace import Seat
from lamella.host.network.rules import METADATA_PORT
from lamella.host.network.services.metadata import Answer, Request
from lamella.host.network.services.plan import Site

_LARGEST_HEAD = 8192
_PATIENCE = 15.0
# Connections at once: of a network, and of one address on it.
_MOST, _MOST_OF_ONE = 256, 16

_IP_FREEBIND = 15  # linux/in.h

Tell = Callable[[str, Request], Answer]


class Crowd:
    """Who is at any door of this host: the daemon has no more descriptors than it was given, whatever all guests do together."""

    def __init__(self, most: int = 1024) -> None:
        self.most = most
        self.here = 0


class Door:
    """Where one network's instances ask. *tell* is called with the address of whoever asks, and the request; *crowd* is shared."""

    def __init__(self, tell: Tell, crowd: Crowd) -> None:
        self._tell = tell
        self._crowd = crowd
        self._guests: dict[str, int] = {}
        self._server: asyncio.Server | None = None

    async def open(self, listening: socket.socket) -> None:
        """Answer whoever comes to *listening*, which belongs to the door from now on."""
        self._server = await asyncio.start_server(self._come, sock=listening, limit=_LARGEST_HEAD)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        guest: str = peer[0] if peer else ""
        full = self._crowd.here >= self._crowd.most or sum(self._guests.values()) >= _MOST
        if full or self._guests.get(guest, 0) >= _MOST_OF_ONE:
            writer.transport.abort()
            return
        self._crowd.here += 1
        self._guests[guest] = self._guests.get(guest, 0) + 1
        try:
            async with asyncio.timeout(_PATIENCE):
                writer.write(await self._heard(reader, guest))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError):
            writer.transport.abort()
        finally:
            self._crowd.here -= 1
            left = self._guests.pop(guest) - 1
            if left:
                self._guests[guest] = left

    async def _heard(self, reader: asyncio.StreamReader, guest: str) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            request = parse(head)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            return written(Answer(status=400), body=True)
        return written(self._tell(guest, request), body=request.method != "HEAD")


def listening(seat: Seat, site: Site) -> socket.socket:
    """A socket in the namespace of *site*, in the thread of the layer's; it hears what is sent to that gateway.

    :raise OSError: when the kernel refuses.
    """
    if site.netns is None:
        return _listening(site)
    descriptor = os.open(site.netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with seat.visit(descriptor):
            return _listening(site)
    finally:
        os.close(descriptor)


def _listening(site: Site) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The gateway's address may be made a moment later, or again.
        made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        made.bind((site.gateway, METADATA_PORT))
        made.listen(64)
    except BaseException:
        made.close()
        raise
    return made


def parse(head: bytes) -> Request:
    """:raise ValueError: when it is none."""
    first, *lines = head.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
    method, path, version = first.split(" ")
    if not version.startswith("HTTP/1.") or not path.startswith("/"):
        raise ValueError(first)
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise ValueError(line)
        headers[name.lower()] = value.strip()
    return Request(method=method, path=path, headers=headers)


def written(answer: Answer, *, body: bool) -> bytes:
    """*answer* as it goes over the wire; the connection ends with it."""
    content = answer.body.encode()
    head = {
        "Content-Type": "text/plain",
        "Content-Length": str(len(content)),
        **answer.headers,
        "Connection": "close",
    }
    reason = HTTPStatus(answer.status).phrase
    lines = [f"HTTP/1.1 {answer.status} {reason}", *(f"{name}: {value}" for name, value in head.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + (content if body else b"")
