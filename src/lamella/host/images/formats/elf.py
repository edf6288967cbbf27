"""Kernels that QEMU starts without firmware's help: ELF with a PVH note, and files with a multiboot header.

System V ABI, chapters 4 and 5; Xen's public/elfnote.h (PHYS32_ENTRY); Multiboot 0.6.96; Multiboot2 2.0.
"""

from collections.abc import Iterator
from enum import StrEnum

from lamella.host.images.formats.window import Window
from lamella.model.errors import Unsupported

MAGIC = b"\x7fELF"
LARGEST_KERNEL = 1 << 30
_I386, _X86_64 = 3, 62
_LOAD, _NOTE = 1, 4
_PHYS32_ENTRY = 18
_MOST_SEGMENTS = 128
_LARGEST_NOTES = 1 << 20
_AOUT_KLUDGE = 1 << 16


class KernelKind(StrEnum):
    """How the kernel wants to be entered."""

    PVH = "pvh"
    MULTIBOOT = "multiboot"
    MULTIBOOT2 = "multiboot2"


def read(file: Window) -> KernelKind:
    """How the ELF file wants to be started.

    :raise Unsupported: when it is no kernel, or for another machine.
    :raise Corrupt: when it is torn.
    """
    wide = file.number(4, 1) == 2
    if file.number(4, 1) not in (1, 2) or file.number(5, 1) != 1 or file.number(18, 2) not in (_I386, _X86_64):
        raise Unsupported(f"{file.name} is ELF for another machine", hint="build it for x86-64 or i386")
    if file.number(16, 2) not in (2, 3):
        raise _no_kernel(file)
    kinds = [KernelKind.PVH] if any(_has_entry(file, *note) for note in _segments(file, wide)) else []
    kinds += _multiboot(file)
    if not kinds:
        raise _no_kernel(file)
    return kinds[0]


def raw_kernel(file: Window) -> bool:
    """Whether it is a kernel that is not ELF: a multiboot header that says itself where everything is loaded to."""
    found = _header(file, 8192, 4, 0x1BADB002, 3)
    return found is not None and bool(file.number(found + 4, 4) & _AOUT_KLUDGE)


def _segments(file: Window, wide: bool) -> Iterator[tuple[int, int]]:
    """Offset and size of every segment of notes; all segments are in the file."""
    table = file.number(32, 8) if wide else file.number(28, 4)
    width, count = (file.number(54, 2), file.number(56, 2)) if wide else (file.number(42, 2), file.number(44, 2))
    if count > _MOST_SEGMENTS or width < (56 if wide else 32):
        raise file.damaged(f"it has {count} segments")
    for number in range(count):
        at = table + number * width
        kind = file.number(at, 4)
        offset, size = (
            (file.number(at + 8, 8), file.number(at + 32, 8))
            if wide
            else (file.number(at + 4, 4), file.number(at + 16, 4))
        )
        if kind in (_LOAD, _NOTE) and offset + size > file.size:
            raise file.torn()
        if kind == _NOTE:
            yield offset, size


def _has_entry(file: Window, offset: int, size: int) -> bool:
    """Whether the notes there hold the entry point of a PVH guest."""
    notes = file.at(offset, min(size, _LARGEST_NOTES))
    at = 0
    while at + 12 <= len(notes):
        name, data, kind = (int.from_bytes(notes[at + n : at + n + 4], "little") for n in (0, 4, 8))
        if kind == _PHYS32_ENTRY and notes[at + 12 : at + 12 + name].rstrip(b"\0") == b"Xen" and data in (4, 8):
            return True
        at += 12 + -(-name // 4) * 4 + -(-data // 4) * 4
    return False


def _multiboot(file: Window) -> list[KernelKind]:
    first = [KernelKind.MULTIBOOT] if _header(file, 8192, 4, 0x1BADB002, 3) is not None else []
    return first + ([KernelKind.MULTIBOOT2] if _header(file, 32768, 8, 0xE85250D6, 4) is not None else [])


def _header(file: Window, within: int, step: int, magic: int, words: int) -> int | None:
    """Where the first *within* bytes hold *magic*, on a multiple of *step*, and *words* numbers from there add up to zero."""
    data = file.some(0, within)
    wanted = magic.to_bytes(4, "little")
    at = data.find(wanted)
    while at >= 0:
        numbers = [int.from_bytes(data[at + 4 * n : at + 4 * n + 4], "little") for n in range(words)]
        if at % step == 0 and at + 4 * words <= len(data) and sum(numbers) & 0xFFFFFFFF == 0:
            return at
        at = data.find(wanted, at + 1)
    return None


def _no_kernel(file: Window) -> Unsupported:
    return Unsupported(
        f"{file.name} is an ELF program, not a kernel",
        hint="a kernel has a PVH note or a multiboot header; a program runs in a container",
    )
