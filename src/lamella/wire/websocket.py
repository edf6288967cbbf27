"""A stream of messages to and from a party: a WebSocket client (wsproto on asyncio's streams)."""

import asyncio
import contextlib
from collections import deque
from types import TracebackType

import msgspec
from wsproto import ConnectionType, WSConnection, events
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from lamella.model.errors import LamellaError, Unavailable
from lamella.wire.connection import CONNECT_SECONDS, PIECE, Party
from lamella.wire.listener import LARGEST_MESSAGE
from lamella.wire.problem import read_error


class WebSocket:
    """Messages, whole, one at a time. Not more than one task sends and one receives. Back-pressure is TCP's, both ways."""

    def __init__(self, party: Party, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._party = party
        self._reader = reader
        self._writer = writer
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._events: deque[events.Event] = deque()
        self._message = bytearray()
        self._text: list[str] = []
        self._rejected: tuple[int, bytearray] | None = None
        self._over = False
        self._problem: LamellaError | None = None

    @classmethod
    async def open(cls, party: Party, verb: str, arguments: msgspec.Struct) -> "WebSocket":
        """Connect, upgrade, and send *arguments*.

        :raise LamellaError: what the party refuses with.
        :raise Unavailable: when it does not answer.
        """
        socket = cls(party, *await party.connect())
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await socket._write(events.Request(host=party.authority, target=f"/{verb}"))
                await socket._accepted()
            # A party that refuses the caller may close before it has heard what is asked: receive() tells why.
            with contextlib.suppress(LamellaError):
                await socket.send(msgspec.msgpack.encode(arguments))
        except (OSError, TimeoutError, RemoteProtocolError) as error:
            socket.abort()
            raise party.failure(error) from error
        except BaseException:
            socket.abort()
            raise
        return socket

    async def send(self, data: bytes) -> None:
        """Hand over one message; waits while the other end does not read.

        :raise LamellaError: the problem that the party has told already, else Unavailable when it is gone.
        """
        if self._over:
            raise self._problem or self._party.failure(None)
        try:
            await self._write(events.BytesMessage(data=data))
        except (OSError, LocalProtocolError) as error:
            raise self._problem or self._party.failure(error) from error

    async def receive(self) -> bytes | None:
        """The next message; ``None`` after the party closed in order.

        :raise LamellaError: the problem that the party tells.
        :raise Unavailable: when it went away without a word.
        """
        while not self._over:
            event = await self._next()
            if isinstance(event, events.BytesMessage):
                self._message += event.data
                if len(self._message) > LARGEST_MESSAGE:
                    raise self._end(Unavailable(f"{self._party} sends a message without end", hint="look into its log"))
                if event.message_finished:
                    data, self._message = bytes(self._message), bytearray()
                    return data
            elif isinstance(event, events.TextMessage):
                self._text.append(event.data)
                if event.message_finished:
                    self._problem = read_error("".join(self._text)[:LARGEST_MESSAGE])
            elif isinstance(event, events.Ping):
                await self._write(event.response())
            elif isinstance(event, events.CloseConnection):
                with contextlib.suppress(OSError, LocalProtocolError):
                    await self._write(event.response())
                if event.code != 1000 and self._problem is None:
                    self._problem = Unavailable(f"{self._party} stopped the stream ({event.code})", hint="try again")
                self._end(self._problem)
        if self._problem is not None:
            raise self._problem
        return None

    async def close(self) -> None:
        """Let go, in order when the party still listens. Safe to call twice."""
        if not self._over:
            self._over = True
            with contextlib.suppress(OSError, LocalProtocolError):
                self._writer.write(self._protocol.send(events.CloseConnection(code=1000)))
        self._writer.close()
        try:
            async with asyncio.timeout(1):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self.abort()

    def abort(self) -> None:
        self._over = True
        self._writer.transport.abort()

    async def __aenter__(self) -> "WebSocket":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _accepted(self) -> None:
        while True:
            event = await self._next()
            if isinstance(event, events.AcceptConnection):
                return
            if isinstance(event, events.RejectConnection):
                self._rejected = (event.status_code, bytearray())
                if not event.has_body:
                    raise read_error(b"", status=event.status_code)
            elif isinstance(event, events.RejectData) and self._rejected is not None:
                status, body = self._rejected
                body += event.data
                if event.body_finished or len(body) > PIECE:
                    raise read_error(bytes(body), status=status)

    async def _next(self) -> events.Event:
        while not self._events:
            try:
                data = await self._reader.read(PIECE)
                if not data:
                    raise self._end(self._party.failure(None))
                self._protocol.receive_data(data)
                self._events.extend(self._protocol.events())
            except (OSError, RemoteProtocolError, LocalProtocolError) as error:
                raise self._end(self._party.failure(error)) from error
        return self._events.popleft()

    async def _write(self, event: events.Event) -> None:
        self._writer.write(self._protocol.send(event))
        await self._writer.drain()

    def _end(self, problem: LamellaError | None) -> LamellaError:
        self._over = True
        self._problem = self._problem or problem
        return self._problem or self._party.failure(None)
