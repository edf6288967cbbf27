"""What differs between two files that share blocks, told from where their blocks lie (FIEMAP, Documentation/filesystems/fiemap.rst).

Where both have the same block of the disk they have the same bytes: btrfs writes a shared block anew. Nothing is read.
"""

import fcntl
import os
import struct
from itertools import pairwise
from pathlib import Path

from lamella.host.storage.driver import Extent

_FS_IOC_FIEMAP = 0xC020660B
_HEADER, _EXTENT = struct.Struct("=QQLLLL"), struct.Struct("=QQQQQLLLL")
_SYNC, _MANY = 1, 512
_LAST, _UNKNOWN, _INLINE, _UNWRITTEN = 0x1, 0x2, 0x200, 0x800
# (offset, length, where on the disk or -1 when that cannot be told, whether it reads as zeros)
Run = tuple[int, int, int, bool]


def runs(path: Path) -> list[Run]:
    """What of *path* is allocated, in order; the rest is holes.

    :raise OSError: when the filesystem cannot tell.
    """
    found: list[Run] = []
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        position, last = 0, False
        while not last:
            asked = bytearray(_HEADER.pack(position, (1 << 64) - 1 - position, _SYNC, 0, _MANY, 0))
            asked += bytes(_EXTENT.size * _MANY)
            fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, asked)
            count = _HEADER.unpack_from(asked)[3]
            last = not count
            for index in range(count):
                offset, physical, length, _, _, flags, *_ = _EXTENT.unpack_from(
                    asked, _HEADER.size + index * _EXTENT.size
                )
                unknown = flags & (_UNKNOWN | _INLINE)
                found.append((offset, length, -1 if unknown else physical, bool(flags & _UNWRITTEN)))
                position, last = offset + length, bool(flags & _LAST)
    finally:
        os.close(descriptor)
    return found


def changed(before: list[Run], now: list[Run], old_size: int, size: int) -> list[Extent]:
    """Bytes of a file of *size* that may differ from what they were in another one, in order."""
    found: list[Extent] = []
    edges = sorted(
        {0, min(old_size, size), size}
        | {edge for run in (*before, *now) for edge in (run[0], run[0] + run[1]) if edge <= size}
    )
    one, other = _Cursor(before), _Cursor(now)
    for start, end in pairwise(edges):
        was, become = one.at(start), other.at(start)
        if start < old_size and was == become and was != -1:
            continue
        zero = become is None
        last = found[-1] if found else None
        if last is not None and last.offset + last.length == start and last.zero == zero:
            found[-1] = Extent(offset=last.offset, length=end - last.offset, zero=zero)
        else:
            found.append(Extent(offset=start, length=end - start, zero=zero))
    return found


class _Cursor:
    """Where on the disk a byte lies, asked for in rising order; ``None`` where zeros are read."""

    def __init__(self, runs: list[Run]) -> None:
        self._runs = runs
        self._next = 0

    def at(self, offset: int) -> int | None:
        while self._next < len(self._runs) and self._runs[self._next][0] + self._runs[self._next][1] <= offset:
            self._next += 1
        if self._next == len(self._runs) or self._runs[self._next][0] > offset:
            return None
        start, _, physical, zero = self._runs[self._next]
        if zero:
            return None
        return -1 if physical == -1 else physical + offset - start
