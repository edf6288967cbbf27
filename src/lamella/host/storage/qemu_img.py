"""Layers by QEMU's own tool: made, resized, merged, mapped, checked, each in a process with a deadline.

What a layer stands on is always told by us, as explicit nodes down to ``"backing": null``: the name in a file's header is for people
who open it by hand, and is never believed. QEMU locks each file that it opens, so that a verb on one that somebody writes fails
(docs/interop: image locking, ``qemu-img -U``). A merge that takes long dies with us (``setpriv --pdeathsig``).
"""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import struct
from pathlib import Path

import msgspec

from lamella.host.linux import binaries
from lamella.host.storage import command
from lamella.host.storage.driver import Layer, Node
from lamella.model.errors import Conflict, Corrupt, LamellaError, NoRoom, Unavailable

# Sixteen times fewer copied bytes for a small write than without subclusters, and half the tables (qemu docs/interop/qcow2.txt,
# "Extended L2 Entries"). Without lazy refcounts: a torn file needs no repair before it can be opened.
OPTIONS = "cluster_size=128k,extended_l2=on,compat=1.1,lazy_refcounts=off"
_QUICK, _LONG = 60.0, 6 * 3600.0
_MAGIC = b"QFI\xfb"
_F_OFD_GETLK, _FLOCK, _WRITER_BYTE = 36, struct.Struct("hhqqi4x"), 101


class Mapped(msgspec.Struct, frozen=True):
    """One line of ``qemu-img map``: *depth* 0 is the topmost layer; what no layer has is not *present*."""

    start: int
    length: int
    depth: int
    zero: bool
    present: bool = True


class Checked(msgspec.Struct, frozen=True, rename="kebab"):
    """What ``qemu-img check`` counted."""

    check_errors: int = 0
    corruptions: int = 0
    corruptions_fixed: int = 0
    leaks: int = 0
    leaks_fixed: int = 0


def node(layers: list[Layer], base: Path | None = None, *, read_only: bool = False) -> Node:
    """*layers* from the top down, over the raw disk *base*."""
    below: Node | None = None
    if base is not None:
        below = {"driver": "raw", "read-only": True, "file": _file(base, read_only=True)}
    for layer in reversed(layers):
        above: Node = {"driver": layer.format, "file": _file(layer.path)}
        if layer.format == "qcow2":
            above["backing"] = below
        above |= {"read-only": True} if read_only or layer is not layers[0] else {"discard": "unmap"}
        if "read-only" in above:
            above["file"] = _file(layer.path, read_only=True)
        elif layer.format == "raw":
            # The raw format lets others write its file too (block/raw-format.c, raw_child_perm); this filter does not.
            above["file"] = {"driver": "blkdebug", "unshare-child-perms": ["write", "resize"], "image": above["file"]}
        below = above
    assert below is not None, "a chain has a layer"
    return below


def _file(path: Path, *, read_only: bool = False) -> Node:
    made: Node = {"driver": "file", "filename": str(path), "locking": "auto"}
    return made | ({"read-only": True} if read_only else {"discard": "unmap"})


def named(made: Node) -> str:
    """*made* as a command line has it."""
    return "json:" + json.dumps(made, separators=(",", ":"))


async def overlay(path: Path, size: int, below: Layer | None) -> None:
    """A new, empty, durable qcow2 of mode 0600 over *below*.

    :raise NoRoom: when the filesystem is full. :raise Unavailable: when qemu-img cannot do it. Nothing is left then.
    """
    over = [] if below is None else ["-F", below.format, "-b", str(below.path)]
    try:
        await _run("create", "-q", "-f", "qcow2", "-o", OPTIONS, "-u", *over, str(path), str(size))
        await asyncio.to_thread(settle, path)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def settle(path: Path) -> None:
    """Mode 0600, and on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def resize(layers: list[Layer], base: Path | None, size: int) -> None:
    """Make the topmost *size* bytes, smaller too; new bytes read as zeros, whatever lies below.

    :raise Conflict: when somebody writes it. :raise NoRoom: when the filesystem is full.
    """
    await _run("resize", "-q", "--shrink", named(node(layers, base)), str(size), long=True)
    await asyncio.to_thread(settle, layers[0].path)


async def commit(layers: list[Layer], base: Path | None) -> None:
    """Put the topmost layer's content into the second; the topmost stays as it is.

    :raise Conflict: when somebody has one of them open.
    """
    # qemu-img opens the layer below anew for writing: that one must not be fixed to be read only.
    await _run("commit", "-q", "-d", named(_writable_below(node(layers, base))), long=True)
    await asyncio.to_thread(settle, layers[1].path)


def _writable_below(made: Node) -> Node:
    below = dict(made["backing"])
    below.pop("read-only", None)
    below["file"] = {key: value for key, value in below["file"].items() if key != "read-only"} | {"discard": "unmap"}
    return {**made, "backing": below}


async def mapped(made: Node) -> list[Mapped]:
    """Which layer has what, in order, also of what is open elsewhere (as it was last written out)."""
    return msgspec.json.decode(await _run("map", "-U", "--output=json", named(made), long=True), type=list[Mapped])


async def check(layer: Layer, *, repair: str = "") -> Checked:
    """Of one qcow2 file by itself; *repair* is empty, ``leaks`` or ``all``.

    :raise Conflict: when somebody has it open. :raise Corrupt: when it cannot even be opened.
    """
    how = ["-r", repair] if repair else []
    try:
        said = await _run("check", "--output=json", *how, named(node([layer])), long=True, good=(0, 2, 3))
    except Unavailable as error:
        raise Corrupt(error.message) from error
    try:
        return msgspec.json.decode(said, type=Checked)
    except msgspec.DecodeError as error:
        raise Corrupt(f"qemu-img cannot check {layer.path}") from error


def virtual_size(layer: Layer) -> int:
    """Bytes, from the file itself (qcow2.txt, "Header": at 24, big-endian).

    :raise Corrupt: when it is no qcow2. :raise OSError: when it cannot be read.
    """
    if layer.format == "raw":
        return layer.path.stat().st_size
    with layer.path.open("rb") as file:
        header = file.read(32)
    if len(header) < 32 or header[:4] != _MAGIC:
        raise Corrupt(f"{layer.path} is not a qcow2 file any more", hint="restore the volume from a backup")
    return int.from_bytes(header[24:32], "big")


def written_by_somebody(path: Path) -> bool:
    """Whether a QEMU has *path* open for writing (block/file-posix.c: a lock on byte 100 + 1 says so)."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _WRITER_BYTE, 1, 0)
        return _FLOCK.unpack(fcntl.fcntl(descriptor, _F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK
    finally:
        os.close(descriptor)


async def _run(verb: str, *arguments: str, long: bool = False, good: tuple[int, ...] = (0,)) -> bytes:
    tool = str(binaries.tool("qemu-img"))
    said = await command.run([tool, verb, *arguments], timeout=_LONG if long else _QUICK, quick=not long)
    if said.code not in good:
        raise _failure(verb, said.error)
    return said.out


def _failure(verb: str, said: str) -> LamellaError:
    if any(os.strerror(code) in said for code in (errno.ENOSPC, errno.EDQUOT)):
        return NoRoom(f"qemu-img {verb}: the pool's filesystem is full", hint="delete volumes, snapshots or images")
    if "lock" in said and "Failed to get" in said:
        return Conflict("the volume is open", hint="stop or detach what uses it, then try again")
    return Unavailable(f"qemu-img {verb} failed: {said[-400:]}")
