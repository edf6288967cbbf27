"""What is written to a file here: whole, or not at all."""

import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from lamella.cli.progress import Progress

_BLOCK = 64 << 10


def check(path: "str | None", what: str, example: str) -> None:
    """That *what*, which is binary, has somewhere to go before it is asked for.

    :raise Invalid: when it would go to a terminal, or *path* is a directory.
    """
    from lamella.model.errors import Invalid

    if path in (None, "-"):
        if sys.stdout.isatty():
            raise Invalid(f"{what} is nothing for a terminal", hint=f"write it to a file: {example}", field="output")
    elif os.path.isdir(path or ""):  # noqa: PTH112
        raise Invalid(f"{path} is a directory", hint=f"name a file: {example}", field="output")


def save(
    pieces: "Iterable[bytes]", path: "str | None", progress: "Progress | None" = None, *, mode: int = 0o666
) -> int:
    """Write *pieces* to *path* (``None`` and ``-`` are standard output); how many bytes they were.

    A file is written beside its name, and gets it when it is whole; blocks of zeros stay holes. *mode* is less the umask.

    :raise OSError: when it cannot be written.
    """
    if path in (None, "-"):
        return _pour(pieces, 1, progress)
    where = path or ""
    if os.path.exists(where) and not stat.S_ISREG(os.stat(where).st_mode):  # noqa: PTH110, PTH116
        # A device or a pipe keeps its place.
        descriptor = os.open(where, os.O_WRONLY | os.O_CLOEXEC)
        try:
            return _pour(pieces, descriptor, progress)
        finally:
            os.close(descriptor)
    # A link stays one: what it leads to is replaced.
    where = os.path.realpath(where)
    partial = f"{where}.{os.getpid()}-{os.urandom(4).hex()}.part"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            size = _pour(pieces, descriptor, progress, sparse=True)
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, where)  # noqa: PTH105
    except BaseException:
        os.unlink(partial)  # noqa: PTH108
        raise
    return size


def _pour(pieces: "Iterable[bytes]", descriptor: int, progress: "Progress | None", *, sparse: bool = False) -> int:
    size = 0
    for piece in pieces:
        for start in range(0, len(piece), _BLOCK):
            block = memoryview(piece)[start : start + _BLOCK]
            size += len(block)
            if sparse and len(block) == _BLOCK and not block.tobytes().strip(b"\0"):
                os.lseek(descriptor, _BLOCK, os.SEEK_CUR)
                continue
            while block:
                block = block[os.write(descriptor, block) :]
        if progress is not None:
            progress.update("", size, unit="bytes")
    return size
