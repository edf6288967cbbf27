"""The streams of a container's own process, through conmon's attach socket.

conmon writes each piece to its clients before it reads the next, and waits for a slow one: nothing is lost, and a client that
stops reading makes the container wait, as a pipe would. Each message is one byte that names the stream, and up to 8 KiB.
What a client sends is input, in messages of at most 32 KiB; when it shuts its sending side, the container's input ends.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

from lamella.host.compute.oci.layout import Place
from lamella.host.linux.processes import writable
from lamella.model.errors import Unavailable
from lamella.model.stream import Exit, FromProcess, Resize, Signal, Stderr, Stdin, StdinEnd, Stdout, ToProcess

LARGEST_INPUT = 32 << 10
LARGEST_OUTPUT = 64 << 10
STDERR = 3
END_OF_TRANSMISSION = b"\x04"


class AttachStream:
    """A :class:`~lamella.model.stream.ProcessStream`. *ending* waits for the end and gives the exit code; *signal* sends one."""

    def __init__(
        self,
        place: Place,
        *,
        terminal: bool,
        ending: Callable[[], Awaitable[int | None]],
        signal: Callable[[int], Awaitable[None]],
    ) -> None:
        self._place = place
        self._terminal = terminal
        self._ending = ending
        self._signal = signal
        self._finished = False
        self._input_open = True
        self._closed = False
        self._waiting: asyncio.Future[None] | None = None
        self._sleepers = 0
        self._on_close: Callable[[], None] | None = None
        self._socket = connect(place)

    def on_close(self, call: Callable[[], None]) -> None:
        """Have *call* called when it is let go of."""
        self._on_close = call

    async def send(self, frame: ToProcess) -> None:
        match frame:
            case Stdin(data=data):
                for start in range(0, len(data), LARGEST_INPUT):
                    await self._send(data[start : start + LARGEST_INPUT])
            case StdinEnd():
                if self._terminal:
                    # A terminal's end of input is a character; shutting the socket would hang it up for everybody.
                    await self._send(END_OF_TRANSMISSION)
                elif self._input_open:
                    self._input_open = False
                    with suppress(OSError):
                        self._socket.shutdown(socket.SHUT_WR)
            case Resize(rows=rows, columns=columns):
                if self._terminal:
                    resize(self._place, rows, columns)
            case Signal(number=number):
                await self._signal(number)

    async def _send(self, piece: bytes) -> None:
        while self._input_open and not self._closed:
            try:
                self._socket.send(piece)
                return
            except BlockingIOError:
                self._sleepers += 1
                try:
                    await writable(self._socket.fileno())
                finally:
                    self._sleepers -= 1
                    self._let_go()
            except OSError as error:
                raise Unavailable(f"instance {self._place.id} has ended and takes no more input") from error

    async def receive(self) -> FromProcess | None:
        while not self._finished and not self._closed:
            try:
                message = self._socket.recv(LARGEST_OUTPUT)
            except BlockingIOError:
                await self._wait()
                continue
            except OSError:
                message = b""
            if message:
                return Stderr(message[1:]) if message[0] == STDERR else Stdout(message[1:])
            self._finished = True
            code = await self._ending()
            return None if code is None else Exit(code)
        return None

    async def _wait(self) -> None:
        """Until there is something to read, or :meth:`drop`."""
        loop = asyncio.get_running_loop()
        self._waiting = waiting = loop.create_future()
        fd = self._socket.fileno()
        loop.add_reader(fd, lambda: waiting.done() or waiting.set_result(None))
        try:
            await waiting
        finally:
            loop.remove_reader(fd)
            self._waiting = None
            self._let_go()

    def drop(self) -> None:
        """Let go at once, from outside: a reader that sleeps hears that it is over."""
        if not self._closed:
            self._closed = True
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_result(None)
            # conmon stops waiting for this client now; the descriptor goes when the reader has let go of it.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        self.drop()
        self._let_go()
        if self._on_close is not None:
            self._on_close()

    def _let_go(self) -> None:
        """Close the descriptor when nobody sleeps on it any more: the number may be somebody else's right after."""
        if self._closed and self._waiting is None and not self._sleepers:
            self._socket.close()


def connect(place: Place) -> socket.socket:
    """A connection to the attach socket, however long the bundle's path is.

    :raise Unavailable: when no conmon listens there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        directory = os.open(place.bundle, os.O_PATH | os.O_DIRECTORY)
        try:
            connection.connect(f"/proc/self/fd/{directory}/attach")
        finally:
            os.close(directory)
        connection.setblocking(False)
    except OSError as error:
        connection.close()
        raise Unavailable(f"instance {place.id} does not run, so there are no streams to attach to") from error
    return connection


def resize(place: Place, rows: int, columns: int) -> None:
    """Tell conmon the size of the terminal; one that has ended is left in peace."""
    with suppress(OSError):
        fd = os.open(place.control, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(fd, f"1 {rows} {columns}\n".encode())
        finally:
            os.close(fd)
