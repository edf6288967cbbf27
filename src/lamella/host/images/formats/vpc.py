"""The footer of a VHD file (Microsoft's Virtual Hard Disk Image Format Specification, 2006): big-endian, the last 512 bytes."""

from lamella.host.images.formats.disk import SECTOR, DiskHeader, checked_size, stands_alone
from lamella.host.images.formats.window import Window
from lamella.model.errors import Unsupported

COOKIE = b"conectix"
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4


def footer_at(file: Window) -> int | None:
    """Where its footer is: at the end, or at the beginning where a dynamic disk has a copy."""
    last = file.size - SECTOR
    if last >= 0 and file.at(last, 8) == COOKIE:
        return last
    return 0 if file.some(0, 8) == COOKIE else None


def read(file: Window) -> DiskHeader:
    """:raise Corrupt: when it is torn, or a child of another disk. :raise Unsupported: when it is of an unknown kind."""
    start = footer_at(file)
    if start is None or (start == 0 and file.size > SECTOR):
        raise file.torn()
    footer = file.at(start, SECTOR)
    told = int.from_bytes(footer[64:68], "big")
    if ~(sum(footer) - sum(footer[64:68])) & 0xFFFFFFFF != told:
        raise file.damaged("the checksum of its footer is wrong")
    kind = int.from_bytes(footer[60:64], "big")
    if kind == _DIFFERENCING:
        raise stands_alone(file, "is the child of another disk")
    if kind not in (_FIXED, _DYNAMIC):
        raise Unsupported(f"{file.name} is VHD of type {kind}", hint="convert it: qemu-img convert -O qcow2")
    size = checked_size(file, int.from_bytes(footer[48:56], "big"))
    if kind == _FIXED:
        if size > start:
            raise file.torn()
    else:
        _check_table(file, int.from_bytes(footer[16:24], "big"), size)
    # By default the driver believes the cylinders, heads and sectors of some makers, which cannot tell every size.
    return DiskHeader(driver="vpc", size=size, options={"force_size_calc": "current_size"})


def _check_table(file: Window, header: int, size: int) -> None:
    if file.at(0, 8) != COOKIE or file.at(header, 8) != b"cxsparse":
        raise file.damaged("it has no header")
    table, entries = file.number(header + 16, 8, big=True), file.number(header + 28, 4, big=True)
    block = file.number(header + 32, 4, big=True)
    if block < SECTOR or block & (block - 1) or block > 256 << 20 or entries * block < size:
        raise file.damaged(f"its table of {entries} blocks of {block} bytes does not fit a disk of {size} bytes")
    if table + entries * 4 > file.size:
        raise file.torn()
