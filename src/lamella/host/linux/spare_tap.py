"""A TAP that leads nowhere, for a machine that is made as if it had a network and never runs with one."""

import fcntl
import os
import struct
import threading
from contextlib import suppress

from lamella.host.linux import syscalls
from lamella.model.errors import Unavailable

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_TUNSETIFF = 0x400454CA
_TAP, _NO_PI, _HEADERS = 0x0002, 0x1000, 0x4000


def spare_tap() -> list[int]:
    """Its descriptor, then that of the network namespace in which it alone is; both go when they are closed. Blocks for a moment.

    :raise Unavailable: when this host makes none.
    """
    made: list[int] = []
    failed: list[OSError] = []

    def work() -> None:
        try:
            syscalls.unshare(_NEW_NETWORK)
            made.append(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
            fcntl.ioctl(made[0], _TUNSETIFF, struct.pack("16sH22x", b"spare", _TAP | _NO_PI | _HEADERS))
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            failed.append(error)

    # A thread of its own: it leaves our network for good.
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        for fd in made:
            with suppress(OSError):
                os.close(fd)
        raise Unavailable(f"a TAP cannot be made: {failed[0].strerror}", hint="load the kernel module tun")
    return made
