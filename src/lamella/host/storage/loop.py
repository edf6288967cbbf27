"""Loop devices: the disk that the host's kernel sees in a file of the storage process (loop(4), include/uapi/linux/loop.h).

Each is made with ``LO_FLAGS_AUTOCLEAR`` and direct I/O: it goes when the last one lets go of it, a mount or a crashed daemon alike, and
what it is given is in no page cache of its own. Calls block: use a thread.
"""

import errno
import fcntl
import os
import struct
import time
from pathlib import Path

from lamella.model.errors import Unavailable

_CONTROL = Path("/dev/loop-control")
_GET_FREE, _CONFIGURE, _GET_STATUS64, _SET_CAPACITY = 0x4C82, 0x4C0A, 0x4C05, 0x4C07
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
# struct loop_info64, and around it struct loop_config.
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_CONFIG = struct.Struct(f"=2I{_INFO.size}s8Q")
# What a guest made may have blocks of 1 KiB.
_BLOCK = 512
_TRIES = 50


def attach(file: Path, *, read_only: bool = False) -> tuple[Path, int]:
    """A loop device over *file*, and the descriptor that keeps it until something else (a mount) does; the caller closes that.

    :raise Unavailable: when this host has none to give.
    """
    flags = _AUTOCLEAR | _DIRECT_IO | (_READ_ONLY if read_only else 0)
    mode = os.O_RDONLY if read_only else os.O_RDWR
    backing = os.open(file, mode | os.O_DIRECT | os.O_CLOEXEC)
    try:
        info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, os.fsencode(file)[-63:], b"", b"", 0, 0)
        config = _CONFIG.pack(backing, _BLOCK, info, *[0] * 8)
        for _ in range(_TRIES):
            device, descriptor = _free(mode)
            try:
                fcntl.ioctl(descriptor, _CONFIGURE, config)
                return device, descriptor
            except OSError as error:
                os.close(descriptor)
                # Somebody else was faster.
                if error.errno != errno.EBUSY:
                    raise Unavailable(
                        f"a loop device cannot be made: {error.strerror}", hint="see the kernel's log"
                    ) from error
                time.sleep(0.005)
    finally:
        os.close(backing)
    raise Unavailable("no loop device is free", hint="boot with a larger max_loop, or free some (losetup -l)")


def _free(mode: int) -> tuple[Path, int]:
    try:
        control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            number = fcntl.ioctl(control, _GET_FREE)
        finally:
            os.close(control)
        device = Path(f"/dev/loop{number}")
        return device, os.open(device, mode | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(
            f"this host has no loop device: {error.strerror}", hint="load the kernel module loop"
        ) from error


def backing_of(device: Path) -> tuple[int, int] | None:
    """(device, inode) of the file below the loop device, as stat(2) tells them; ``None`` when it is cleared."""
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = _INFO.unpack(fcntl.ioctl(descriptor, _GET_STATUS64, bytes(_INFO.size)))
        finally:
            os.close(descriptor)
    except OSError:
        return None
    return _new_style(fields[0]), fields[1]


def _new_style(number: int) -> int:
    """The kernel tells a device by its own encoding (huge_encode_dev, which is new_encode_dev): minor's high bits above major."""
    major, minor = (number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00)
    return os.makedev(major, minor)


def refresh(device: Path) -> None:
    """Its file has grown: so does it."""
    descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _SET_CAPACITY)
    finally:
        os.close(descriptor)


def wait_cleared(device: Path, below: tuple[int, int], deadline: float) -> bool:
    """Whether the device lets go of the file that :func:`backing_of` told within *deadline* seconds."""
    until = time.monotonic() + deadline
    while backing_of(device) == below:
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True
