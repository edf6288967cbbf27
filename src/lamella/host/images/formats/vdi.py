"""The header of a VDI file (VirtualBox; QEMU's block/vdi.c): little-endian."""

from lamella.host.images.formats.disk import SECTOR, DiskHeader, checked_size, stands_alone
from lamella.host.images.formats.window import Window
from lamella.model.errors import Unsupported

SIGNATURE = 0xBEDA107F
SIGNATURE_AT = 0x40
_DYNAMIC, _STATIC = 1, 2
_BLOCK = 1 << 20


def read(file: Window) -> DiskHeader:
    """:raise Corrupt: when it is torn, or a child of another disk. :raise Unsupported: when it is of an unknown kind."""
    version, kind, sector = file.number(0x44, 4), file.number(0x4C, 4), file.number(0x168, 4)
    if version != 0x00010001:
        raise Unsupported(
            f"{file.name} is VDI of version {version >> 16}.{version & 0xFFFF}",
            hint="convert it: VBoxManage clonemedium",
        )
    if kind not in (_DYNAMIC, _STATIC) or any(file.at(0x1A8, 32)):
        raise stands_alone(file, "is a snapshot of another disk")
    block, extra = file.number(0x178, 4), file.number(0x17C, 4)
    if sector != SECTOR or block != _BLOCK or extra:
        raise Unsupported(
            f"{file.name} has sectors of {sector} and blocks of {block} bytes",
            hint="convert it: VBoxManage clonemedium",
        )
    size = checked_size(file, -(-file.number(0x170, 8) // SECTOR) * SECTOR)
    blocks, used = file.number(0x180, 4), file.number(0x184, 4)
    table, data = file.number(0x154, 4), file.number(0x158, 4)
    if blocks * _BLOCK < size or used > blocks or table % SECTOR or data % SECTOR:
        raise file.damaged(f"its table of {blocks} blocks does not fit a disk of {size} bytes")
    if used and data + (used - 1) * _BLOCK >= file.size:
        raise file.torn()
    if table < SECTOR or table + blocks * 4 > data or data > file.size:
        raise file.torn()
    return DiskHeader(driver="vdi", size=size)
