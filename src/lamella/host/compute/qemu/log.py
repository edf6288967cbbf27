"""What an instance wrote, in two files on the host: bounded, and never with a gap or a repeat of our making.

A file is a run of frames: a fixed header, then the bytes. Each frame carries the guest's own offset of its first byte, so the
file itself says how much the host has: after a crash the last whole frame is the truth, and a torn one is cut off.
"""

import asyncio
import os
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from lamella.model.usage import LogEntry

LARGEST = 8 << 20
_FILES = 2
_HEADER = struct.Struct("<IQqIB")  # CRC-32 of the rest, offset, microseconds since 1970, length, kind
_LARGEST_FRAME = 1 << 20
_STREAMS = {1: "stdout", 2: "stderr"}
_KINDS = {name: kind for kind, name in _STREAMS.items()}
_RUN = 0  # a new run begins: offsets start again at 0


class Frame(msgspec.Struct, frozen=True):
    """``offset`` is the guest's; ``kind`` 0 marks the beginning of a run."""

    offset: int
    at: int
    kind: int
    data: bytes

    def pack(self) -> bytes:
        rest = _HEADER.pack(0, self.offset, self.at, len(self.data), self.kind)[4:] + self.data
        return struct.pack("<I", zlib.crc32(rest)) + rest

    @property
    def entry(self) -> LogEntry:
        at = datetime.fromtimestamp(self.at / 1e6, UTC)
        return LogEntry(at=at, stream=_STREAMS.get(self.kind, "stdout"), data=self.data)


def frames(data: bytes, start: int = 0) -> Iterator[tuple[int, Frame]]:
    """The whole frames in *data* from *start* on, each with the position after it; ends before the first that is torn or not one."""
    position = start
    while position + _HEADER.size <= len(data):
        crc, offset, at, length, kind = _HEADER.unpack_from(data, position)
        end = position + _HEADER.size + length
        if length > _LARGEST_FRAME or end > len(data) or zlib.crc32(data[position + 4 : end]) != crc:
            return
        yield end, Frame(offset, at, kind, data[position + _HEADER.size : end])
        position = end


def last_lines(entries: list[LogEntry], count: int) -> list[LogEntry]:
    """The entries that hold the last *count* lines; the first of them is cut where the first line begins."""
    if count <= 0:
        return []
    kept: list[LogEntry] = []
    wanted = count
    for number, entry in enumerate(reversed(entries)):
        # The line end at the very end of everything closes the last line, it does not begin another.
        body = entry.data[:-1] if number == 0 and entry.data.endswith(b"\n") else entry.data
        found = body.count(b"\n")
        if found >= wanted:
            position = len(body)
            for _ in range(wanted):
                position = body.rfind(b"\n", 0, position)
            rest = entry.data[position + 1 :]
            if rest:
                kept.append(LogEntry(at=entry.at, stream=entry.stream, data=rest))
            break
        wanted -= found
        kept.append(entry)
    return kept[::-1]


