"""The header of a VMDK file (VMware's Virtual Disk Format 5.0): one sparse file, monolithic or optimised for streams.

A descriptor that names other files as its extents is refused, and so is a child of another disk.
"""

import re
import sys
from array import array

from lamella.host.images.formats.disk import SECTOR, DiskHeader, checked_size, encrypted, stands_alone
from lamella.host.images.formats.window import Window
from lamella.model.errors import Unsupported

MAGIC = b"KDMV"
_AT_END = (1 << 64) - 1
_FOOTER = 1024  # before the end: the footer, and the end-of-stream marker after it
_READ_BY_QEMU = 20 * SECTOR
_LARGEST_DESCRIPTOR = 1 << 20
_MOST_ENTRIES = 512
_LARGEST_DIRECTORY = 32 << 20


def is_descriptor(head: bytes) -> bool:
    """Whether a file that begins with *head* only describes a disk."""
    return head.lstrip()[:21].lower() == b"# disk descriptorfile"


def refuse_descriptor(file: Window) -> Exception:
    """The error for a file that only describes a disk, or is of the old kind of ESX."""
    return stands_alone(file, "describes a disk whose content is in other files")


def read(file: Window) -> DiskHeader:
    """:raise Corrupt: when it is torn, or stands on another file. :raise Unsupported: when it is encrypted or of an unknown kind."""
    start = 0
    _check_header(file, 0)
    _check_descriptor(file, 0)
    if file.number(56, 8) == _AT_END:
        start = (file.size // SECTOR * SECTOR) - _FOOTER
        if file.size < 4 * SECTOR or file.at(start, 4) != MAGIC:
            raise file.torn()
        if file.number(start + 12, 8) != file.number(12, 8):
            raise file.damaged("its header and its footer tell of different sizes")
        _check_header(file, start)
        _check_descriptor(file, start)
    capacity, grain, per_table = file.number(start + 12, 8), file.number(start + 20, 8), file.number(start + 44, 4)
    if not capacity:
        raise refuse_descriptor(file)
    size = checked_size(file, capacity * SECTOR)
    if not 1 <= grain <= 4096 or grain & (grain - 1) or not 1 <= per_table <= _MOST_ENTRIES:
        raise file.damaged(f"its grains are of {grain} sectors, {per_table} in a table")
    directory = -(-capacity // (grain * per_table)) * 4
    if directory > _LARGEST_DIRECTORY:
        raise file.damaged(f"its directory would be {directory} bytes")
    offset = file.number(start + 56, 8)
    if offset == _AT_END or not offset or offset * SECTOR + directory > file.size:
        raise file.torn()
    _check_grains(file, _numbers(file, offset * SECTOR, directory), per_table * 4)
    return DiskHeader(driver="vmdk", size=size)


def _check_grains(file: Window, directory: "array[int]", length: int) -> None:
    """Every grain begins inside the file: a reader may take what lies beyond the end for zeros."""
    seen: set[int] = set()
    for table in directory:
        if not table:
            continue
        if table in seen:  # so there are no more tables to read than the file has room for
            raise file.damaged("two parts of the disk share one table")
        seen.add(table)
        if max(_numbers(file, table * SECTOR, length)) * SECTOR >= file.size:
            raise file.torn()


def _numbers(file: Window, offset: int, length: int) -> "array[int]":
    numbers = array("I", file.at(offset, length))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _check_header(file: Window, start: int) -> None:
    version, compression = file.number(start + 4, 4), file.number(start + 77, 2)
    if version not in (1, 2, 3) or compression > 1:
        raise Unsupported(
            f"{file.name} is VMDK of version {version}, compression {compression}",
            hint="export it again as one stream-optimized file",
        )
    if file.at(start + 73, 4) != b"\n \r\n":
        raise file.damaged("it was copied as text, and its line ends were changed")


def _check_descriptor(file: Window, start: int) -> None:
    """The text inside: all of it, and as much as QEMU looks through."""
    offset, length = file.number(start + 28, 8) * SECTOR, file.number(start + 36, 8) * SECTOR
    if length > _LARGEST_DESCRIPTOR or (offset and offset + length > file.size):
        raise file.torn()
    text = file.some(offset, max(length, _READ_BY_QEMU)) if offset else b""
    lowered = text.lower()
    if b"parentfilenamehint" in lowered:
        raise stands_alone(file, "is the child of another disk")
    parents = re.findall(rb"parentcid\s*=\s*([0-9a-f]+)", lowered)
    if any(int(parent[-8:], 16) != 0xFFFFFFFF for parent in parents):
        raise stands_alone(file, "is the child of another disk")
    if b"encryption.keysafe" in lowered:
        raise encrypted(file)
    own = text.split(b"\0", 1)[0]
    extents = re.findall(rb"^[ \t]*(?:RW|RDONLY|NOACCESS)[ \t]+\S+[ \t]+(\S+)([^\n]*)", own, re.MULTILINE)
    if len(extents) > 1 or any(kind.upper() not in (b"SPARSE",) or _leads(name) for kind, name in extents):
        raise stands_alone(file, "names other files or devices as its content")


def _leads(name: bytes) -> bool:
    """Whether the name in an extent's line leads anywhere but to a file beside."""
    return b"/" in name or b"\\" in name or b":" in name
