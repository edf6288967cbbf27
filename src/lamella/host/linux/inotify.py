"""What happens to the names in one directory, as events of the event loop (inotify(7))."""

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

CLOSE_WRITE, MOVED_TO, CREATE, DELETE, MODIFY = 0x8, 0x80, 0x100, 0x200, 0x2
_NONBLOCK, _CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_HEADER = struct.Struct("iIII")
_OVERFLOW = 0x4000


class Watch:
    """Calls *seen* with each name that an event of *mask* names, and with "" when the kernel lost count or the path itself changed.

    :raise OSError: when *path* cannot be watched.
    """

    def __init__(self, path: Path, mask: int, seen: Callable[[str], None]) -> None:
        self._fd = _libc.inotify_init1(_NONBLOCK | _CLOEXEC)
        if self._fd < 0 or _libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask)) < 0:
            number = ctypes.get_errno()
            if self._fd >= 0:
                os.close(self._fd)
            raise OSError(number, os.strerror(number), str(path))
        self._seen = seen
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        position = 0
        while position < len(data):
            _, mask, _, length = _HEADER.unpack_from(data, position)
            position += _HEADER.size
            name = data[position : position + length].rstrip(b"\0")
            position += length
            self._seen("" if mask & _OVERFLOW else os.fsdecode(name))

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
