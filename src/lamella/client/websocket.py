"""WebSocket as a client speaks it, without I/O (RFC 6455): messages, pings answered, a closing handshake.

wsproto does this too, and the tests hold this one against it; like h11 it is too slow to import for a command that a
person waits for.
"""

import os
from binascii import b2a_base64

from lamella.client.http1 import WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from hashlib import sha1
else:
    try:
        from _sha1 import sha1  # hashlib loads all of OpenSSL: 4 ms for twenty bytes
    except ImportError:
        from hashlib import sha1

LARGEST_MESSAGE = 1 << 20
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10


class Handshake:
    """The opening: ``headers`` to ask with, and ``check`` for what comes back."""

    __slots__ = ("_accept", "headers")

    def __init__(self) -> None:
        key = b2a_base64(os.urandom(16), newline=False)
        digest = sha1(key + _GUID).digest()
        self._accept = b2a_base64(digest, newline=False).decode()
        self.headers = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": key.decode(),
            "Sec-WebSocket-Version": "13",
        }

    def check(self, status: int, headers: dict[str, str]) -> None:
        """:raise WireError: when the answer is not the 101 that belongs to this handshake."""
        if status != 101 or headers.get("upgrade", "").lower() != "websocket":
            raise WireError(f"the daemon answered {status} where a WebSocket was asked for")
        if headers.get("sec-websocket-accept") != self._accept:
            raise WireError("the daemon's WebSocket handshake does not fit the request")


def mask(data: bytes, key: bytes) -> bytes:
    """*data* masked with the four bytes of *key*; masking twice gives it back."""
    size = len(data)
    stream = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(stream, "little")).to_bytes(size, "little")


def _frame(opcode: int, data: bytes) -> bytes:
    size = len(data)
    if size < 126:
        length = bytes((0x80 | size,))
    elif size < 1 << 16:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    key = os.urandom(4)
    return bytes((0x80 | opcode,)) + length + key + mask(data, key)


def message(data: bytes) -> bytes:
    """*data* as one binary message."""
    return _frame(_BINARY, data)


def closing(code: int = 1000, reason: str = "") -> bytes:
    """The frame that begins the closing handshake."""
    return _frame(_CLOSE, code.to_bytes(2, "big") + reason.encode()[:123])


class MessageReader:
    """Reads binary messages out of the bytes that arrive.

    ``answers`` is what has to be sent back (pongs, the echo of a close); ``closed`` is set, with ``code`` and ``reason``,
    when the other end has closed. A text message is how the daemon says what went wrong: ``refusal`` holds it (problem+json).
    """

    __slots__ = ("_buffer", "_parts", "_size", "_text", "answers", "closed", "code", "reason", "refusal")

    def __init__(self) -> None:
        self.answers = bytearray()
        self.closed = False
        self.code = 0
        self.reason = ""
        self._buffer = bytearray()
        self._parts: list[bytes] | None = None
        self._size = 0
        self._text = False
        self.refusal = b""

    def feed(self, data: bytes) -> "Iterator[bytes]":
        """The messages that *data* completes; empty *data* is the end of the connection.

        :raise WireError: when it breaks the protocol, or a message is longer than ``LARGEST_MESSAGE``.
        """
        if not data:
            if not self.closed:
                self.closed, self.code = True, 1006
            return
        self._buffer += data
        while not self.closed:
            frame = self._next()
            if frame is None:
                return
            whole = self._frame(*frame)
            if whole is not None:
                yield whole

    def _next(self) -> "tuple[int, bool, bytes] | None":
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        if first & 0x70 or second & 0x80:
            raise WireError("the daemon sent a frame that WebSocket does not allow")
        opcode, final, size, start = first & 15, bool(first & 0x80), second & 127, 2
        if size > 125:
            if opcode >= _CLOSE:
                raise WireError("the daemon sent a control frame that is too long")
            start = 4 if size == 126 else 10
            if len(buffer) < start:
                return None
            size = int.from_bytes(buffer[2:start], "big")
        if opcode >= _CLOSE and not final:
            raise WireError("the daemon sent a control frame in pieces")
        if size > LARGEST_MESSAGE:
            raise WireError("the daemon sent a message that is too long")
        if len(buffer) < start + size:
            return None
        data = bytes(buffer[start : start + size])
        del buffer[: start + size]
        return opcode, final, data

    def _frame(self, opcode: int, final: bool, data: bytes) -> "bytes | None":
        if opcode == _PING:
            self.answers += _frame(_PONG, data)
        elif opcode == _CLOSE:
            self.closed = True
            self.code = int.from_bytes(data[:2], "big") if len(data) >= 2 else 1005
            self.reason = data[2:].decode("utf-8", "replace")
            self.answers += closing()
        elif opcode in (_TEXT, _BINARY, _CONTINUATION):
            return self._piece(opcode, final, data)
        elif opcode != _PONG:
            raise WireError("the daemon sent a frame of an unknown kind")
        return None

    def _piece(self, opcode: int, final: bool, data: bytes) -> "bytes | None":
        if (opcode == _CONTINUATION) == (self._parts is None):
            raise WireError("the daemon sent the pieces of a message out of order")
        if self._parts is None:
            self._text = opcode == _TEXT
        parts = [] if self._parts is None else self._parts
        parts.append(data)
        self._size += len(data)
        if self._size > LARGEST_MESSAGE:
            raise WireError("the daemon sent a message that is too long")
        if not final:
            self._parts = parts
            return None
        self._parts, self._size = None, 0
        whole = data if len(parts) == 1 else b"".join(parts)
        if not self._text:
            return whole
        self.refusal = whole
        return None
