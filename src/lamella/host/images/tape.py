"""The bytes of one layer, from the file as it came to the tar inside: counted, hashed, decompressed, bounded.

``Intake`` is what comes in, ``decompress`` makes it plain piece by piece, ``Tape`` is what the tar reader reads from.
"""

import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Protocol

import msgspec
import zstandard

from lamella.model.errors import Corrupt

PIECE = 256 << 10


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Bounds(msgspec.Struct, kw_only=True, frozen=True):
    """What one layer may grow to. ``ratio`` (plain to compressed) counts once ``ratio_from`` plain bytes are out; ``reserve`` is
    what stays free on the disk. Bytes, all but ``ratio`` and ``entries``."""

    size: int = 64 << 30
    entries: int = 2_000_000
    ratio: int = 1000
    ratio_from: int = 64 << 20
    reserve: int = 256 << 20


class Compression(StrEnum):
    NONE = ""
    GZIP = "gzip"
    XZ = "xz"
    ZSTD = "zstd"


_MAGIC = ((b"\x1f\x8b", Compression.GZIP), (b"\xfd7zXZ\x00", Compression.XZ), (b"\x28\xb5\x2f\xfd", Compression.ZSTD))
_ZSTD_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_LARGEST_WINDOW = 128 << 20
_SLICE = 2048


def sniff(head: bytes) -> Compression:
    """What the first bytes of a file say; media types lie more often than bytes do."""
    for magic, compression in _MAGIC:
        if head.startswith(magic):
            return compression
    if len(head) >= 4 and int.from_bytes(head[:4], "little") in _ZSTD_SKIPPABLE:
        return Compression.ZSTD
    return Compression.NONE


class Intake:
    """A file as it came. ``taken`` counts bytes, ``digest`` names what was read, ``progress`` is called with each piece's length."""

    def __init__(self, file: Readable, *, hashed: bool = True, progress: Callable[[int], None] | None = None) -> None:
        self.taken = 0
        self._file = file
        self._hash = hashlib.sha256() if hashed else None
        self._progress = progress

    def read(self) -> bytes:
        piece = self._file.read(PIECE)
        self.taken += len(piece)
        if self._hash is not None:
            self._hash.update(piece)
        if self._progress is not None:
            self._progress(len(piece))
        return piece

    def digest(self) -> str:
        assert self._hash is not None
        return f"sha256:{self._hash.hexdigest()}"


class _Inflater(Protocol):
    """What zlib, lzma and zstandard streams share after adapting: feed, see the end, hand back what follows."""

    def feed(self, data: bytes) -> bytes: ...
    @property
    def ended(self) -> bool: ...
    @property
    def hungry(self) -> bool: ...
    @property
    def left(self) -> bytes: ...


class _Gzip:
    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(31)

    def feed(self, data: bytes) -> bytes:
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, PIECE * 4)

    @property
    def ended(self) -> bool:
        return self._inflate.eof

    @property
    def hungry(self) -> bool:
        return not self._inflate.unconsumed_tail

    @property
    def left(self) -> bytes:
        return self._inflate.unused_data


class _Xz:
    def __init__(self) -> None:
        self._inflate = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_LARGEST_WINDOW)

    def feed(self, data: bytes) -> bytes:
        return self._inflate.decompress(data, PIECE * 4)

    @property
    def ended(self) -> bool:
        return self._inflate.eof

    @property
    def hungry(self) -> bool:
        return self._inflate.needs_input

    @property
    def left(self) -> bytes:
        return self._inflate.unused_data


