"""Files that share blocks until one of them is written (FICLONE, ioctl_ficlonerange(2))."""

import errno
import fcntl
import os
from pathlib import Path

_FICLONE = 0x40049409
_CANNOT = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS)


def clone(source: Path, target: Path) -> bool:
    """Make *target*, a new file of mode 0600, what *source* is at this instant, durably; ``False`` when they cannot share blocks.

    The filesystem writes out what is buffered and keeps writers of *source* out meanwhile, so that *target* is what one who lost
    power at this instant would find.

    :raise OSError: when it fails for another reason, a full filesystem among them; no *target* is left.
    """
    origin = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        made = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _checked_alike(origin, made)
            fcntl.ioctl(made, _FICLONE, origin)
            os.fsync(made)
        except OSError as error:
            target.unlink()
            if error.errno in _CANNOT:
                return False
            raise
        finally:
            os.close(made)
    finally:
        os.close(origin)
    return True


def _checked_alike(origin: int, made: int) -> None:
    """btrfs shares blocks only between files that both have the attribute C, or both not (btrfs(5))."""
    try:
        wanted, found = attributes(origin) & NOCOW, attributes(made)
        if wanted != found & NOCOW:
            set_attributes(made, found ^ NOCOW)
    except OSError as error:
        if error.errno not in (*_CANNOT, errno.EPERM):
            raise


# ioctl_iflags(2): no copy on write, and on btrfs no checksums.
NOCOW = 0x00800000
_GET, _SET = 0x80086601, 0x40086602


def attributes(descriptor: int) -> int:
    return int.from_bytes(fcntl.ioctl(descriptor, _GET, bytes(8))[:4], "little")


def set_attributes(descriptor: int, flags: int) -> None:
    fcntl.ioctl(descriptor, _SET, flags.to_bytes(8, "little"))


def possible(directory: Path) -> bool:
    """Whether files of *directory* can share blocks, found out by doing it.

    :raise OSError: when nothing can be written there.
    """
    one, two = directory / "reflink.probe", directory / "reflink.probe2"
    try:
        one.write_bytes(bytes(4096))
        return clone(one, two)
    finally:
        one.unlink(missing_ok=True)
        two.unlink(missing_ok=True)
