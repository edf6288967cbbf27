"""Which pieces of a volume hold something, and when each changed last: what the engine goes by. Values only; see native/pieces.c."""

import struct
from array import array
from collections.abc import Iterable

from lamella.host.storage.driver import Extent

PIECE = 4 << 20
_HEAD = struct.Struct("=QQ")


class Table:
    """``stamps`` has a number for every piece: the second of its last change, 0 when it is zeros."""

    def __init__(self, size: int, stamps: "array[int]", piece: int = PIECE) -> None:
        self.size, self.stamps, self.piece = size, stamps, piece

    @property
    def pieces(self) -> int:
        """How many are not zeros."""
        return sum(1 for stamp in self.stamps if stamp)

    def bytes_of(self, stamp: int) -> int:
        """Bytes in pieces that changed at *stamp*."""
        return sum(self.length(index) for index, seen in enumerate(self.stamps) if seen == stamp)

    def length(self, index: int) -> int:
        return min(self.piece, self.size - index * self.piece)

    def encoded(self) -> bytes:
        return _HEAD.pack(self.piece, self.size) + self.stamps.tobytes()


def decoded(data: bytes) -> Table | None:
    """``None`` when *data* is no table."""
    if len(data) < _HEAD.size or (len(data) - _HEAD.size) % 8:
        return None
    piece, size = _HEAD.unpack_from(data)
    stamps: array[int] = array("q")
    stamps.frombytes(data[_HEAD.size :])
    if piece <= 0 or len(stamps) != -(-size // piece):
        return None
    return Table(size, stamps, piece)


def everything(size: int, content: Iterable[Extent], stamp: int, piece: int = PIECE) -> Table:
    """Of a volume that is read for the first time, or anew: *content* tells what of it is not zeros."""
    stamps: array[int] = array("q", bytes(8 * -(-size // piece)))
    _mark(stamps, content, piece, stamp)
    return Table(size, stamps, piece)


def since(
    former: Table, size: int, content: Iterable[Extent], changed: Iterable[Extent], now: int
) -> tuple[Table, int]:
    """The table after *changed*, and the stamp of what is to be read: *now*, or later than everything before."""
    stamp = max(now, max(former.stamps, default=0) + 1)
    table = everything(size, content, stamp, former.piece)
    touched: array[int] = array("q", bytes(8 * len(table.stamps)))
    _mark(touched, (_plain(extent) for extent in changed), former.piece, 1)
    # The last piece of a volume that grew has another length now.
    if former.size != size and former.stamps:
        for index in range(min(len(former.stamps), len(touched)) - 1, len(touched)):
            touched[index] = 1
    for index, holds in enumerate(table.stamps):
        if holds and index < len(former.stamps) and former.stamps[index] and not touched[index]:
            table.stamps[index] = former.stamps[index]
    return table, stamp


def _plain(extent: Extent) -> Extent:
    return Extent(offset=extent.offset, length=extent.length)


def _mark(stamps: "array[int]", extents: Iterable[Extent], piece: int, value: int) -> None:
    for extent in extents:
        if extent.zero or extent.length <= 0:
            continue
        first, last = extent.offset // piece, (extent.offset + extent.length - 1) // piece
        for index in range(first, min(last, len(stamps) - 1) + 1):
            stamps[index] = value


def path_of(index: int) -> str:
    """What a piece is called in the engine's repository."""
    return f"{index >> 8:06x}/{index & 255:02x}"