class Log:
    """The log of one instance. One writer; readers follow it in the same process."""

    def __init__(self, directory: Path, *, largest: int = LARGEST) -> None:
        self._directory = directory
        self._share = largest // _FILES
        self._fd: int | None = None
        self._number = 0
        self._size = 0
        self._grown = asyncio.Event()
        self._dirty = False
        self._full: list[int] = []
        self.end = 0
        self.following = False

    def open(self) -> None:
        """Find the newest file, cut a torn end off, and know how far the host has come (``end``)."""
        if self._fd is not None:
            return
        numbers = self._numbers()
        self._number = numbers[-1] if numbers else 1
        self._open_current()
        for number in numbers[-_FILES:]:
            data = self._path(number).read_bytes()
            whole = 0
            for position, frame in frames(data):
                whole = position
                self.end = 0 if frame.kind == _RUN else frame.offset + len(frame.data)
            if number == self._number:
                assert self._fd is not None
                os.ftruncate(self._fd, whole)
                self._size = whole

    def close(self) -> None:
        for fd in [*self._full, *([self._fd] if self._fd is not None else [])]:
            os.close(fd)
        self._full, self._fd = [], None
        self.finish()

    def begin(self) -> None:
        """Another run begins."""
        self.go_on()
        self._write(Frame(0, _now(), _RUN, b""))
        self.end = 0

    def go_on(self) -> None:
        """The run lives: whoever follows waits for more."""
        if not self.following:
            self.following = True
            self._grown = asyncio.Event()

    def append(self, offset: int, entry: LogEntry) -> None:
        """Take in what the guest wrote at *offset*; what the host has already is passed over."""
        data = entry.data
        if offset < self.end:
            data = data[self.end - offset :]
            offset = self.end
        at = int(entry.at.timestamp() * 1e6)
        kind = _KINDS.get(entry.stream, 1)
        for start in range(0, len(data), _LARGEST_FRAME):
            piece = data[start : start + _LARGEST_FRAME]
            self._write(Frame(offset + start, at, kind, piece))
            self.end = offset + start + len(piece)
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    async def sync(self) -> int:
        """Make durable what was appended; returns the offset up to which the guest may forget."""
        end = self.end
        if self._dirty and self._fd is not None:
            self._dirty = False
            fds, self._full = [*self._full, os.dup(self._fd)], []
            await asyncio.to_thread(_sync_and_close, fds)
        return end

    def grew(self) -> None:
        """Another process wrote to the files: whoever follows reads on."""
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    def finish(self) -> None:
        """Nothing more comes in this run: whoever follows reaches the end."""
        self.following = False
        self._grown.set()

    async def read(self, *, follow: bool, tail: int | None, since: datetime | None) -> AsyncIterator[LogEntry]:
        """Oldest first; with *follow* until the run ends."""
        numbers = self._numbers()
        number, position = (numbers[0] if numbers else 1), 0
        first = True
        while True:
            grown, going = self._grown, self.following
            batch: list[LogEntry] = []
            while True:
                found, position = await asyncio.to_thread(self._read_from, number, position)
                batch += found
                newer = [other for other in self._numbers() if other > number]
                if not newer:
                    break
                number, position = newer[0], 0
            if first and tail is not None:
                batch = last_lines(batch, tail)
            first = False
            for entry in batch:
                if since is None or entry.at >= since:
                    yield entry
            if not follow or not going:
                return
            await grown.wait()

    def _read_from(self, number: int, position: int) -> tuple[list[LogEntry], int]:
        try:
            with self._path(number).open("rb") as file:
                file.seek(position)
                data = file.read()
        except FileNotFoundError:
            return [], position
        entries: list[LogEntry] = []
        read = 0
        for end, frame in frames(data):
            read = end
            if frame.kind != _RUN:
                entries.append(frame.entry)
        return entries, position + read

    def _write(self, frame: Frame) -> None:
        data = frame.pack()
        if self._size and self._size + len(data) > self._share:
            self._rotate()
        assert self._fd is not None
        os.write(self._fd, data)
        self._size += len(data)
        self._dirty = True

    def _rotate(self) -> None:
        assert self._fd is not None
        # Synced together with the newer one: nothing is acknowledged before.
        self._full.append(self._fd)
        self._number += 1
        self._open_current()
        for number in self._numbers()[:-_FILES]:
            self._path(number).unlink(missing_ok=True)

    def _open_current(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path(self._number), flags, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _path(self, number: int) -> Path:
        return self._directory / f"log.{number}"

    def _numbers(self) -> list[int]:
        try:
            names = [path.name for path in self._directory.iterdir()]
        except FileNotFoundError:
            return []
        return sorted(int(name[4:]) for name in names if name.startswith("log.") and name[4:].isdigit())


def _sync_and_close(fds: list[int]) -> None:
    for fd in fds:
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)


def _now() -> int:
    return int(datetime.now(UTC).timestamp() * 1e6)
