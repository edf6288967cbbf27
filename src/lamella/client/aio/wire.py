"""Requests over asyncio streams: connections kept alive, streams and WebSockets on connections of their own."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress

from lamella.client import http1, websocket
from lamella.client.absent import broken, unreachable
from lamella.client.address import Address
from lamella.client.http1 import ResponseReader, WireError
from lamella.client.problem import problem
from lamella.client.request import Reply, Request

_LONGEST_PATH = 107  # sun_path of unix(7), less its NUL
_PIECE = 256 << 10
_CONNECT = 10.0
_KEPT = 8


class Connection:
    """Both directions of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def read(self) -> bytes:
        return await self.reader.read(_PIECE)

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()


class Wire:
    """The way to one daemon. Requests may overlap; each has a connection to itself while it lasts."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._idle: list[Connection] = []

    async def exchange(self, request: Request) -> Reply:
        """Send *request* and read the whole answer.

        :raise LamellaError: what the daemon said was wrong; ``Unavailable`` when it is not there or goes away,
            ``DeadlineExceeded`` when it does not answer within ``request.timeout`` seconds.
        """
        while True:
            kept = bool(self._idle)
            connection = self._idle.pop() if kept else await dial(self.address)
            reader = ResponseReader(request.method)
            body = bytearray()
            try:
                await self._begin(connection, request, reader)
                while not reader.done:
                    body += reader.take()
                    await self._more(connection, request, reader)
                body += reader.take()
            except (OSError, WireError) as error:
                connection.close()
                if kept and not reader.started and not isinstance(error, TimeoutError) and request.repeatable:
                    continue  # the daemon closed a connection that had been idle: RFC 9112, 9.3.1
                raise broken(self.address, error) from error
            except BaseException:
                connection.close()
                raise
            if reader.reusable and not reader.rest and len(self._idle) < _KEPT:
                self._idle.append(connection)
            else:
                connection.close()
            if reader.status >= 400:
                raise problem(reader.status, bytes(body))
            return Reply(reader.status, reader.headers, bytes(body))

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Send *request* and hand out the body as it comes.

        :raise LamellaError: as :meth:`exchange`, for what is known when the answer begins.
        """
        connection = await dial(self.address)
        reader = ResponseReader(request.method)
        try:
            try:
                await self._begin(connection, request, reader)
                while not reader.status:
                    await self._more(connection, request, reader)
                if reader.status >= 400:
                    body = reader.take()
                    while not reader.done:
                        await self._more(connection, request, reader)
                        body += reader.take()
                    raise problem(reader.status, body)
            except (OSError, WireError) as error:
                raise broken(self.address, error) from error
            yield self._pieces(connection, reader)
        finally:
            connection.close()

    async def channel(self, request: Request) -> "Channel":
        """Open a WebSocket.

        :raise LamellaError: as :meth:`exchange`, when the daemon refuses it.
        """
        connection = await dial(self.address)
        reader = ResponseReader("GET")
        handshake = websocket.Handshake()
        try:
            await connection.write(http1.head(request, self.address.name, handshake.headers))
            body = b""
            while not reader.done:
                await self._more(connection, request, reader)
                body += reader.take()
            if reader.status >= 400:
                raise problem(reader.status, body)
            handshake.check(reader.status, reader.headers)
        except (OSError, WireError) as error:
            connection.close()
            raise broken(self.address, error) from error
        except BaseException:
            connection.close()
            raise
        return Channel(self.address, connection, reader.rest)

    async def close(self) -> None:
        """Let go of the connections that are kept. Safe to call twice."""
        while self._idle:
            connection = self._idle.pop()
            connection.close()
            with suppress(OSError):
                await connection.writer.wait_closed()

    async def _begin(self, connection: Connection, request: Request, reader: ResponseReader) -> None:
        head = http1.head(request, self.address.name)
        try:
            async with asyncio.timeout(request.timeout):
                if request.body is None or isinstance(request.body, bytes):
                    await connection.write(head + (request.body or b""))
                    return
                await connection.write(head)
                for piece in request.body:
                    if piece:
                        await connection.write(http1.chunk(piece))
                await connection.write(http1.chunk(b""))
        except (BrokenPipeError, ConnectionResetError):
            # A daemon that refuses a long body answers and closes before it has read it all: the answer is what counts.
            with suppress(OSError, WireError):
                await self._more(connection, request, reader)
            if not reader.started:
                raise

    async def _more(self, connection: Connection, request: Request, reader: ResponseReader) -> None:
        async with asyncio.timeout(request.timeout):
            reader.feed(await connection.read())

    async def _pieces(self, connection: Connection, reader: ResponseReader) -> AsyncIterator[bytes]:
        try:
            while True:
                data = reader.take()
                if data:
                    yield data
                if reader.done:
                    return
                reader.feed(await connection.read())
        except (OSError, WireError) as error:
            raise broken(self.address, error) from error


class Channel:
    """An open WebSocket. Not more than one task sends and one receives."""

    def __init__(self, address: Address, connection: Connection, rest: bytes) -> None:
        self._address = address
        self._connection = connection
        self._reader = websocket.MessageReader()
        self._ready: list[bytes] = list(self._reader.feed(rest)) if rest else []

    @property
    def closing(self) -> tuple[int, str]:
        """Code and reason with which the other end closed; (0, "") while it has not."""
        return self._reader.code, self._reader.reason

    async def send(self, data: bytes) -> None:
        """Hand over one message; waits while the other end does not read.

        :raise Unavailable: when the other end is gone.
        """
        try:
            await self._connection.write(websocket.message(data))
        except OSError as error:
            raise broken(self._address, error) from error

    async def receive(self) -> bytes | None:
        """The next message; ``None`` when the other end has closed.

        :raise LamellaError: what the daemon said was wrong; ``Unavailable`` when the connection breaks.
        """
        while not self._ready and not self._reader.closed:
            try:
                try:
                    data = await self._connection.read()
                except ConnectionResetError:
                    data = b""
                self._ready.extend(self._reader.feed(data))
                if self._reader.answers:
                    answers = bytes(self._reader.answers)
                    self._reader.answers.clear()
                    with suppress(ConnectionError):
                        await self._connection.write(answers)
            except (OSError, WireError) as error:
                raise broken(self._address, error) from error
        if self._ready:
            return self._ready.pop(0)
        if self._reader.refusal:
            raise problem(self._reader.code - 3600, self._reader.refusal)
        return None

    async def close(self) -> None:
        """Say goodbye and let go. Safe to call twice."""
        if not self._connection.writer.is_closing():
            with suppress(OSError, TimeoutError):
                if not self._reader.closed:
                    async with asyncio.timeout(1):
                        await self._connection.write(websocket.closing())
            self._connection.close()
            with suppress(OSError):
                await self._connection.writer.wait_closed()


async def dial(address: Address) -> Connection:
    """A fresh connection to *address*.

    :raise Unavailable: when nobody answers there.
    :raise Forbidden: when the socket is not ours to open.
    """
    try:
        async with asyncio.timeout(_CONNECT):
            if address.path:
                return Connection(*await _dial_unix(address.path))
            from lamella.client.tls import context

            return Connection(
                *await asyncio.open_connection(
                    address.host, address.port, ssl=context(address), server_hostname=address.host
                )
            )
    except OSError as error:
        raise unreachable(address, error) from error


async def _dial_unix(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if len(path.encode()) <= _LONGEST_PATH:
        return await asyncio.open_unix_connection(path)
    folder, _, name = path.rpartition("/")
    descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        return await asyncio.open_unix_connection(f"/proc/self/fd/{descriptor}/{name}")
    finally:
        os.close(descriptor)
