"""The serial line of a unikernel: its log, and what whoever is attached sees and types.

QEMU writes what comes out twice. Into a pipe, which it holds open at both ends: that wakes us, and when it is full (``BOUND`` bytes) the
line is busy and the kernel waits, so that nothing is lost while no daemon is there. And into a file, each byte at its own offset, which
survives QEMU: that is what is read. What is safe in the log is given back to the filesystem behind us, page by page.
"""

import asyncio
import ctypes
import fcntl
import os
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from lamella.host.compute.qemu.log import Log
from lamella.host.compute.qemu.places import ExitRecord
from lamella.host.linux.processes import readable, writable
from lamella.model.errors import Unavailable
from lamella.model.stream import LARGEST_DATA, Exit, FromProcess, Signal, Stdin, Stdout, ToProcess
from lamella.model.usage import LogEntry

BOUND = 256 << 10
_MOST_WAITING = 1 << 20
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_LEAST_GIVEN_BACK = 256 << 10
_SYNC_INTERVAL = 0.5
_LOOK_AGAIN = 0.01


def pipe(size: int) -> int:
    """A pipe of *size* bytes, open at both ends through one descriptor: whoever holds it never meets its end."""
    read_end, write_end = os.pipe()
    try:
        with suppress(OSError):
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, size)
        return os.open(f"/proc/self/fd/{write_end}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(read_end)
        os.close(write_end)


class Serial:
    """The line of one unikernel; *ticks* and *keys* are our ends of its pipes, ours to close."""

    def __init__(self, path: Path, log: Log, ticks: int, keys: int) -> None:
        self._log = log
        self._ticks = ticks
        self._keys = keys
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._streams: set[SerialStream] = set()
        self._typing = asyncio.Lock()
        self._given_back = 0

    def close(self) -> None:
        for fd in (self._ticks, self._keys, self._file):
            if fd >= 0:
                os.close(fd)
        self._ticks = self._keys = self._file = -1

    async def follow(self) -> None:
        """Take in what comes out, as fast as the slowest that is attached reads it; never ends by itself."""
        os.set_blocking(self._ticks, False)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_safe())
            self.take()
            while True:
                await readable(self._ticks)
                await self._take_at_least(self._drain())
                for stream in list(self._streams):
                    await stream.room()

    def take(self) -> int:
        """Everything that the file has and the log has not; returns how many bytes that was."""
        start = self._log.end
        while self._file >= 0 and (data := os.pread(self._file, BOUND, self._log.end)):
            self._log.append(self._log.end, LogEntry(at=datetime.now(UTC), stream="stdout", data=data))
            for stream in self._streams:
                stream.put(data)
        return self._log.end - start

    async def type(self, data: bytes) -> None:
        """Let *data* come in on the line, as fast as the kernel reads it.

        :raise Unavailable: when QEMU is gone.
        """
        async with self._typing:
            rest = memoryview(data)
            while rest:
                if self._keys < 0:
                    raise Unavailable("the unikernel has ended")
                try:
                    rest = rest[os.write(self._keys, rest[:4096]) :]
                except BlockingIOError:
                    await writable(self._keys)
                except BrokenPipeError as error:
                    raise Unavailable("the unikernel has ended") from error

    def attach(self, stream: "SerialStream") -> None:
        self.take()
        self._streams.add(stream)

    def detach(self, stream: "SerialStream") -> None:
        self._streams.discard(stream)

    # --- how

    def _drain(self) -> int:
        with suppress(BlockingIOError):
            return len(os.read(self._ticks, BOUND))
        return 0

    async def _take_at_least(self, wanted: int) -> None:
        """QEMU writes to the pipe first and to the file right after: what woke us may not be there yet."""
        taken = self.take()
        for _ in range(8):
            if taken >= wanted:
                break
            await asyncio.sleep(0.0003)
            taken += self.take()
        asyncio.get_running_loop().call_later(_LOOK_AGAIN, self.take)

    async def _keep_safe(self) -> None:
        known = self._log.end
        while True:
            await asyncio.sleep(_SYNC_INTERVAL)
            if self._log.end != known:
                known = await self._log.sync()
                await asyncio.to_thread(self._give_back, known)

    def _give_back(self, end: int) -> None:
        """What is in the log need not be in the file: its blocks are freed, and offsets stay what they are (fallocate(2))."""
        end = end // 4096 * 4096
        if end - self._given_back < _LEAST_GIVEN_BACK:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        # A filesystem without holes keeps it all, which is no harm to the run.
        libc.fallocate(self._file, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(end))
        self._given_back = end


def catch_up(path: Path, log: Log) -> None:
    """Take into *log* what came out after everybody had stopped listening; QEMU is gone."""
    with suppress(FileNotFoundError):
        serial = Serial(path, log, -1, -1)
        try:
            serial.take()
        finally:
            serial.close()


class SerialStream:
    """:class:`ProcessStream` of somebody who is attached. A serial line has no end of input, no size and no signals."""

    def __init__(
        self,
        serial: Serial,
        gone: asyncio.Event,
        ending: Callable[[], ExitRecord | None],
        signal: Callable[[int], Awaitable[None]],
    ) -> None:
        self._serial = serial
        self._gone = gone
        self._ending = ending
        self._signal = signal
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._closed = False
        self._changed = asyncio.Event()
        self._roomy = asyncio.Event()
        self._ended = False
        serial.attach(self)

    def put(self, data: bytes) -> None:
        """More came out."""
        self._waiting.append(data)
        self._size += len(data)
        self._changed.set()

    async def room(self) -> None:
        """Wait until it has read enough to be given more."""
        while self._size > _MOST_WAITING and not self._closed:
            self._roomy.clear()
            await self._roomy.wait()

    async def send(self, frame: ToProcess) -> None:
        match frame:
            case Stdin(data):
                await self._serial.type(data)
            case Signal(number):
                await self._signal(number)
            case _:
                pass

    async def receive(self) -> FromProcess | None:
        while True:
            if self._waiting:
                return Stdout(self._next())
            if self._closed or self._ended:
                return None
            if self._gone.is_set():
                self._ended = True
                end = self._ending()
                return Exit(end.exit_code or 0, end.reason) if end is not None and end.exit_code is not None else None
            self._changed.clear()
            waits = [asyncio.ensure_future(event.wait()) for event in (self._changed, self._gone)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    async def close(self) -> None:
        self._closed = True
        self._serial.detach(self)
        self._waiting.clear()
        self._size = 0
        self._roomy.set()
        self._changed.set()

    def _next(self) -> bytes:
        data = self._waiting.popleft()
        if len(data) > LARGEST_DATA:
            self._waiting.appendleft(data[LARGEST_DATA:])
            data = data[:LARGEST_DATA]
        self._size -= len(data)
        self._roomy.set()
        return data
