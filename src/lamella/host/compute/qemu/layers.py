"""A disk of a machine as QEMU opens it: a file, or a chain of layers over an image's disk, all of them by descriptor.

QEMU lives in a room where it can open nothing, and what a qcow2 header names is never opened: every layer is said (QEMU's
``docs/interop/qcow2.txt``, "backing file name"; QMP reference manual, ``BlockdevOptionsQcow2``). A file that is written stands in its
descriptor set twice, for writing and for reading: QEMU opens a layer again read-only when the next one is laid over it. QEMU's own locks
(OFD locks on bytes 100 and up of each file, ``block/file-posix.c``) are taken through a descriptor set as on any file.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from lamella.host.compute.driver import MountedVolume
from lamella.host.storage.driver import Layer, VolumeHandle
from lamella.model.errors import NotFound

Properties = dict[str, object]
_SERIAL = 20


class ColdFile(msgspec.Struct, kw_only=True, frozen=True):
    """A file that QEMU inherits as descriptor *fd*, and with ``writable`` once more, for reading, as ``again``."""

    fd: int
    path: Path
    writable: bool = False
    again: int = -1

    @property
    def arguments(self) -> list[str]:
        both = (self.fd, self.again) if self.writable else (self.fd,)
        return [word for fd in both for word in ("-add-fd", f"fd={fd},set={self.fd}")]

    def open(self) -> dict[int, int]:
        """Descriptors by the numbers that QEMU finds them at; the caller closes them.

        :raise NotFound: when it is not where it should be.
        """
        opened = {self.fd: open_file(self.path, os.O_RDWR if self.writable else os.O_RDONLY)}
        if self.writable:
            opened[self.again] = open_file(self.path, os.O_RDONLY)
        return opened


class ColdDisk(msgspec.Struct, kw_only=True, frozen=True):
    """A disk that is there from the start: its block node and the files under it."""

    node: Properties
    files: list[ColdFile]

    @property
    def arguments(self) -> list[str]:
        words = [word for file in self.files for word in file.arguments]
        return [*words, "-blockdev", msgspec.json.encode(self.node).decode()]

    def open(self) -> dict[int, int]:
        """:raise NotFound: when a file is not where it should be."""
        opened: dict[int, int] = {}
        try:
            for file in self.files:
                opened |= file.open()
        except BaseException:
            for fd in opened.values():
                os.close(fd)
            raise
        return opened


def files_of(volume: VolumeHandle) -> list[Path]:
    """The volume's files, the one that is written first; the image's disk, if there is one, last."""
    base = [] if volume.base is None else [volume.base.path]
    return [volume.path, *(layer.path for layer in volume.below), *base]


def driver_of(path: Path) -> str:
    """Which of QEMU's drivers opens it: a device of the host is not a file.

    :raise NotFound: when nothing is there.
    """
    try:
        return "host_device" if stat.S_ISBLK(path.stat().st_mode) else "file"
    except OSError as error:
        raise NotFound(f"the disk {path} is not where it should be: {error.strerror}") from error


def cold_disk(
    name: str,
    volume: VolumeHandle,
    first: int,
    *,
    fd: int | None = None,
    base: int | None = None,
    driver: Callable[[Path], str] = driver_of,
) -> ColdDisk:
    """*volume* as the block node *name*, its descriptors from *first* on; *fd* and *base* are those of its file and of its image's disk,
    where they have a fixed place. *driver* says which driver opens a path."""
    free = iter(range(first, first + 1024))
    files: list[ColdFile] = []
    for number, path in enumerate(files_of(volume)):
        if number == 0:
            files.append(ColdFile(fd=next(free) if fd is None else fd, path=path, writable=True, again=next(free)))
        elif volume.base is not None and number == len(volume.below) + 1 and base is not None:
            files.append(ColdFile(fd=base, path=path))
        else:
            files.append(ColdFile(fd=next(free), path=path))
    nodes = [file_node(driver(file.path), file.fd, read_only=not file.writable) for file in files]
    return ColdDisk(node=chain_node(name, volume, nodes), files=files)


def cold_volume(volume: MountedVolume, first: int) -> ColdDisk:
    """A volume that is a file, as the block node ``disk-DEVICE``; descriptors *first* and the next.

    :raise NotFound: when it is not there.
    """
    file = ColdFile(fd=first, path=volume.path, writable=not volume.read_only, again=first + 1)
    under = file_node(driver_of(volume.path), first, read_only=volume.read_only)
    node = layer_node(f"disk-{volume.device}", "raw", under) | {"read-only": volume.read_only}
    return ColdDisk(node=node, files=[file])


def chain_node(name: str, volume: VolumeHandle, files: Sequence[Mapping[str, object]]) -> Properties:
    """The block node of *volume* over *files*, the protocol nodes of :func:`files_of`."""
    made: Properties = {"driver": volume.format, "node-name": name, "discard": "unmap", "file": dict(files[0])}
    if volume.format == "qcow2":
        # Said even when there is none, so that QEMU never opens what a header names.
        made["backing"] = _backing(volume, files)
    return made


def layer_node(name: str, format: str, file: Mapping[str, object]) -> Properties:
    """A new layer that stands on nothing yet: ``blockdev-snapshot`` lays it over what is there."""
    made: Properties = {"driver": format, "node-name": name, "discard": "unmap", "file": dict(file)}
    return made | {"backing": None} if format == "qcow2" else made


def file_node(driver: str, fdset: int, *, read_only: bool) -> Properties:
    """The protocol node of descriptor set *fdset*; *driver* is ``file`` or ``host_device``."""
    return {"driver": driver, "filename": f"/dev/fdset/{fdset}", "read-only": read_only, "discard": "unmap"}


def layer_name(device: str, path: Path) -> str:
    """The block node of a layer that *device* went over to while it ran (QEMU takes 31 letters)."""
    return f"{layer_prefix(device)}{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"


def layer_prefix(device: str) -> str:
    return f"layer-{hashlib.sha256(device.encode()).hexdigest()[:8]}-"


def serial(name: str) -> str:
    """What a guest sees as the disk's serial number: its name, or as much of it as fits and eight digits of its hash."""
    if len(name) <= _SERIAL:
        return name
    return f"{name[: _SERIAL - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def described(volume: MountedVolume) -> str:
    """The disk that the volume is, for who reads a contract."""
    disk = f"the disk with the serial number {serial(volume.device)}"
    return f"{disk}, {volume.served}" if volume.served else disk


