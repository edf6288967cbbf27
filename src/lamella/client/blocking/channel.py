"""An open WebSocket over a plain socket: waiting for what comes, or polled beside other things."""

from contextlib import suppress

from lamella.client import websocket
from lamella.client.absent import broken
from lamella.client.http1 import WireError
from lamella.client.problem import problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from lamella.client.address import Address

_PIECE = 256 << 10


class Channel:
    """An open WebSocket. Not more than one thread sends and one receives."""

    def __init__(self, address: "Address", connection: "socket.socket", rest: bytes) -> None:
        self._address = address
        self._connection = connection
        self._secure = not address.path
        self._unsent = bytearray()
        self._reader = websocket.MessageReader()
        self._ready: list[bytes] = list(self._reader.feed(rest)) if rest else []

    @property
    def pending(self) -> bool:
        """Whether :meth:`receive` would answer without waiting."""
        return bool(self._ready) or self._reader.closed

    @property
    def closing(self) -> tuple[int, str]:
        """Code and reason with which the other end closed; (0, "") while it has not."""
        return self._reader.code, self._reader.reason

    def send(self, data: bytes) -> None:
        """Hand over one message; waits while the other end does not read.

        :raise Unavailable: when the other end is gone.
        """
        try:
            self._connection.sendall(websocket.message(data))
        except OSError as error:
            raise broken(self._address, error) from error

    def receive(self) -> "bytes | None":
        """The next message; ``None`` when the other end has closed.

        :raise LamellaError: what the daemon said was wrong; ``Unavailable`` when the connection breaks.
        """
        while not self.pending:
            self.advance()
        if self._ready:
            return self._ready.pop(0)
        if self._reader.refusal:
            raise problem(self._reader.code - 3600, self._reader.refusal)
        return None

    def poll_with(self) -> int:
        """From now on never wait: the descriptor to poll, with :meth:`advance`, :meth:`offer` and :meth:`flush`."""
        self._connection.setblocking(False)
        return self._connection.fileno()

    def offer(self, data: bytes) -> None:
        """Queue one message; :attr:`unsent` says what :meth:`flush` has left to do.

        :raise Unavailable: when the other end is gone.
        """
        self._unsent += websocket.message(data)
        self.flush()

    @property
    def unsent(self) -> int:
        """Bytes that are queued."""
        return len(self._unsent)

    def flush(self) -> None:
        """Send of what is queued as much as goes now.

        :raise Unavailable: when the other end is gone.
        """
        try:
            while self._unsent:
                del self._unsent[: self._connection.send(memoryview(self._unsent)[:_PIECE].tobytes())]
        except OSError as error:
            if not _would_wait(error):
                raise broken(self._address, error) from error

    def advance(self) -> None:
        """Read once from the socket, and keep the messages that this completes.

        :raise Unavailable: when the connection breaks.
        """
        try:
            self._ready.extend(self._reader.feed(self._connection.recv(_PIECE)))
            while self._secure and self._connection.pending():  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
                self._ready.extend(self._reader.feed(self._connection.recv(_PIECE)))
        except ConnectionResetError:
            self._ready.extend(self._reader.feed(b""))
        except (OSError, WireError) as error:
            if not _would_wait(error):
                raise broken(self._address, error) from error
        if self._reader.answers:
            self._unsent += self._reader.answers
            self._reader.answers.clear()
            if self._reader.closed:
                with suppress(OSError):
                    self._connection.send(self._unsent)
            else:
                self.flush()

    def close(self) -> None:
        """Say goodbye and let go. Safe to call twice."""
        if self._connection.fileno() >= 0:
            with suppress(OSError):
                if not self._reader.closed:
                    self._connection.settimeout(1)
                    self._connection.sendall(websocket.closing())
            self._connection.close()


def _would_wait(error: Exception) -> bool:
    """Whether *error* only says "not now"; TLS says it with errors of its own, and is not imported to be asked."""
    return isinstance(error, BlockingIOError) or type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError")
