"""A machine's memory as a file without a name: written by one QEMU, then sealed, then the beginning of many (memfd_create(2), fcntl(2)).

QEMU opens memory by path alone, so its room shows it its own descriptors as files. A copy maps the sealed file privately: what it writes
becomes pages of its own. A sealed file refuses every write, from whoever has it open.
"""

import ctypes
import fcntl
import os
from collections.abc import Generator, Iterable
from enum import StrEnum
from pathlib import Path

# Descriptors of QEMU's: its memory, and the state of its devices.
MEMORY, STATE = 10, 11
# Where the room shows QEMU its descriptors.
DESCRIPTORS = Path("/fd")
# What is loaded before QEMU, and where it lies in the room (native/preload/sealed.c).
PRELOAD = Path("/lamella-sealed.so")
# What QEMU calls the memory of its boards: a machine that booted without such a file and one that begins with it speak of the same.
NAMES = {"microvm": "microvm.ram", "q35": "pc.ram"}

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_PIECE = 4 << 20
_PAGE = 4096
_ZEROS = bytes(_PAGE)
_PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


class Use(StrEnum):
    """What becomes of the file's pages: a machine writes them, or it has pages of its own for what it writes (copy on write)."""

    WRITTEN = "written"
    COPIED = "copied"


def backend(board: str, memory: int, use: Use) -> list[str]:
    """The object that is *memory* bytes of the file."""
    kind = f"memory-backend-file,id={NAMES[board]},size={memory},mem-path={DESCRIPTORS}/{MEMORY}"
    return [
        "-object",
        f"{kind},share={'on' if use is Use.WRITTEN else 'off'},merge=off,x-use-canonical-path-for-ramblock-id=off",
    ]


def make(name: str, size: int) -> int:
    """A new file of *size* bytes that reads as zeros: its descriptor, which the caller closes."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        # Who opens it is another user than we are, and it has no name that somebody else could open.
        os.fchmod(fd, 0o666)
    except BaseException:
        os.close(fd)
        raise
    return fd


def seal(fd: int) -> None:
    """Nobody can write it from now on.

    :raise OSError: when somebody still has it mapped for writing.
    """
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)


def is_sealed(fd: int) -> bool:
    return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS


def again(fd: int) -> int:
    """Another descriptor for the same file, which reads from its beginning and by itself."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def punch_zeros(fd: int) -> None:
    """Give back the pages that hold nothing but zeros: a machine that was sent has them all. Blocks.

    :raise OSError: when it is sealed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for at, piece in pieces(fd, extents(fd)):
        empty = [start for start in range(0, len(piece), _PAGE) if piece[start : start + _PAGE] == _ZEROS]
        for start, size in _runs(empty):
            if libc.fallocate(fd, _PUNCH_HOLE, ctypes.c_long(at + start), ctypes.c_long(size)):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))


def _runs(starts: list[int]) -> Generator[tuple[int, int]]:
    """Pages that follow each other, as one piece."""
    begin = end = -1
    for start in starts:
        if start != end:
            if end > begin:
                yield begin, end - begin
            begin = start
        end = start + _PAGE
    if end > begin:
        yield begin, end - begin


def extents(fd: int) -> Generator[tuple[int, int]]:
    """Where there is data: offsets and sizes in bytes. The rest reads as zeros."""
    end, at = os.fstat(fd).st_size, 0
    while at < end:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at - start


def pieces(fd: int, extents: Iterable[tuple[int, int]]) -> Generator[tuple[int, bytes]]:
    """What the file has at *extents*, in pieces of a few MiB with their offsets."""
    for start, size in extents:
        for at in range(start, start + size, _PIECE):
            yield at, os.pread(fd, min(_PIECE, start + size - at), at)
