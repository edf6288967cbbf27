"""The serial line of a machine: kept open by whoever holds the machine, written to its log, and shown live to any number of people.

QEMU throws away what the guest writes while nobody is connected, so the daemon connects before the processors run and stays.
"""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from lamella.host.compute.qemu.log import Log
from lamella.model.errors import Unavailable, Unsupported
from lamella.model.stream import LARGEST_DATA, Exit, FromProcess, Resize, Signal, Stdin, StdinEnd, Stdout, ToProcess
from lamella.model.usage import LogEntry

LOG_INTERVAL = 0.5
# How much of what it has not read yet is kept for one viewer; one that is slower is let go of, the guest does not wait.
MOST_UNREAD = 4 << 20


class Console:
    """One machine's serial line. *log* is open."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._writer: asyncio.StreamWriter | None = None
        self._viewers: set[Viewer] = set()
        self._there = asyncio.Event()

    async def run(self, path: Path) -> None:
        """Connect to the socket at *path* and copy until QEMU ends or the task does.

        :raise OSError: when nobody listens there.
        """
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        self._writer = writer
        self._there.set()
        saving = asyncio.create_task(self._save())
        try:
            while data := await reader.read(LARGEST_DATA):
                self._take(data)
        except ConnectionError:
            pass
        finally:
            self._there.clear()
            self._writer = None
            saving.cancel()
            writer.close()
            await self._log.sync()

    @property
    def connected(self) -> bool:
        return self._writer is not None

    async def ready(self) -> None:
        """Wait until it is connected."""
        await self._there.wait()

    def attach(self, ending: Callable[[], int | None]) -> "Viewer":
        """Somebody who sees what comes from now on. *ending* gives the exit code when it is over."""
        viewer = Viewer(self, ending)
        self._viewers.add(viewer)
        return viewer

    def forget(self, viewer: "Viewer") -> None:
        self._viewers.discard(viewer)

    async def type(self, data: bytes) -> None:
        """What a person types.

        :raise Unavailable: when the machine does not run.
        """
        if self._writer is None:
            raise Unavailable("the machine's serial line is closed", hint="it does not run")
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError as error:
            raise Unavailable("the machine has ended and takes no more input") from error

    def finish(self) -> None:
        """The run is over: every viewer comes to its end."""
        for viewer in list(self._viewers):
            viewer.end()
        self._viewers.clear()

    def _take(self, data: bytes) -> None:
        self._log.append(self._log.end, LogEntry(at=datetime.now(UTC), stream="stdout", data=data))
        for viewer in list(self._viewers):
            viewer.put(data)

    async def _save(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(LOG_INTERVAL)
                await self._log.sync()


class Viewer:
    """A :class:`lamella.model.stream.ProcessStream` that is the serial line; the log keeps what went by before."""

    def __init__(self, console: Console, ending: Callable[[], int | None]) -> None:
        self._console = console
        self._ending = ending
        self._unread: deque[bytes] = deque()
        self._size = 0
        self._over = False
        self._done = False
        self._came = asyncio.Event()

    async def send(self, frame: ToProcess) -> None:
        """:raise Unsupported: for what a serial line has no idea of."""
        match frame:
            case Stdin(data=data):
                await self._console.type(data)
            case StdinEnd() | Resize():
                pass  # a serial line has neither an end nor a size
            case Signal():
                raise Unsupported(
                    "a serial line carries no signals", hint="type what the guest understands, or use kill"
                )

    async def receive(self) -> FromProcess | None:
        while not self._done:
            if self._unread:
                data = self._unread.popleft()
                self._size -= len(data)
                return Stdout(data)
            if self._over:
                self._done = True
                code = self._ending()
                return None if code is None else Exit(code)
            self._came.clear()
            await self._came.wait()
        return None

    async def close(self) -> None:
        self._console.forget(self)
        self._done = True
        self._came.set()

    def put(self, data: bytes) -> None:
        if self._size + len(data) > MOST_UNREAD:
            self._console.forget(self)
            self._done = True
        else:
            self._unread.append(data)
            self._size += len(data)
        self._came.set()

    def end(self) -> None:
        self._over = True
        self._came.set()
