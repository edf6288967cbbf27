"""OVA: a tar of an OVF descriptor, its disks and, often, their digests. Read where it lies; nothing is unpacked.

Only plain files with plain names are in one (DSP0243, 12): anything else is refused, links and devices above all.
"""

import hashlib
import os
import re
import threading
from collections.abc import Callable

import msgspec

from lamella.host.images import header
from lamella.host.images.formats import xml
from lamella.host.images.unpack import Cancelled
from lamella.model.errors import Corrupt

_LARGEST_MANIFEST = 1 << 20
_MOST_MEMBERS = 1000
_PIECE = 4 << 20
_LINE = re.compile(r"(SHA1|SHA256|SHA384|SHA512)\s?\(([^()\n]+)\)\s?=\s?([0-9a-fA-F]{40,128})")


class Member(msgspec.Struct, kw_only=True, frozen=True):
    """A stretch of the archive."""

    offset: int
    size: int


class _Sought:
    def __init__(self, descriptor: int) -> None:
        self.position = 0
        self._descriptor = descriptor

    def read(self, size: int) -> bytes:
        data = os.pread(self._descriptor, size, self.position)
        self.position += len(data)
        return data

    def skip(self, size: int) -> None:
        self.position += size


def is_ova(descriptor: int) -> bool:
    """Whether the first file of the tar is an OVF descriptor, as the standard asks."""
    try:
        first = next(header.entries(_Sought(descriptor), ended=False), None)
    except Corrupt:
        return False
    return first is not None and first.kind == header.FILE and first.path.lower().endswith(b".ovf")


def members(descriptor: int, what: str) -> dict[str, Member]:
    """The files of the archive, in their order.

    :raise Corrupt: when one is no file, has a path for a name, is there twice, or is longer than the archive.
    """
    found: dict[str, Member] = {}
    end = os.fstat(descriptor).st_size
    tape = _Sought(descriptor)
    for entry in header.entries(tape, ended=False):
        name = entry.path.decode("utf-8", "surrogateescape").removeprefix("./")
        if entry.kind != header.FILE or not name or "/" in name or "\\" in name or name in (".", ".."):
            raise Corrupt(
                f"{what} holds {header.shown(entry.path)}, which is not a plain file",
                hint="an OVA holds its own files alone",
            )
        if name in found or len(found) > _MOST_MEMBERS:
            raise Corrupt(f"{what} holds {header.shown(entry.path)} twice, or too much", hint="export it again")
        if tape.position + entry.size > end:
            raise Corrupt(f"{what} is cut short in {header.shown(entry.path)}", hint="copy or export it again")
        found[name] = Member(offset=tape.position, size=entry.size)
    return found


def descriptor_name(names: list[str], what: str) -> str:
    """:raise Corrupt: when there is not exactly one descriptor."""
    found = [name for name in names if name.lower().endswith(".ovf")]
    if len(found) != 1:
        raise Corrupt(f"{what} holds {len(found)} OVF descriptors", hint="export one machine by itself")
    return found[0]


def document(descriptor: int, member: Member, name: str) -> bytes:
    """A small member whole."""
    if member.size > xml.LARGEST:
        raise Corrupt(f"{name} is {member.size} bytes", hint="no honest description of a machine is so long")
    return os.pread(descriptor, member.size, member.offset)


def digests(data: bytes, name: str) -> dict[str, tuple[str, str]]:
    """What a manifest says: the algorithm and the digest of each file.

    :raise Corrupt: when a line of it is none.
    """
    found: dict[str, tuple[str, str]] = {}
    if len(data) > _LARGEST_MANIFEST:
        raise Corrupt(f"{name} is {len(data)} bytes", hint="no honest manifest is so long")
    for line in data.decode("utf-8", "replace").splitlines():
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise Corrupt(f"{name} has a line that is none of a manifest: {line[:100]!r}", hint="export it again")
        found[match[2]] = (match[1].lower(), match[3].lower())
    return found


def verify(
    descriptor: int,
    member: Member,
    wanted: tuple[str, str],
    name: str,
    stop: threading.Event,
    progress: Callable[[int], None],
) -> None:
    """:raise Corrupt: when *member* is not what the manifest says."""
    done = hashlib.new(wanted[0], usedforsecurity=False)
    at, end = member.offset, member.offset + member.size
    while at < end:
        if stop.is_set():
            raise Cancelled
        piece = os.pread(descriptor, min(_PIECE, end - at), at)
        if not piece:
            break
        done.update(piece)
        at += len(piece)
        progress(len(piece))
    if done.hexdigest() != wanted[1]:
        raise Corrupt(f"{name} is not what the manifest of its archive says", hint="copy or export it again")
