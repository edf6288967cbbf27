"""Bytes of a file that a stranger made, read at offsets that the file itself names: bounded, and never beyond its end."""

import os
from collections.abc import Callable

from lamella.model.errors import Corrupt

_LARGEST = 64 << 20


class Window:
    """A stretch of a file: *size* bytes that ``read(offset, length)`` gives pieces of. *name* is for errors."""

    def __init__(self, read: Callable[[int, int], bytes], size: int, name: str) -> None:
        self.size = size
        self.name = name
        self._read = read

    @classmethod
    def of_file(cls, descriptor: int, name: str, offset: int = 0, size: int | None = None) -> "Window":
        """The *size* bytes from *offset* of an open file; all that follow when it is not given."""
        length = os.fstat(descriptor).st_size - offset if size is None else size
        return cls(lambda at, count: os.pread(descriptor, count, offset + at), length, name)

    @classmethod
    def of_bytes(cls, data: bytes, name: str = "it") -> "Window":
        return cls(lambda at, count: data[at : at + count], len(data), name)

    def at(self, offset: int, length: int) -> bytes:
        """Exactly *length* bytes from *offset*.

        :raise Corrupt: when they are not all there, or more than any header has.
        """
        if offset < 0 or length < 0 or length > _LARGEST or offset + length > self.size:
            raise self.torn()
        data = self._read(offset, length)
        if len(data) != length:
            raise self.torn()
        return data

    def some(self, offset: int, length: int) -> bytes:
        """Up to *length* bytes from *offset*: fewer, or none, where it ends."""
        if offset < 0 or offset >= self.size:
            return b""
        return self._read(offset, min(length, _LARGEST, self.size - offset))

    def number(self, offset: int, length: int, *, big: bool = False) -> int:
        """The unsigned number of *length* bytes at *offset*, little-endian unless *big*."""
        return int.from_bytes(self.at(offset, length), "big" if big else "little")

    def torn(self) -> Corrupt:
        return Corrupt(
            f"{self.name} ends before what its headers tell of",
            hint="it is cut short or damaged: copy or export it again",
        )

    def damaged(self, what: str) -> Corrupt:
        return Corrupt(f"{self.name} is damaged: {what}", hint="copy or export it again")
