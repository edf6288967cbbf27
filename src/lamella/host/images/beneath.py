"""Paths resolved inside a directory and never outside it: ``openat2`` (openat2(2), Linux 5.6), and ``syncfs``.

The standard library has neither. Links and ``..`` in a path are followed as though the directory were ``/``.
"""

import ctypes
import os

_OPENAT2 = 437  # the same number on every architecture (include/uapi/asm-generic/unistd.h)
_NO_MAGICLINKS = 0x02
_NO_SYMLINKS = 0x04
_IN_ROOT = 0x10

_libc = ctypes.CDLL(None, use_errno=True)


class _How(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


_libc.syscall.restype = ctypes.c_long


def open_beneath(root: int, path: bytes, flags: int = os.O_RDONLY, *, links: bool = True) -> int:
    """A descriptor for *path* as seen from the directory *root*; without *links* any symbolic link on the way is an error.

    :raise OSError: as open(2); ``ELOOP`` where a link may not be followed.
    """
    how = _How(flags | os.O_CLOEXEC, 0, _IN_ROOT | _NO_MAGICLINKS | (0 if links else _NO_SYMLINKS))
    while True:
        fd = _libc.syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_int(root),
            ctypes.c_char_p(path or b"."),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if fd >= 0:
            return int(fd)
        error = ctypes.get_errno()
        if error not in (
            4,
            11,
        ):  # EINTR; EAGAIN: a rename elsewhere raced with "..", which openat2(2) says to try again
            raise OSError(error, os.strerror(error), os.fsdecode(path))


def sync_filesystem(fd: int) -> None:
    """Make everything on the filesystem of *fd* durable: one call for a tree of ten thousand files (syncfs(2)).

    :raise OSError: when what was written could not be.
    """
    if _libc.syncfs(ctypes.c_int(fd)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
