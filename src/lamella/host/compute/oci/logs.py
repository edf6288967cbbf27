"""What a container wrote, from conmon's log: lines of ``time stream F|P text``, where P is a piece without its line end.

The file begins anew when it is full; the reader notices by its inode and goes on with the new one.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from lamella.host.compute.oci.layout import LOG_BOUND
from lamella.host.linux.inotify import MODIFY, Watch
from lamella.model.usage import LogEntry

_CHUNK = 256 << 10
_ATTRIB, _MOVE_SELF, _DELETE_SELF = 0x4, 0x800, 0x400


def parse(line: bytes) -> LogEntry | None:
    """One line, with its end; ``None`` when it is not one that conmon writes (cut off by a crash, say)."""
    fields = line.removesuffix(b"\n").split(b" ", 3)
    if len(fields) != 4 or fields[1] not in (b"stdout", b"stderr") or fields[2] not in (b"F", b"P"):
        return None
    try:
        at = datetime.fromisoformat(fields[0].decode("ascii"))
    except ValueError:
        return None
    if at.tzinfo is None:
        return None
    end = b"" if fields[2] == b"P" else b"\n"
    return LogEntry(at=at, stream=fields[1].decode(), data=fields[3] + end)


def _goes_on(line: bytes) -> bool:
    """Whether what follows belongs to the same line of the container's."""
    return line.split(b" ", 3)[2:3] == [b"P"]


def _parsed(lines: Iterable[bytes]) -> Iterator[LogEntry]:
    return (entry for entry in map(parse, lines) if entry is not None)


class _Reader:
    """Whole lines of a file that grows and may be replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._rest = b""
        self.taken = 0

    def read(self) -> list[bytes]:
        """The lines that are new, up to a chunk; empty when there is nothing now."""
        if self._fd < 0:
            try:
                self._fd = os.open(self._path, os.O_RDONLY)
            except FileNotFoundError:
                return []
        data = os.read(self._fd, _CHUNK)
        if not data and self._replaced():
            self.close()
            self._rest = b""
            return self.read()
        self.taken += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines

    def _replaced(self) -> bool:
        try:
            return self._path.stat().st_ino != os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


async def entries(
    path: Path, *, ended: asyncio.Event | None, tail: int | None = None, since: datetime | None = None
) -> AsyncIterator[LogEntry]:
    """The log, oldest first: the last *tail* lines, what is not older than *since*; with *ended*, also what comes until it is set."""
    reader = _Reader(path)
    try:
        kept: deque[list[bytes]] = deque(maxlen=tail)
        line: list[bytes] = []
        # No more than a log may hold: one that is written faster than we read is never read to its end.
        while reader.taken < LOG_BOUND and (lines := reader.read()):
            for piece in lines if tail is not None else ():
                line.append(piece)
                if not _goes_on(piece):
                    kept.append(line)
                    line = []
            for entry in _parsed(lines if tail is None else ()):
                if since is None or entry.at >= since:
                    yield entry
            await asyncio.sleep(0)
        if line:
            kept.append(line)
        for lines in kept:
            for entry in _parsed(lines):
                if since is None or entry.at >= since:
                    yield entry
        if ended is not None:
            async for entry in _follow(reader, path, ended):
                if since is None or entry.at >= since:
                    yield entry
    finally:
        reader.close()


async def _follow(reader: _Reader, path: Path, ended: asyncio.Event) -> AsyncIterator[LogEntry]:
    woken = asyncio.Event()
    ending = asyncio.create_task(ended.wait())
    ending.add_done_callback(lambda _: woken.set())
    watch: Watch | None = None
    try:
        while True:
            woken.clear()
            # A file that was replaced has a new inode, and the old watch would sleep for ever: a new one each time.
            if watch is not None:
                watch.close()
            watch = None
            with suppress(FileNotFoundError):
                watch = Watch(path, MODIFY | _ATTRIB | _MOVE_SELF | _DELETE_SELF, lambda _: woken.set())
            last = ended.is_set()
            while lines := reader.read():
                for entry in _parsed(lines):
                    yield entry
                await asyncio.sleep(0)
            if last:
                return
            await woken.wait()
    finally:
        ending.cancel()
        with suppress(asyncio.CancelledError):
            await ending
        if watch is not None:
            watch.close()
