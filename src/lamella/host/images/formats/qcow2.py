"""The header of a qcow2 file (QEMU's docs/interop/qcow2.txt): big-endian, 72 bytes in version 2, at least 104 in version 3."""

import sys
from array import array
from collections.abc import Iterator

from lamella.host.images.formats.disk import DiskHeader, checked_size, encrypted, stands_alone
from lamella.host.images.formats.window import Window
from lamella.model.errors import Unsupported

MAGIC = b"QFI\xfb"
_CORRUPT, _DATA_FILE, _EXTENDED_L2 = 1 << 1, 1 << 2, 1 << 4
_KNOWN = 0b11111  # dirty, corrupt, external data file, compression type, extended L2 entries
_DATA_FILE_NAME, _ENCRYPTION = 0x44415441, 0x0537BE77
_LARGEST_L1 = 32 << 20
_LARGEST_REFCOUNTS = 8 << 20
_MOST_EXTENSIONS = 64
_OFFSET, _COMPRESSED = 0x00FF_FFFF_FFFF_FE00, 1 << 62


def read(file: Window) -> DiskHeader:
    """:raise Corrupt: when it is torn, or stands on another file. :raise Unsupported: when it is encrypted or of an unknown kind."""
    version = file.number(4, 4, big=True)
    if version not in (2, 3):
        raise Unsupported(f"{file.name} is qcow of version {version}", hint="convert it: qemu-img convert -O qcow2")
    if file.number(8, 8, big=True) or file.number(16, 4, big=True):
        raise stands_alone(file, "has a backing file")
    if file.number(32, 4, big=True):
        raise encrypted(file)
    features = file.number(72, 8, big=True) if version == 3 else 0
    _check_features(file, features)
    bits = file.number(20, 4, big=True)
    if not 9 <= bits <= 21:
        raise file.damaged(f"its clusters are of 2^{bits} bytes")
    length = file.number(100, 4, big=True) if version == 3 else 72
    if version == 3 and (length < 104 or length > 1 << bits):
        raise file.damaged(f"its header is {length} bytes")
    for kind in _extensions(file, length, 1 << bits):
        if kind == _DATA_FILE_NAME:
            raise stands_alone(file, "has a data file")
        if kind == _ENCRYPTION:
            raise encrypted(file)
    size = checked_size(file, -(-file.number(24, 8, big=True) // 512) * 512)
    _check_tables(file, size, bits, extended=bool(features & _EXTENDED_L2))
    return DiskHeader(driver="qcow2", size=size)


def _check_features(file: Window, features: int) -> None:
    if features & _DATA_FILE:
        raise stands_alone(file, "has a data file")
    if features & _CORRUPT:
        raise file.damaged("it is marked so; qemu-img check -r all may mend it")
    if features & ~_KNOWN:
        raise Unsupported(
            f"{file.name} needs features of qcow2 that are not known here ({features & ~_KNOWN:#x})",
            hint="convert it where it was made: qemu-img convert -O qcow2 -o compat=v3",
        )


def _extensions(file: Window, start: int, end: int) -> Iterator[int]:
    """The types of the header's extensions."""
    at = start
    for _ in range(_MOST_EXTENSIONS):
        if at + 8 > end:
            return
        kind, length = file.number(at, 4, big=True), file.number(at + 4, 4, big=True)
        if not kind:
            return
        if length > end - at - 8:
            raise file.damaged("an extension of its header is longer than the header")
        yield kind
        at += 8 + -(-length // 8) * 8
    raise file.damaged(f"its header has more than {_MOST_EXTENSIONS} extensions")


def _check_tables(file: Window, size: int, bits: int, *, extended: bool) -> None:
    """The tables that a reader loads before anything else are there and of the size that the disk's asks for."""
    cluster = 1 << bits
    entries = file.number(36, 4, big=True)
    covered = cluster * (cluster // (16 if extended else 8))
    if entries * 8 > _LARGEST_L1 or entries * covered < size:
        raise file.damaged(f"its table of {entries} entries does not fit a disk of {size} bytes")
    table, refcounts = file.number(40, 8, big=True), file.number(48, 8, big=True)
    clusters = file.number(56, 4, big=True)
    if table % cluster or refcounts % cluster or clusters * cluster > _LARGEST_REFCOUNTS:
        raise file.damaged("its tables lie where none can")
    if table + entries * 8 > file.size or refcounts + clusters * cluster > file.size:
        raise file.torn()
    _check_clusters(file, _numbers(file, table, entries * 8), bits, extended=extended)


def _check_clusters(file: Window, first: "array[int]", bits: int, *, extended: bool) -> None:
    """Every cluster begins inside the file: a reader takes what lies beyond the end for zeros, and half a copy for a whole."""
    cluster, compressed = 1 << bits, (1 << (70 - bits)) - 1
    seen: set[int] = set()
    for entry in first:
        table = entry & _OFFSET
        if not table:
            continue
        if table in seen:  # so there are no more tables to read than the file has room for
            raise file.damaged("two parts of the disk share one table")
        seen.add(table)
        second = _numbers(file, table, cluster)
        for found in second[::2] if extended else second:
            if found and (found & compressed if found & _COMPRESSED else found & _OFFSET) >= file.size:
                raise file.torn()


def _numbers(file: Window, offset: int, length: int) -> "array[int]":
    numbers = array("Q", file.at(offset, length))
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers
