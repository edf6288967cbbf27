"""A layer on its way from the bytes of a file to a directory in scratch. Blocking, made for threads."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

from lamella.host.images.archive import Section
from lamella.host.images.tape import Bounds, Intake, Tape, decompress
from lamella.host.images.unpack import Cancelled, Unpacked, unpack
from lamella.model.errors import Corrupt


def unpack_layer(
    section: Section,
    scratch: Path,
    bounds: Bounds,
    stop: threading.Event,
    progress: Callable[[int], None],
    *,
    diff_id: str = "",
    digest: str = "",
    entire: bool = False,
) -> Unpacked:
    """Unpack the tar in *section* to ``root`` in *scratch*; *entire* says that it is a root filesystem of its own.

    :raise Corrupt: when it is not what *digest* (of the bytes as they came) or *diff_id* (of the tar) names.
    """
    root, trash = scratch / "root", scratch / "trash"
    root.mkdir(0o755)
    trash.mkdir()
    with section as file:
        intake = Intake(file, hashed=bool(digest), progress=progress)
        done = unpack(Tape(decompress(intake, bounds)), root, trash, bounds=bounds, whole=entire, stop=stop)
    if digest and intake.digest() != digest:
        raise Corrupt(f"the layer {digest} is not what its digest names", hint="the image is damaged or lies")
    if diff_id and done.diff_id != diff_id:
        raise Corrupt(f"a layer unpacks to {done.diff_id}, not to {diff_id}", hint="the image is damaged or lies")
    return done


def decompress_section(
    section: Section, target: Path, bounds: Bounds, progress: Callable[[int], None], stop: threading.Event
) -> None:
    """Write what *section* holds, plain, to *target*; runs of zeros become holes.

    :raise Corrupt: when it is damaged, or grows beyond *bounds*.
    :raise OSError: ``ENOSPC`` when the disk would have less left than *bounds* keep free.
    """
    with section as file, target.open("xb") as out:
        for piece in decompress(Intake(file, hashed=False, progress=progress), bounds):
            if piece.count(0) == len(piece):
                out.seek(len(piece), os.SEEK_CUR)
            else:
                out.write(piece)
            check_room(out.fileno(), bounds)
            if stop.is_set():
                raise Cancelled
        out.truncate()


def check_room(descriptor: int, bounds: Bounds) -> None:
    """:raise OSError: ``ENOSPC`` when the disk under *descriptor* has less left than *bounds* keep free."""
    room = os.fstatvfs(descriptor)
    if room.f_bavail * room.f_frsize < bounds.reserve:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
