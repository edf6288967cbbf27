"""A layer's tar made into a directory that overlayfs takes as it is (OCI image-spec, layer.md; the kernel's overlayfs.rst).

Everything is done relative to descriptors of directories inside the layer's own root, found by ``openat2``: a link in the
archive leads nowhere else. The directory bears ids, modes, times, ``user.`` attributes and file capabilities; whiteouts become
what overlayfs reads. Blocking, made for a thread.
"""

import errno
import os
import stat
import threading
from collections import OrderedDict
from pathlib import Path

import msgspec

from lamella.host.images import header
from lamella.host.images.beneath import open_beneath, sync_filesystem
from lamella.host.images.header import Entry, shown
from lamella.host.images.tape import Bounds, Tape
from lamella.model.errors import Corrupt, LamellaError, NoRoom, Unavailable, Unsupported

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
_OPAQUE_ATTRIBUTE = "trusted.overlay.opaque"
_KEPT_DESCRIPTORS = 64
_CHECK_EVERY = 64 << 20
_PAGE = 4096
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_ITS_FAULT = frozenset(
    {
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EINVAL,
        errno.EEXIST,
        errno.EMLINK,
        errno.EPERM,
        errno.ENOENT,
    }
)


class Cancelled(Exception):
    """Whoever asked for the work does not want it any more."""


class Unpacked(msgspec.Struct, kw_only=True):
    """``size`` is bytes on disk, in whole pages; ``diff_id`` is the digest of the tar and ``length`` its bytes."""

    diff_id: str
    length: int
    size: int
    entries: int


def unpack(tape: Tape, root: Path, trash: Path, *, bounds: Bounds, whole: bool, stop: threading.Event) -> Unpacked:
    """Fill the empty directory *root* from *tape* and make it durable. What a later entry replaces goes to *trash*.

    *whole* says that this is a root filesystem from a tool that packs what it finds (mmdebstrap, tar): it must have its end mark, and
    devices under ``/dev`` are passed over, since an instance is given its own. In a layer a device is refused.

    :raise Corrupt: when the archive lies, is damaged or is beyond *bounds*. *root* then holds a part and is for the caller to remove.
    :raise NoRoom: when the disk is full.
    :raise Cancelled: when *stop* was set.
    """
    extraction = _Extraction(tape, root, trash, bounds, whole, stop)
    path = b""
    try:
        for entry in header.entries(tape, ended=whole):
            path = entry.path
            extraction.add(entry)
        digest = tape.finish()
        extraction.finish()
    except OSError as error:
        raise _explained(error, path, root) from error
    finally:
        extraction.close()
    return Unpacked(diff_id=digest, length=tape.length, size=extraction.size, entries=extraction.count)


def _explained(error: OSError, path: bytes, root: Path) -> LamellaError:
    if error.errno in _NO_ROOM:
        return NoRoom(
            f"no room to unpack {shown(path)} under {root.parent}",
            hint="free some space, or collect images that nobody uses",
        )
    if error.errno in _ITS_FAULT:
        return Corrupt(f"{shown(path)} cannot be unpacked: {error.strerror}", hint="the image contradicts itself")
    if error.errno == errno.ENOSYS:
        return Unsupported("this kernel has no openat2", hint="Linux 5.6 or newer is needed")
    return Unavailable(
        f"{shown(path)} cannot be unpacked under {root.parent}: {error.strerror}", hint="look at the disk below it"
    )


