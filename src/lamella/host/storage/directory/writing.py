"""Whether a QEMU, of this daemon or of another, has a volume's files open for writing: it holds a lock that says so."""

import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

# block/file-posix.c: one byte for each permission in use, from this one on; the second is BLK_PERM_WRITE.
_WRITES = 100 + 1
_FLOCK = "hhqqi"


def written(place: Path) -> bool:
    """Whether somebody writes to a file that lies directly in *place*."""
    with suppress(OSError):
        return any(_locked(path) for path in place.iterdir() if path.is_file() and not path.is_symlink())
    return False


def _locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, _WRITES, 1, 0)
        return struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK
    finally:
        os.close(descriptor)