def laid_over(volume: VolumeHandle, layer: Layer) -> VolumeHandle:
    """What *volume* is once it writes into *layer*; the same again when it does so already."""
    if volume.path == layer.path:
        return volume
    below = [Layer(path=volume.path, format=volume.format), *volume.below]
    return msgspec.structs.replace(volume, path=layer.path, format=layer.format, below=below)


def used(volume: VolumeHandle) -> int | None:
    """Bytes that its own files take on this host, the image's disk not counted; ``None`` when one is not there."""
    try:
        return sum(path.stat().st_blocks * 512 for path in (volume.path, *(layer.path for layer in volume.below)))
    except OSError:
        return None


def open_file(path: Path, flags: int) -> int:
    """:raise NotFound: when it cannot be opened."""
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"the disk {path} cannot be opened: {error.strerror}") from error


def _backing(volume: VolumeHandle, files: Sequence[Mapping[str, object]]) -> Properties | None:
    """The layers below, each over the next, none of them written."""
    layers = [*volume.below, *([] if volume.base is None else [Layer(path=volume.base.path, format="raw")])]
    under: Properties | None = None
    for layer, file in zip(reversed(layers), reversed(files[1:]), strict=True):
        made: Properties = {"driver": layer.format, "read-only": True, "file": dict(file)}
        if layer.format == "qcow2":
            made["backing"] = under
        under = made
    return under
