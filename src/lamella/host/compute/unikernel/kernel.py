"""What kind of kernel a file holds, found out as QEMU's loader does it, so that what cannot boot is refused with a reason. Pure.

Sources: hw/i386/x86.c and hw/i386/multiboot.c of QEMU 7.2 (a Linux header is looked for first, then multiboot, then PVH);
the Multiboot Specification 0.6.96 section 3.1; Xen's ``include/public/elfnote.h`` and ``docs/misc/pvh.pandoc``.
"""

import struct
from collections.abc import Callable
from enum import StrEnum

import msgspec

from lamella.model.errors import Unsupported

MULTIBOOT = 0x1BADB002
MULTIBOOT2 = 0xE85250D6
_SEARCHED = 8192
_HAS_ADDRESSES = 1 << 16

_LINUX_MAGIC = (0x202, b"HdrS")
_X86_64, _I386 = 62, 3
_PT_NOTE = 4
_PHYS32_ENTRY = 18
_MOST_HEADERS = 128
_MOST_NOTES = 1 << 16

Read = Callable[[int, int], bytes]


class Form(StrEnum):
    """How a kernel is entered. ``multiboot`` in 32-bit mode by the Multiboot Specification 1, ELF or raw; ``pvh`` in 32-bit mode as Xen
    and Firecracker do it, ELF; ``linux`` by the Linux boot protocol (a bzImage)."""

    MULTIBOOT = "multiboot"
    PVH = "pvh"
    LINUX = "linux"


class Kernel(msgspec.Struct, kw_only=True, frozen=True):
    """``bits`` is 32 or 64 for ELF, 0 for what is raw. ``entry`` is where a PVH kernel is entered."""

    form: Form
    bits: int = 0
    entry: int | None = None


def recognize(read: Read) -> Kernel:
    """The kernel whose bytes *read* gives, as ``read(offset, length)``: fewer at the end of the file.

    :raise Unsupported: when QEMU's loader cannot start it; the sentence says why, and the hint what would do.
    """
    head = read(0, _SEARCHED)
    bits = _elf_bits(head)
    at, magic = _LINUX_MAGIC
    if head[at : at + 4] == magic:
        return Kernel(form=Form.LINUX)
    flags = _multiboot_flags(head)
    entry = _pvh_entry(read, head, bits) if bits else None
    if flags is not None:
        if flags & _HAS_ADDRESSES:
            return Kernel(form=Form.MULTIBOOT, bits=bits)
        if bits == 64:
            raise Unsupported(
                "the kernel has a multiboot header in a 64-bit ELF file, which QEMU does not load"
                + (" even though it could be entered as PVH: it looks at the multiboot header first" if entry else ""),
                hint="leave the multiboot header out and use PVH, or make it a 32-bit ELF file (objcopy -O elf32-i386)",
            )
        if bits == 32:
            return Kernel(form=Form.MULTIBOOT, bits=32)
        raise Unsupported(
            "the kernel has a multiboot header without addresses, and is not an ELF file that would tell them",
            hint="set bit 16 of the header's flags and fill in its addresses, or link it as ELF",
        )
    if entry is not None:
        return Kernel(form=Form.PVH, bits=bits, entry=entry)
    if _has_multiboot2(read(0, 32768)):
        raise Unsupported(
            "the kernel has a multiboot 2 header only, and QEMU loads version 1",
            hint="give it a PVH note (XEN_ELFNOTE_PHYS32_ENTRY) or a multiboot 1 header, or boot it from a disk with GRUB as a vm",
        )
    raise Unsupported(
        f"this {f'{bits}-bit ELF file' if bits else 'file'} is no kernel that can be started directly: it has neither a PVH note "
        "nor a multiboot header nor a Linux boot header",
        hint="link an ELF note of the name Xen and the type 18 (XEN_ELFNOTE_PHYS32_ENTRY) into it",
    )


def _elf_bits(head: bytes) -> int:
    """32 or 64; 0 when it is not an ELF file.

    :raise Unsupported: when it is one for another processor.
    """
    if len(head) < 52 or head[:4] != b"\x7fELF":
        return 0
    bits = {1: 32, 2: 64}.get(head[4], 0)
    machine = struct.unpack_from("<H", head, 18)[0]
    if head[5] != 1 or not bits or machine not in (_X86_64, _I386):
        raise Unsupported(
            f"the kernel is an ELF file for another processor (machine {machine})", hint="build it for x86"
        )
    return bits


def _multiboot_flags(head: bytes) -> int | None:
    for offset in range(0, min(len(head), _SEARCHED) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<3I", head, offset)
        if magic == MULTIBOOT and (magic + flags + checksum) & 0xFFFFFFFF == 0 and offset < _SEARCHED - 48:
            return flags
    return None


def _has_multiboot2(head: bytes) -> bool:
    for offset in range(0, len(head) - 15, 8):
        magic, architecture, length, checksum = struct.unpack_from("<4I", head, offset)
        if magic == MULTIBOOT2 and (magic + architecture + length + checksum) & 0xFFFFFFFF == 0:
            return True
    return False


def _pvh_entry(read: Read, head: bytes, bits: int) -> int | None:
    """What the note XEN_ELFNOTE_PHYS32_ENTRY holds."""
    if bits == 64 and len(head) >= 64:
        table = struct.unpack_from("<Q", head, 32)[0]
        size, count = struct.unpack_from("<HH", head, 54)
    elif bits == 32:
        table = struct.unpack_from("<I", head, 28)[0]
        size, count = struct.unpack_from("<HH", head, 42)
    else:
        return None
    least = 56 if bits == 64 else 32
    if size < least:
        return None
    for number in range(min(count, _MOST_HEADERS)):
        header = read(table + number * size, least)
        if len(header) < least:
            return None
        kind = struct.unpack_from("<I", header, 0)[0]
        if kind != _PT_NOTE:
            continue
        if bits == 64:
            offset, length = struct.unpack_from("<Q", header, 8)[0], struct.unpack_from("<Q", header, 32)[0]
        else:
            offset, length = struct.unpack_from("<I", header, 4)[0], struct.unpack_from("<I", header, 16)[0]
        if (entry := _entry_note(read(offset, min(length, _MOST_NOTES)))) is not None:
            return entry
    return None


def _entry_note(notes: bytes) -> int | None:
    position = 0
    while position + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<3I", notes, position)
        name = position + 12
        body = name + (name_size + 3) // 4 * 4
        if body + size > len(notes):
            return None
        if kind == _PHYS32_ENTRY and notes[name : name + name_size] == b"Xen\0" and size in (4, 8):
            return int.from_bytes(notes[body : body + size], "little")
        position = body + (size + 3) // 4 * 4
    return None
