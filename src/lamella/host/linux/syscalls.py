"""System calls that Python does not have, as functions that raise ``OSError``. Each releases the interpreter's lock."""

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)

# Numbers from 424 on are the same on every architecture (arch/*/entry/syscalls of the kernel).
_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _PIDFD_GETFD, _MOUNT_SETATTR = 428, 429, 437, 438, 442
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWCGROUP = 0x10000000, 0x20000000, 0x40000000, 0x02000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE, MS_SLAVE = 1 << 14, 1 << 18, 1 << 19
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8

OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
MOVE_MOUNT_F_EMPTY_PATH = 4
_STATX_FORCE_SYNC, _STATX_SIZE = 0x2000, 0x200
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NODEV, MOUNT_ATTR_IDMAP = 1, 4, 0x00100000

RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x02, 0x10


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    """mount(2)."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            None if kind is None else kind.encode(),
            ctypes.c_ulong(flags),
            None if data is None else os.fsencode(data),
        ),
        target,
    )


def umount(target: str, flags: int = MNT_DETACH | UMOUNT_NOFOLLOW) -> None:
    """umount2(2), by default lazily."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def syncfs(fd: int) -> None:
    """syncfs(2): what was written to the filesystem of *fd* is on its disk."""
    _check(_libc.syncfs(fd), "syncfs")


def size_now(path: str) -> int:
    """The size of a file as its filesystem says, whatever the kernel remembers of it (statx(2), AT_STATX_FORCE_SYNC)."""
    found = ctypes.create_string_buffer(256)
    _check(_libc.statx(AT_FDCWD, os.fsencode(path), _STATX_FORCE_SYNC, _STATX_SIZE, found), path)
    return int(struct.unpack_from("=Q", found, 40)[0])


def setns(fd: int, kind: int) -> None:
    """setns(2): the calling thread joins a namespace; for mounts, only a process of one thread may."""
    _check(_libc.setns(fd, kind), "setns")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def descriptor_of(pidfd: int, number: int) -> int:
    """A descriptor of ours for what another process has open as *number* (pidfd_getfd(2), kernel 5.6)."""
    return _check(_libc.syscall(_PIDFD_GETFD, pidfd, number, ctypes.c_uint(0)), "pidfd_getfd")


def clone_mount(path: str) -> int:
    """A detached copy of the mount at *path*: its descriptor, which the caller closes."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
    return _check(_libc.syscall(_OPEN_TREE, AT_FDCWD, os.fsencode(path), ctypes.c_uint(flags)), path)


def detached_mount(kind: str) -> int:
    """A mount of the filesystem *kind* that is at no path: its descriptor, which the caller closes (fsopen(2), fsmount(2))."""
    context = _check(_libc.syscall(_FSOPEN, kind.encode(), ctypes.c_uint(1)), kind)
    try:
        _check(_libc.syscall(_FSCONFIG, context, ctypes.c_uint(6), None, None, 0), kind)
        return _check(_libc.syscall(_FSMOUNT, context, ctypes.c_uint(1), ctypes.c_uint(0)), kind)
    finally:
        os.close(context)


def map_mount_ids(mount_fd: int, userns_fd: int, *, read_only: bool = True, more: int = 0) -> None:
    """Let a detached mount show its owners as *userns_fd* maps them (mount_setattr(2), kernel 5.12), read-only, with attributes *more*."""
    wanted = MOUNT_ATTR_IDMAP | (MOUNT_ATTR_RDONLY if read_only else 0) | more
    attributes = struct.pack("=QQQQ", wanted, 0, 0, userns_fd)
    _check(_libc.syscall(_MOUNT_SETATTR, mount_fd, b"", AT_EMPTY_PATH, attributes, len(attributes)), "mount_setattr")


def attach_mount(mount_fd: int, target: str) -> None:
    """Put a detached mount at *target* (move_mount(2))."""
    _check(
        _libc.syscall(_MOVE_MOUNT, mount_fd, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH),
        target,
    )


def open_in_root(root_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """Open *path* as if *root_fd* were ``/``: links and ``..`` never lead out (openat2(2), kernel 5.6)."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    return _check(_libc.syscall(_OPENAT2, root_fd, os.fsencode(path), how, len(how)), path)
