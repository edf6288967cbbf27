"""Where an image has its module, and what is known of it without reading more than its first eight bytes."""

import os
import stat
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Machine
from lamella.host.linux import syscalls
from lamella.model.errors import CannotRun
from lamella.model.image import ArtifactKind

LARGEST_MODULE = 256 << 20

_MAGIC = b"\0asm"
_MODULE, _COMPONENT = b"\x01\x00\x00\x00", b"\x0d\x00\x01\x00"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A module of an image: ``identity`` names its bytes, ``arguments`` is its whole argument vector."""

    identity: str
    image: str
    component: bool
    arguments: list[str]
    file: Path
    root: Path | None = None

    def open(self) -> int:
        """A descriptor to read it from; the caller closes it."""
        if self.root is None:
            return os.open(self.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        return _open_below(self.root, str(self.file))


def source(machine: Machine) -> Source:
    """Find the module that *machine* is to run.

    :raise CannotRun: when the image has none, or what it has is no module.
    """
    rootfs = machine.rootfs
    for artifact in rootfs.artifacts:
        if artifact.kind == ArtifactKind.MODULE:
            fd = os.open(artifact.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                component = _is_component(fd, "the image's module")
            finally:
                os.close(fd)
            named = bool(rootfs.config.entrypoint)
            return Source(
                identity=artifact.digest,
                image=rootfs.digest,
                component=component,
                arguments=machine.command if named and machine.command else ["module.wasm", *machine.command],
                file=artifact.path,
            )
    if rootfs.os != "wasi" or not machine.command:
        raise CannotRun(
            "the image holds no WebAssembly module",
            hint="import one (lamella image import app.wasm), or choose another isolation level for this image",
            field="image",
            exit_code=126,
        )
    name = machine.command[0]
    path = os.path.normpath(f"{machine.working_directory or '/'}/{name}" if not name.startswith("/") else name)
    for place in dict.fromkeys([path, os.path.normpath(f"/{name}")]):
        for layer in rootfs.layers:
            try:
                fd = _open_below(layer, place)
            except OSError:
                continue
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    break  # a whiteout, or no file
                component = _is_component(fd, place)
            finally:
                os.close(fd)
            return Source(
                identity=f"{rootfs.digest}:{layer.name}:{place}",
                image=rootfs.digest,
                component=component,
                arguments=machine.command,
                file=Path(place),
                root=layer,
            )
    raise CannotRun(f"there is no file {path} in the image", exit_code=127)


def _open_below(root: Path, path: str) -> int:
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return syscalls.open_in_root(top, path, os.O_RDONLY | os.O_NONBLOCK)
    finally:
        os.close(top)


def _is_component(fd: int, name: str) -> bool:
    """By the first eight bytes (core specification, 5.5.16; Component Model, Binary.md)."""
    head = os.pread(fd, 8, 0)
    if os.fstat(fd).st_size > LARGEST_MODULE:
        raise CannotRun(f"{name} is larger than {LARGEST_MODULE >> 20} MiB", exit_code=126)
    if head == _MAGIC + _COMPONENT:
        return True
    if head != _MAGIC + _MODULE:
        raise CannotRun(f"{name} is no WebAssembly module", hint="it must be in the binary format", exit_code=126)
    return False