class _Extraction:
    def __init__(self, tape: Tape, root: Path, trash: Path, bounds: Bounds, whole: bool, stop: threading.Event) -> None:
        self.size = 0
        self.count = 0
        self._tape = tape
        self._trash = trash
        self._bounds = bounds
        self._whole = whole
        self._stop = stop
        self._root = os.open(root, _DIRECTORY | os.O_CLOEXEC)
        self._open: OrderedDict[bytes, int] = OrderedDict()
        self._times: dict[bytes, int] = {}
        self._since_check = 0
        self._trashed = 0

    def close(self) -> None:
        self._forget()
        os.close(self._root)

    def finish(self) -> None:
        """Times of directories last, since whatever was put into one changed its time."""
        for path, mtime in reversed(self._times.items()):
            try:
                fd = open_beneath(self._root, path, _DIRECTORY, links=False)
            except OSError:
                continue  # replaced by a later entry
            os.utime(fd, ns=(mtime, mtime))
            os.close(fd)
        sync_filesystem(self._root)

    def add(self, entry: Entry) -> None:
        self.count += 1
        if self.count > self._bounds.entries:
            raise Corrupt(
                f"the layer has more than {self._bounds.entries} files", hint="that is beyond what an image may have"
            )
        self._spend(_PAGE)
        parts = _parts(entry.path)
        if not parts:
            if entry.kind != header.DIRECTORY:
                raise Corrupt("the archive's root is not a directory", hint="the image contradicts itself")
            self._furnish(self._root, entry)
            self._times[b""] = entry.mtime
            return
        name = parts.pop()
        if any(part.startswith(_WHITEOUT) for part in parts):
            if parts[0].startswith(_AUFS):
                return  # what aufs kept for itself
            raise Corrupt(f"{shown(entry.path)} lies inside a whiteout", hint="the image contradicts itself")
        if self._whole and parts and parts[0] == b"dev" and entry.kind in (header.CHARACTER, header.BLOCK_DEVICE):
            return
        folder = b"/".join(parts)
        parent = self._parent(folder)
        if name.startswith(_WHITEOUT):
            self._white_out(parent, name, entry)
        elif entry.kind == header.DIRECTORY:
            self._directory(parent, folder, name, entry)
        else:
            self._leaf(parent, name, entry)

    def _leaf(self, parent: int, name: bytes, entry: Entry) -> None:
        for _ in range(2):
            try:
                if entry.kind == header.FILE:
                    return self._file(parent, name, entry)
                if entry.kind == header.SYMLINK:
                    return self._symlink(parent, name, entry)
                if entry.kind == header.HARDLINK:
                    return self._hardlink(parent, name, entry)
                if entry.kind == header.FIFO:
                    return self._fifo(parent, name, entry)
            except FileExistsError:
                if not self._discard(parent, name, entry):
                    return None
                continue
            break
        raise Corrupt(
            f"{shown(entry.path)} is a device node",
            hint="an instance's devices come from its host, never from an image",
        )

    def _file(self, parent: int, name: bytes, entry: Entry) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
        try:
            self._tape.copy(entry.size, lambda piece: self._write(fd, piece))
            self._furnish(fd, entry)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def _write(self, fd: int, piece: memoryview) -> None:
        self._spend(len(piece))
        while piece:
            piece = piece[os.write(fd, piece) :]

    def _symlink(self, parent: int, name: bytes, entry: Entry) -> None:
        if not entry.link:
            raise Corrupt(f"{shown(entry.path)} is a link to nothing", hint="the image contradicts itself")
        os.symlink(entry.link, name, dir_fd=parent)
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _hardlink(self, parent: int, name: bytes, entry: Entry) -> None:
        parts = _parts(entry.link)
        if not parts:
            raise Corrupt(f"{shown(entry.path)} is a link to nothing", hint="the image contradicts itself")
        target = parts.pop()
        try:
            folder = open_beneath(self._root, b"/".join(parts), _DIRECTORY)
            try:
                os.link(target, name, src_dir_fd=folder, dst_dir_fd=parent, follow_symlinks=False)
            finally:
                os.close(folder)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Corrupt(
                f"{shown(entry.path)} is a hard link to {shown(entry.link)}, which the layer does not hold",
                hint="the image contradicts itself",
            ) from error

    def _fifo(self, parent: int, name: bytes, entry: Entry) -> None:
        os.mkfifo(name, 0o600, dir_fd=parent)
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.chmod(name, entry.mode, dir_fd=parent)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _directory(self, parent: int, folder: bytes, name: bytes, entry: Entry) -> None:
        opaque = False
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            there = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(there.st_mode):
                opaque = _is_whiteout(there)
                self._discard(parent, name, entry)
                os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        path = b"/".join((folder, name)) if folder else name
        self._keep(path, fd)
        self._furnish(fd, entry)
        if opaque:
            self._make_opaque(fd)
        self._times[path] = entry.mtime

    def _white_out(self, parent: int, name: bytes, entry: Entry) -> None:
        if name == _OPAQUE:
            return self._make_opaque(parent)
        if name.startswith(_AUFS):
            return None
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise Corrupt(f"{shown(entry.path)} is a whiteout of nothing", hint="the image contradicts itself")
        try:
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
        except (
            FileExistsError
        ):  # the layer brings it anew: what lies below is hidden all the same, a directory's content by this mark
            if stat.S_ISDIR(os.stat(hidden, dir_fd=parent, follow_symlinks=False).st_mode):
                fd = os.open(hidden, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
                try:
                    self._make_opaque(fd)
                finally:
                    os.close(fd)
        return None

    def _make_opaque(self, fd: int) -> None:
        os.setxattr(fd, _OPAQUE_ATTRIBUTE, b"y")

    def _furnish(self, fd: int, entry: Entry) -> None:
        """Owner first: a change of owner takes set-id bits and capabilities away."""
        os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)
        for key, value in entry.xattrs.items():
            if key == b"security.capability" or (key.startswith(b"user.") and not key.startswith(b"user.overlay.")):
                self._attribute(fd, key, value, entry)

    def _attribute(self, fd: int, key: bytes, value: bytes, entry: Entry) -> None:
        try:
            os.setxattr(fd, key, value)
        except OSError as error:
            if error.errno in (errno.ENOTSUP, errno.ENOSPC, errno.E2BIG, errno.ERANGE) and os.fstatvfs(fd).f_bavail:
                raise Unsupported(
                    f"the attribute {shown(key)} of {shown(entry.path)} does not fit this filesystem: {error.strerror}",
                    hint="keep the layer's state on ext4, xfs or btrfs",
                ) from error
            raise

    def _parent(self, folder: bytes) -> int:
        if not folder:
            return self._root
        fd = self._open.get(folder)
        if fd is not None:
            self._open.move_to_end(folder)
            return fd
        try:
            fd = open_beneath(self._root, folder, _DIRECTORY)
        except FileNotFoundError:
            fd = self._made(folder)
        return self._keep(folder, fd)

    def _made(self, folder: bytes) -> int:
        """Parents that the archive does not name are made plain; a link that leads nowhere is not a parent."""
        at = b""
        above = self._root
        for part in folder.split(b"/"):
            at = at + b"/" + part if at else part
            try:
                fd = open_beneath(self._root, at, _DIRECTORY)
            except FileNotFoundError:
                os.mkdir(part, 0o755, dir_fd=above)
                fd = os.open(part, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
                os.fchown(fd, 0, 0)
                os.fchmod(fd, 0o755)
                self._spend(_PAGE)
            finally:
                if above != self._root:
                    os.close(above)
            above = fd
        return above

    def _keep(self, path: bytes, fd: int) -> int:
        former = self._open.pop(path, None)
        if former is not None:
            os.close(former)
        self._open[path] = fd
        if len(self._open) > _KEPT_DESCRIPTORS:
            os.close(self._open.popitem(last=False)[1])
        return fd

    def _forget(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def _discard(self, parent: int, name: bytes, entry: Entry) -> bool:
        """Take away what an earlier entry put at *name*. False when a link to itself would be lost."""
        there = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if entry.kind == header.HARDLINK and _parts(entry.link) == _parts(entry.path):
            return False
        if not stat.S_ISDIR(there.st_mode):
            os.unlink(name, dir_fd=parent)
            if stat.S_ISLNK(there.st_mode):
                self._drop_descriptors(parent)
            return True
        self._trashed += 1
        os.rename(name, os.fsencode(self._trash / str(self._trashed)), src_dir_fd=parent)
        self._drop_descriptors(parent)
        return True

    def _drop_descriptors(self, keep: int) -> None:
        """What a path led to may have changed. The parent in hand stays open: its own path did not."""
        for path, fd in list(self._open.items()):
            if fd != keep:
                os.close(fd)
                del self._open[path]

    def _spend(self, size: int) -> None:
        self.size += size
        self._since_check += size
        if self._stop.is_set():
            raise Cancelled
        if self._since_check > _CHECK_EVERY:
            self._since_check = 0
            room = os.fstatvfs(self._root)
            if room.f_bavail * room.f_frsize < self._bounds.reserve or (room.f_files > 0 and room.f_ffree < 1000):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_whiteout(there: os.stat_result) -> bool:
    return stat.S_ISCHR(there.st_mode) and there.st_rdev == 0


def _parts(path: bytes) -> list[bytes]:
    """The names on the way to *path*, from the root of the image.

    :raise Corrupt: when it climbs, or is longer than Linux takes.
    """
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise Corrupt(
            f"the path {shown(path)} climbs out of the image", hint="an image may only name what is inside it"
        )
    if len(path) >= 4096 or any(len(part) > 255 for part in parts):
        raise Corrupt(f"the path {shown(path)} is longer than Linux takes", hint="no honest image has one")
    return parts
