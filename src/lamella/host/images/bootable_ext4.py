"""What mke2fs(8) leaves to chance in a new ext4: when the files that it copied were last read and changed on this host.

Both times become the one that the file itself has, in the inode tables as they lie (kernel documentation, filesystems/ext4:
superblock, block group descriptors, inode table). Inode checksums follow without being computed anew: CRC32C is linear, so what a
change of some bytes does to it depends on those bytes alone.
"""

import os
import struct
from collections.abc import Iterator
from functools import cache

import msgspec

from lamella.model.errors import Internal

_SUPERBLOCK = 1024
_MAGIC = 0xEF53
_INODE_SIZE = 256
_TIMES = slice(8, 16)
_MTIME = slice(16, 20)
_CHECKSUM_LOW, _CHECKSUM_HIGH = 124, 130
_POLYNOMIAL = 0x82F63B78


class Tables(msgspec.Struct, kw_only=True, frozen=True):
    """Where the used part of each inode table is: bytes from the filesystem's start, and bytes."""

    extents: list[tuple[int, int]]


def settle_times(descriptor: int, offset: int) -> int:
    """Give every inode of the ext4 at byte *offset* of the open file *descriptor* its modification time as its other times.

    Returns how many changed. Blocking.

    :raise Internal: when no ext4 of the form that :mod:`lamella.host.images.bootable` makes is there.
    """
    changed = 0
    for start, length in inode_tables(descriptor, offset).extents:
        table = bytearray(os.pread(descriptor, length, offset + start))
        touched = [settle_inode(table, at) for at in range(0, length, _INODE_SIZE)].count(True)
        if touched:
            os.pwrite(descriptor, table, offset + start)
        changed += touched
    return changed


def settle_inode(table: bytearray, at: int) -> bool:
    """The inode at byte *at* of *table*, in place. Returns whether it was changed."""
    old = bytes(table[at + _TIMES.start : at + _TIMES.stop])
    new = bytes(table[at + _MTIME.start : at + _MTIME.stop]) * 2
    if old == new:
        return False
    table[at + _TIMES.start : at + _TIMES.stop] = new
    change = 0
    for position, (before, after) in enumerate(zip(old, new, strict=True)):
        change ^= _effects()[position][before ^ after]
    (low,) = struct.unpack_from("<H", table, at + _CHECKSUM_LOW)
    (high,) = struct.unpack_from("<H", table, at + _CHECKSUM_HIGH)
    struct.pack_into("<H", table, at + _CHECKSUM_LOW, low ^ (change & 0xFFFF))
    struct.pack_into("<H", table, at + _CHECKSUM_HIGH, high ^ (change >> 16))
    return True


def inode_tables(descriptor: int, offset: int) -> Tables:
    """:raise Internal: when no ext4 of the expected form is there."""
    superblock = os.pread(descriptor, 1024, offset + _SUPERBLOCK)
    if len(superblock) < 1024 or struct.unpack_from("<H", superblock, 0x38)[0] != _MAGIC:
        raise Internal("mke2fs made no ext4 filesystem")
    inodes, _, _ = struct.unpack_from("<III", superblock, 0)
    first_block, log_size = struct.unpack_from("<II", superblock, 0x14)
    (per_group,) = struct.unpack_from("<I", superblock, 0x28)
    (inode_size,) = struct.unpack_from("<H", superblock, 0x58)
    (descriptor_size,) = struct.unpack_from("<H", superblock, 0xFE)
    if inode_size != _INODE_SIZE or descriptor_size != 64:
        raise Internal(f"mke2fs made inodes of {inode_size} bytes and descriptors of {descriptor_size}, not 256 and 64")
    block = 1024 << log_size
    groups = os.pread(descriptor, inodes // per_group * 64, offset + (first_block + 1) * block)
    return Tables(extents=list(_extents(groups, per_group, block)))


def _extents(groups: bytes, per_group: int, block: int) -> Iterator[tuple[int, int]]:
    for at in range(0, len(groups), 64):
        (table_low,) = struct.unpack_from("<I", groups, at + 0x08)
        (unused_low,) = struct.unpack_from("<H", groups, at + 0x1C)
        (table_high,) = struct.unpack_from("<I", groups, at + 0x28)
        (unused_high,) = struct.unpack_from("<H", groups, at + 0x32)
        used = per_group - (unused_low | unused_high << 16)
        if used:
            yield (table_low | table_high << 32) * block, used * _INODE_SIZE


@cache
def _effects() -> list[list[int]]:
    """By position among the bytes of _TIMES and by their change: the change of the checksum of the whole inode."""
    table = [_shifted(value, 8) for value in range(256)]

    def at(position: int) -> list[int]:
        row = table
        for _ in range(_INODE_SIZE - 1 - position):
            row = [value >> 8 ^ table[value & 0xFF] for value in row]
        return row

    return [at(position) for position in range(_TIMES.start, _TIMES.stop)]


def _shifted(value: int, bits: int) -> int:
    for _ in range(bits):
        value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
    return value
