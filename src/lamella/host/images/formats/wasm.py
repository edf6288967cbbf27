"""WebAssembly modules and components (WebAssembly core specification 5.5; component-model Binary.md): the frame of sections."""

from lamella.host.images.formats.window import Window
from lamella.model.errors import Unsupported

MAGIC = b"\0asm"
LARGEST_MODULE = 512 << 20
_MODULE, _COMPONENT = b"\x01\0\0\0", b"\x0d\0\x01\0"
_MOST_SECTIONS = 100_000


def check(file: Window) -> None:
    """Every section is there to its last byte; what is in them is for whoever compiles it.

    :raise Corrupt: when it is torn.
    :raise Unsupported: when it is of another version, or too big.
    """
    version = file.at(4, 4)
    if version not in (_MODULE, _COMPONENT):
        raise Unsupported(
            f"{file.name} is WebAssembly of an unknown version ({version.hex()})",
            hint="build a module of version 1, or a component",
        )
    if file.size > LARGEST_MODULE:
        raise Unsupported(f"{file.name} is {file.size} bytes", hint=f"a module has at most {LARGEST_MODULE >> 20} MiB")
    at = 8
    for _ in range(_MOST_SECTIONS):
        if at == file.size:
            return
        kind = file.number(at, 1)
        if kind > (13 if version == _MODULE else 31):
            raise file.damaged(f"it has a section of the unknown kind {kind}")
        length, width = _leb128(file, at + 1)
        at += 1 + width + length
        if at > file.size:
            raise file.torn()
    raise file.damaged(f"it has more than {_MOST_SECTIONS} sections")


def _leb128(file: Window, at: int) -> tuple[int, int]:
    """An unsigned number of up to 32 bits at *at*, and how many bytes it takes."""
    value = 0
    for width, byte in enumerate(file.some(at, 5)):
        value |= (byte & 0x7F) << (7 * width)
        if not byte & 0x80:
            return value, width + 1
    raise file.torn()
