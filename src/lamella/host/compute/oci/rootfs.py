"""The root of a container: the image's layers, owned by the container's own ids without a copy, under its writable layer.

Each layer is cloned as an id-mapped mount (mount_setattr(2)), overlayfs takes them together, and the clones are let go: overlayfs
keeps its own. Everything here blocks: call it in a thread.
"""

import os
from contextlib import suppress
from pathlib import Path

from lamella.host.linux import mounts, syscalls
from lamella.model.errors import Unsupported

UPPER, WORK = "upper", "work"


def assemble(layers: list[Path], disk: Path, userns: int, id_base: int, *, lowers: Path, target: Path) -> None:
    """Mount *layers* (top first) and the writable layer in *disk* at *target*, owned by *id_base* and its range.

    :raise Unsupported: when the filesystem below cannot be id-mapped, or the kernel refuses the overlay.
    """
    for directory in (target, lowers):
        directory.mkdir(exist_ok=True)
    _writable(disk, id_base, layers)
    clones: list[Path] = []
    handles: list[int] = []
    try:
        for number, layer in enumerate(layers):
            clone = lowers / str(number)
            clone.mkdir(exist_ok=True)
            _clone(layer, clone, userns)
            clones.append(clone)
        # The option string is one page at most and has separators of its own: descriptors keep it short and plain.
        handles = [os.open(place, os.O_RDONLY | os.O_DIRECTORY) for place in (lowers, disk)]
        low, high = (f"/proc/self/fd/{fd}" for fd in handles)
        options = f"lowerdir={':'.join(f'{low}/{number}' for number in range(len(layers)))}"
        options += f",upperdir={high}/{UPPER},workdir={high}/{WORK}"
        try:
            syscalls.mount("overlay", str(target), "overlay", syscalls.MS_NODEV, options)
        except OSError as error:
            raise Unsupported(
                f"the kernel refuses an overlay over {layers[0].parent}: {error.strerror}",
                hint="keep LAMELLA_HOME on ext4, xfs or btrfs, and use a kernel of 5.19 or later",
            ) from error
    finally:
        for fd in handles:
            os.close(fd)
        for clone in clones:
            with suppress(OSError):
                syscalls.umount(str(clone))


def _writable(disk: Path, id_base: int, layers: list[Path]) -> None:
    """The upper directory bears owner and mode of the root as the container sees it."""
    for name in (UPPER, WORK):
        place = disk / name
        if not place.is_dir():
            place.mkdir(mode=0o755)
        if place.stat().st_uid != id_base:
            os.chown(place, id_base, id_base)
            if name == UPPER and layers:
                place.chmod(layers[0].stat().st_mode & 0o7777)


def _clone(layer: Path, target: Path, userns: int) -> None:
    try:
        clone = syscalls.clone_mount(str(layer))
    except OSError as error:
        raise Unsupported(f"the image layer {layer} cannot be mounted: {error.strerror}") from error
    try:
        syscalls.map_mount_ids(clone, userns)
        syscalls.attach_mount(clone, str(target))
    except OSError as error:
        raise Unsupported(
            f"the filesystem of {layer} cannot be mounted with other owners: {error.strerror}",
            hint="keep LAMELLA_HOME on ext4, xfs or btrfs, and use a kernel of 5.19 or later",
        ) from error
    finally:
        os.close(clone)


def dismantle(bundle: Path) -> None:
    """Take away every mount of an instance: root, namespaces, what a crash left."""
    mounts.release(bundle)


def disk_used(disk: Path) -> int:
    """Bytes that the writable layer takes, each file once. What vanishes meanwhile does not count."""
    total = 0
    seen: set[int] = set()
    stack = [disk / UPPER]
    while stack:
        with suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    facts = entry.stat(follow_symlinks=False)
                    if facts.st_ino in seen:
                        continue
                    if facts.st_nlink > 1:
                        seen.add(facts.st_ino)
                    total += facts.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(Path(entry.path))
    return total


def make_directory(root_fd: int, path: str, owner: int) -> None:
    """Make *path* and its parents inside the root, owned by *owner*; what exists is left alone, links never lead out."""
    parent = os.dup(root_fd)
    walked = ""
    try:
        for name in (part for part in path.split("/") if part not in ("", ".", "..")):
            walked = f"{walked}/{name}"
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=parent)
                os.chown(name, owner, owner, dir_fd=parent, follow_symlinks=False)
            below = syscalls.open_in_root(root_fd, walked, os.O_PATH | os.O_DIRECTORY)
            os.close(parent)
            parent = below
    finally:
        os.close(parent)
