"""The log of every write that reached a disk, and disks as a power cut would have left them. QEMU's ``blklogwrites`` writes it, in the form
of dm-log-writes (kernel, Documentation/admin-guide/device-mapper/log-writes.rst).

A disk has a cache: what a completed flush (or FUA) did not put down may be there or not, in any choice. So a cut applies everything before
the newest flush, and of every later write each 4 KiB with a chance; *keep* is that chance.
"""

import os
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SUPER = struct.Struct("<QQQL")
_ENTRY = struct.Struct("<4Q")
_MAGIC = 0x6A736677736872
_FLUSH, _FUA, _DISCARD = 1, 2, 4
# What a disk writes whole or not at all.
ATOM = 4096


@dataclass(frozen=True)
class Entry:
    """One request: ``end`` is how long the log was when it was complete, ``data`` where in the log its bytes are."""

    end: int
    offset: int
    length: int
    flags: int
    data: int

    @property
    def flushes(self) -> bool:
        return bool(self.flags & _FLUSH)


def entries(log: Path) -> list[Entry]:
    """All of them, in the order in which they were complete."""
    found: list[Entry] = []
    with log.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        magic, _, _, sector = _SUPER.unpack(file.read(_SUPER.size))
        assert magic == _MAGIC, f"{log} is no log of writes"
        position = sector
        while position + sector <= size:
            file.seek(position)
            at, count, flags, _ = _ENTRY.unpack(file.read(_ENTRY.size))
            data = position + sector
            position = data + (0 if flags & _DISCARD else count * sector)
            found.append(Entry(end=position, offset=at * sector, length=count * sector, flags=flags, data=data))
    return found


class Replay:
    """Cuts of one log, asked for in rising order; *image* is the disk as it was when the log began, and is changed."""

    def __init__(self, log: Path, image: Path) -> None:
        self._entries = entries(log)
        self._log = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
        self._image = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        self._applied = 0

    def close(self) -> None:
        os.close(self._log)
        os.close(self._image)

    def moments(self, after: int, until: int) -> list[int]:
        """The lengths that the log had between two of its lengths."""
        return [entry.end for entry in self._entries if after < entry.end <= until]

    def cut(self, moment: int, target: Path, keep: float, chance: random.Random) -> tuple[int, int]:
        """Make *target* the disk after a cut when the log was *moment* long; returns how many pieces were in the disk's cache, and how
        many of them are lost."""
        past = next((index for index, entry in enumerate(self._entries) if entry.end > moment), len(self._entries))
        flushed = next((index for index in range(past, 0, -1) if self._entries[index - 1].flushes), 0)
        assert flushed >= self._applied, "cuts are asked for in rising order"
        for entry in self._entries[self._applied : flushed]:
            for piece in self._pieces(entry):
                self._apply(self._image, *piece)
        self._applied = flushed
        copy_sparsely(self._image, target)
        cached = lost = 0
        with target.open("r+b") as file:
            for entry in self._entries[flushed:past]:
                for piece in self._pieces(entry):
                    cached += 1
                    if entry.flags & _FUA or chance.random() < keep:
                        self._apply(file.fileno(), *piece)
                    else:
                        lost += 1
        return cached, lost

    def _pieces(self, entry: Entry) -> Iterator[tuple[int, int, int]]:
        """(where, how long, where in the log or -1 for zeros) of each part that a disk writes at once."""
        if entry.flags & _DISCARD:
            yield entry.offset, entry.length, -1
            return
        position = entry.offset
        while position < entry.offset + entry.length:
            end = min((position // ATOM + 1) * ATOM, entry.offset + entry.length)
            yield position, end - position, entry.data + position - entry.offset
            position = end

    def _apply(self, disk: int, where: int, length: int, data: int) -> None:
        if data >= 0:
            os.pwrite(disk, os.pread(self._log, length, data), where)
            return
        zeros = bytes(min(length, 1 << 20))
        for start in range(where, where + length, len(zeros)):
            os.pwrite(disk, zeros[: where + length - start], start)


def copy_sparsely(source: int, target: Path) -> None:
    """*target* becomes what the descriptor *source* is, holes and all."""
    size, position = os.fstat(source).st_size, 0
    with target.open("wb") as file:
        file.truncate(size)
        while position < size:
            try:
                start = os.lseek(source, position, os.SEEK_DATA)
            except OSError:
                break
            position = os.lseek(source, start, os.SEEK_HOLE)
            while start < position:
                start += os.copy_file_range(source, file.fileno(), position - start, start, start)
