"""CD and DVD images: ISO 9660 (ECMA-119), or UDF alone (ECMA-167). What a disk would start from may be there too."""

from lamella.host.images.formats.window import Window

BLOCK = 2048
_FIRST = 16 * BLOCK
_SLACK = 300 << 10  # some recorders count a postgap of 150 blocks that the file lacks


def is_iso(file: Window) -> bool:
    return file.some(_FIRST + 1, 5) in (b"CD001", b"BEA01")


def check(file: Window) -> None:
    """:raise Corrupt: when it is cut short or contradicts itself."""
    if file.some(_FIRST + 1, 5) == b"BEA01":
        if not any(file.some(_FIRST + number * BLOCK + 1, 4) == b"NSR0" for number in range(1, 16)):
            raise file.damaged("it has no volume")
        if file.number(256 * BLOCK, 2) != 2:
            raise file.damaged("it has no anchor")
        return
    for number in range(64):
        at = _FIRST + number * BLOCK
        if file.at(at + 1, 5) not in (b"CD001", b"BEA01", b"NSR02", b"NSR03", b"TEA01"):
            break
        kind = file.at(at, 1)
        if kind == b"\xff":
            break
        if kind == b"\1":
            _check_primary(file, at)
            return
    raise file.damaged("it has no primary volume descriptor")


def _check_primary(file: Window, at: int) -> None:
    blocks, block = file.number(at + 80, 4), file.number(at + 128, 2)
    if blocks != file.number(at + 84, 4, big=True) or block != file.number(at + 130, 2, big=True):
        raise file.damaged("its numbers differ by the order of their bytes")
    if block not in (512, 1024, 2048) or not blocks:
        raise file.damaged(f"its volume is {blocks} blocks of {block} bytes")
    if blocks * block > file.size + _SLACK:
        raise file.torn()