def decompress(intake: Intake, bounds: Bounds) -> Iterator[bytes]:
    """The plain bytes of *intake* piece by piece, all members or frames one after another.

    :raise Corrupt: when the stream is damaged, cut short, or grows beyond *bounds*.
    """
    head = intake.read()
    compression = sniff(head)
    out = 0
    try:
        for piece in _pieces(compression, head, intake):
            out += len(piece)
            if out > bounds.size:
                raise Corrupt(
                    f"the layer is more than {bounds.size >> 30} GiB unpacked",
                    hint="that is beyond what an image may be",
                )
            if out > bounds.ratio_from and out > bounds.ratio * max(intake.taken, 1):
                raise Corrupt(
                    f"the layer grows more than {bounds.ratio} times as it is unpacked",
                    hint="this is a decompression bomb, not an image",
                )
            yield piece
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError) as error:
        raise Corrupt(
            f"the {compression} stream of the layer is damaged: {error}", hint="fetch or export it again"
        ) from error


def _pieces(compression: Compression, head: bytes, intake: Intake) -> Iterator[bytes]:
    if compression is Compression.GZIP:
        return _members(_Gzip, head, intake)
    if compression is Compression.XZ:
        return _members(_Xz, head, intake)
    if compression is Compression.ZSTD:
        return _frames(head, intake)
    return _plain(head, intake)


def _plain(head: bytes, intake: Intake) -> Iterator[bytes]:
    while head:
        yield head
        head = intake.read()


def _members(make: Callable[[], _Inflater], data: bytes, intake: Intake) -> Iterator[bytes]:
    """gzip members or xz streams; zero padding after one is allowed, as the tools allow it."""
    while data:
        inflater = make()
        while True:
            plain = inflater.feed(data)
            data = b""
            if plain:
                yield plain
            if inflater.ended:
                break
            if inflater.hungry:
                data = intake.read()
                if not data:
                    raise EOFError("it ends too early")
        data = inflater.left
        while not data.strip(b"\0"):
            data = intake.read()
            if not data:
                return
        data = data.lstrip(b"\0")


def _frames(data: bytes, intake: Intake) -> Iterator[bytes]:
    """zstd frames. Fed in slices: one block of four bytes may stand for 128 KiB, so a slice bounds what comes out at once."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
    while data:
        frame = decompressor.decompressobj()
        while not frame.eof:
            for start in range(0, len(data), _SLICE):
                plain = frame.decompress(data[start : start + _SLICE])
                if plain:
                    yield plain
                if frame.eof:
                    data = frame.unused_data + data[start + _SLICE :]
                    break
            else:
                data = intake.read()
                if not data:
                    raise EOFError("it ends too early")
        data = data or intake.read()


class Tape:
    """Plain bytes read in order. ``position`` counts what was read, ``length`` what came: all, once it is finished."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.position = 0
        self.length = 0
        self._pieces = pieces
        self._hash = hashlib.sha256()
        self._piece = memoryview(b"")

    def _more(self) -> bool:
        for piece in self._pieces:
            self._hash.update(piece)
            self.length += len(piece)
            self._piece = memoryview(piece)
            return True
        return False

    def read(self, size: int) -> bytes:
        """*size* bytes, fewer only where the tape ends."""
        if len(self._piece) >= size:
            data = bytes(self._piece[:size])
            self._piece = self._piece[size:]
        else:
            parts = bytearray()
            self.copy(size, parts.extend, short=True)
            return bytes(parts)
        self.position += size
        return data

    def copy(self, size: int, write: Callable[[memoryview], object], *, short: bool = False) -> None:
        """Hand the next *size* bytes to *write*.

        :raise Corrupt: when the tape ends first, unless *short*.
        """
        while size:
            if not self._piece and not self._more():
                if short:
                    return
                raise Corrupt(
                    "the archive ends in the middle of a file", hint="it is cut short: fetch or export it again"
                )
            piece = self._piece[:size]
            write(piece)
            self._piece = self._piece[len(piece) :]
            self.position += len(piece)
            size -= len(piece)

    def skip(self, size: int) -> None:
        self.copy(size, len)

    def finish(self) -> str:
        """Read what is left and give the digest of everything."""
        while self._more():
            pass
        self._piece = memoryview(b"")
        return f"sha256:{self._hash.hexdigest()}"
