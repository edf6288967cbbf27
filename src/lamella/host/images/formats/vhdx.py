"""The headers of a VHDX file (Microsoft [MS-VHDX]): little-endian."""

from collections.abc import Iterator
from uuid import UUID

from lamella.host.images.formats.disk import SECTOR, DiskHeader, checked_size, stands_alone
from lamella.host.images.formats.window import Window
from lamella.model.errors import Corrupt, Unsupported

MAGIC = b"vhdxfile"
_HEADERS, _REGIONS = (64 << 10, 128 << 10), (192 << 10, 256 << 10)
_METADATA = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_BLOCKS = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_SECTOR_SIZE = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
_PARENT = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
_MOST = 2047


def read(file: Window) -> DiskHeader:
    """:raise Corrupt: when it is torn, or a child of another disk. :raise Unsupported: when it has to be replayed first."""
    _check_log(file)
    regions = dict(_regions(file))
    if _METADATA not in regions or _BLOCKS not in regions:
        raise file.damaged("its table of regions lacks what every disk has")
    for offset, length in regions.values():
        if offset % (1 << 20) or offset + length > file.size:
            raise file.torn()
    start, length = regions[_METADATA]
    items = dict(_items(file, start, length))
    if _PARENT in items or (_PARAMETERS in items and file.number(items[_PARAMETERS] + 4, 4) & 2):
        raise stands_alone(file, "is the child of another disk")
    if not {_PARAMETERS, _SIZE, _SECTOR_SIZE} <= set(items):
        raise file.damaged("its metadata lack what every disk has")
    block, sector = file.number(items[_PARAMETERS], 4), file.number(items[_SECTOR_SIZE], 4)
    if sector not in (SECTOR, 4096) or not 1 << 20 <= block <= 256 << 20 or block & (block - 1):
        raise file.damaged(f"its sectors are of {sector} bytes and its blocks of {block}")
    size = checked_size(file, file.number(items[_SIZE], 8))
    if regions[_BLOCKS][1] < -(-size // block) * 8:
        raise file.damaged(f"its table of blocks does not fit a disk of {size} bytes")
    if sector != SECTOR:
        raise Unsupported(
            f"{file.name} has sectors of {sector} bytes", hint="convert it to sectors of 512: Convert-VHD, or qemu-img"
        )
    return DiskHeader(driver="vhdx", size=size)


def _check_log(file: Window) -> None:
    """The newer header says whether what was written last is still in the log."""
    headers = [at for at in _HEADERS if file.at(at, 4) == b"head"]
    if not headers:
        raise file.damaged("it has no header")
    newest = max(headers, key=lambda at: file.number(at + 8, 8))
    if file.number(newest + 66, 2) != 1:
        raise Unsupported(f"{file.name} is VHDX of an unknown version", hint="convert it where it was made")
    if any(file.at(newest + 48, 16)):
        raise Unsupported(
            f"{file.name} was not closed: its log has to be replayed first",
            hint="shut its machine down cleanly, or mend a copy: qemu-img check -r all",
        )


def _regions(file: Window) -> Iterator[tuple[UUID, tuple[int, int]]]:
    table = next((at for at in _REGIONS if file.at(at, 4) == b"regi"), None)
    if table is None:
        raise file.damaged("it has no table of regions")
    for at in _entries(file, table + 16, file.number(table + 8, 4)):
        yield _uuid(file, at), (file.number(at + 16, 8), file.number(at + 24, 4))


def _items(file: Window, start: int, length: int) -> Iterator[tuple[UUID, int]]:
    if file.at(start, 8) != b"metadata":
        raise file.damaged("it has no table of metadata")
    for at in _entries(file, start + 32, file.number(start + 10, 2)):
        offset = file.number(at + 16, 4)
        if offset + 16 > length:
            raise file.torn()
        yield _uuid(file, at), start + offset


def _entries(file: Window, start: int, count: int) -> range:
    if count > _MOST:
        raise _too_many(file)
    return range(start, start + 32 * count, 32)


def _too_many(file: Window) -> Corrupt:
    return file.damaged(f"a table of it has more than {_MOST} entries")


def _uuid(file: Window, at: int) -> UUID:
    return UUID(bytes_le=file.at(at, 16))
