"""Requests over plain sockets: one connection kept alive, streams and WebSockets on connections of their own."""

import os
import socket
from contextlib import suppress

from lamella.client import http1
from lamella.client.absent import broken, unreachable
from lamella.client.http1 import ResponseReader, WireError
from lamella.client.problem import problem
from lamella.client.request import Reply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from lamella.client.address import Address
    from lamella.client.blocking.channel import Channel
    from lamella.client.request import Request

_LONGEST_PATH = 107  # sun_path of unix(7), less its NUL
_PIECE = 256 << 10
_CONNECT = 10.0


class Wire:
    """The way to one daemon. Safe to share between threads: a connection is used by one at a time."""

    def __init__(self, address: "Address") -> None:
        self.address = address
        self._idle: list[socket.socket] = []

    def exchange(self, request: "Request") -> Reply:
        """Send *request* and read the whole answer.

        :raise LamellaError: what the daemon said was wrong; ``Unavailable`` when it is not there or goes away,
            ``DeadlineExceeded`` when it does not answer within ``request.timeout`` seconds.
        """
        while True:
            kept = bool(self._idle)
            connection = self._idle.pop() if kept else dial(self.address)
            reader = ResponseReader(request.method)
            try:
                self._send(connection, request, reader)
                body = bytearray()
                while not reader.done:
                    reader.feed(connection.recv(_PIECE))
                    body += reader.take()
            except (OSError, WireError) as error:
                connection.close()
                if kept and not reader.started and not isinstance(error, TimeoutError) and request.repeatable:
                    continue  # the daemon closed a connection that had been idle: RFC 9112, 9.3.1
                raise broken(self.address, error) from error
            except BaseException:
                connection.close()
                raise
            if reader.reusable and not reader.rest:
                self._idle.append(connection)
            else:
                connection.close()
            if reader.status >= 400:
                raise problem(reader.status, bytes(body))
            return Reply(reader.status, reader.headers, bytes(body))

    def stream(self, request: "Request") -> "ByteStream":
        """Send *request* and hand out the body as it comes.

        :raise LamellaError: as :meth:`exchange`, for what is known when the answer begins.
        """
        connection = dial(self.address)
        reader = ResponseReader(request.method)
        try:
            self._send(connection, request, reader)
            while not reader.status:
                reader.feed(connection.recv(_PIECE))
            if reader.status >= 400:
                body = reader.take()
                while not reader.done:
                    reader.feed(connection.recv(_PIECE))
                    body += reader.take()
                raise problem(reader.status, body)
            connection.settimeout(None)
        except (OSError, WireError) as error:
            connection.close()
            raise broken(self.address, error) from error
        except BaseException:
            connection.close()
            raise
        return ByteStream(self.address, connection, reader)

    def channel(self, request: "Request") -> "Channel":
        """Open a WebSocket.

        :raise LamellaError: as :meth:`exchange`, when the daemon refuses it.
        """
        from lamella.client.blocking.channel import Channel
        from lamella.client.websocket import Handshake

        connection = dial(self.address)
        reader = ResponseReader("GET")
        handshake = Handshake()
        try:
            connection.settimeout(request.timeout)
            connection.sendall(http1.head(request, self.address.name, handshake.headers))
            body = b""
            while not reader.done:
                reader.feed(connection.recv(_PIECE))
                body += reader.take()
            if reader.status >= 400:
                raise problem(reader.status, body)
            handshake.check(reader.status, reader.headers)
            connection.settimeout(None)
        except (OSError, WireError) as error:
            connection.close()
            raise broken(self.address, error) from error
        except BaseException:
            connection.close()
            raise
        return Channel(self.address, connection, reader.rest)

    def close(self) -> None:
        """Let go of the connection that is kept. Safe to call twice."""
        while self._idle:
            self._idle.pop().close()

    def _send(self, connection: socket.socket, request: "Request", reader: ResponseReader) -> None:
        connection.settimeout(request.timeout)
        head = http1.head(request, self.address.name)
        try:
            if request.body is None or isinstance(request.body, bytes):
                connection.sendall(head + (request.body or b""))
                return
            connection.sendall(head)
            for piece in request.body:
                if piece:
                    connection.sendall(http1.chunk(piece))
            connection.sendall(http1.chunk(b""))
        except (BrokenPipeError, ConnectionResetError):
            # A daemon that refuses a long body answers and closes before it has read it all: the answer is what counts.
            with suppress(OSError, WireError):
                reader.feed(connection.recv(_PIECE))
            if not reader.started:
                raise


class ByteStream:
    """The body of an answer that goes on. Iterate over it; close it to stop."""

    def __init__(self, address: "Address", connection: socket.socket, reader: ResponseReader) -> None:
        self._address = address
        self._connection = connection
        self._reader = reader

    def __iter__(self) -> "Iterator[bytes]":
        """:raise Unavailable: when the connection breaks."""
        try:
            while True:
                data = self._reader.take()
                if data:
                    yield data
                if self._reader.done:
                    return
                self._reader.feed(self._connection.recv(_PIECE))
        except (OSError, WireError) as error:
            raise broken(self._address, error) from error

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> "ByteStream":
        return self

    def __exit__(
        self, kind: "type[BaseException] | None", error: "BaseException | None", trace: "TracebackType | None"
    ) -> None:
        self.close()


def dial(address: "Address") -> socket.socket:
    """A fresh connection to *address*.

    :raise Unavailable: when nobody answers there.
    :raise Forbidden: when the socket is not ours to open.
    """
    try:
        return _dial_unix(address.path) if address.path else _dial_tls(address)
    except OSError as error:
        raise unreachable(address, error) from error


def _dial_unix(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_CONNECT)
        if len(path.encode()) <= _LONGEST_PATH:
            connection.connect(path)
        else:
            folder, _, name = path.rpartition("/")
            descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            try:
                connection.connect(f"/proc/self/fd/{descriptor}/{name}")
            finally:
                os.close(descriptor)
    except BaseException:
        connection.close()
        raise
    return connection


def _dial_tls(address: "Address") -> socket.socket:
    from lamella.client.tls import context

    plain = socket.create_connection((address.host, address.port), timeout=_CONNECT)
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return context(address).wrap_socket(plain, server_hostname=address.host)
    except BaseException:
        plain.close()
        raise
