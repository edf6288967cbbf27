"""What is common to the headers of all disk formats: what is read of them, and the bounds that all must keep."""

import msgspec

from lamella.host.images.formats.window import Window
from lamella.model.errors import Corrupt, Unsupported

SECTOR = 512
LARGEST_DISK = 8 << 40


class DiskHeader(msgspec.Struct, kw_only=True, frozen=True):
    """``driver`` is QEMU's name of the format, ``options`` what that driver has to be told, ``size`` bytes as the guest sees them."""

    driver: str
    size: int
    options: dict[str, str] = {}


def checked_size(file: Window, size: int) -> int:
    """*size*, when a disk may be so big.

    :raise Corrupt: when it is none, or not whole sectors.
    :raise Unsupported: when it is more than this host keeps.
    """
    if size <= 0 or size % SECTOR:
        raise file.damaged(f"it says that the disk has {size} bytes")
    if size > LARGEST_DISK:
        raise Unsupported(
            f"{file.name} holds a disk of {size} bytes", hint=f"at most {LARGEST_DISK >> 40} TiB can be kept: shrink it"
        )
    return size


def stands_alone(file: Window, what: str) -> Corrupt:
    """The error for a disk that is not whole by itself."""
    return Corrupt(
        f"{file.name} {what}, and what it names is not read",
        hint="make one file of it where it was made: qemu-img convert -O qcow2 DISK NEW",
    )


def encrypted(file: Window) -> Unsupported:
    return Unsupported(f"{file.name} is encrypted", hint="decrypt it where its key is: qemu-img convert")
