"""Plain copies into scratch, and files made for others to write. Blocking, made for threads."""

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from lamella.host.images.archive import Section
from lamella.host.images.layers import check_room
from lamella.host.images.tape import Bounds
from lamella.host.images.unpack import Cancelled

_PIECE = 4 << 20
_ZEROS = bytes(_PIECE)


def copy_section(
    section: Section, target: Path, bounds: Bounds, stop: threading.Event, progress: Callable[[int], None]
) -> str:
    """Write *section* to the new file *target*; its digest. Pieces of zeros become holes.

    :raise OSError: ``ENOSPC`` when the disk would have less left than *bounds* keep free.
    """
    done = hashlib.sha256()
    with section as file, target.open("xb") as out:
        while piece := file.read(_PIECE):
            if stop.is_set():
                raise Cancelled
            done.update(piece)
            if piece == _ZEROS[: len(piece)]:
                out.seek(len(piece), os.SEEK_CUR)
            else:
                out.write(piece)
            check_room(out.fileno(), bounds)
            progress(len(piece))
        out.truncate()
    return f"sha256:{done.hexdigest()}"


def new_file(path: Path, size: int, user: int) -> None:
    """A new file of *size* bytes, all hole, that *user* alone may read and write."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size)
        os.fchown(descriptor, user, user)
    finally:
        os.close(descriptor)


def readable_by(path: Path, user: int) -> bool:
    """Whether *user*, who is in no group but the one of the same number, may read the file *path* where it is shown it."""
    status = path.stat()
    if status.st_uid == user:
        return bool(status.st_mode & 0o400)
    return bool(status.st_mode & (0o040 if status.st_gid == user else 0o004))
