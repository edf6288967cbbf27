"""What is recognised as a kernel, and what is refused with which words."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.host.compute.unikernel.kernel import MULTIBOOT, MULTIBOOT2, Form, Kernel, Read, recognize
from lamella.model.errors import Unsupported


def reader(content: bytes) -> Read:
    return lambda offset, length: content[offset : offset + length]


def elf(*, bits: int = 64, notes: bytes = b"", machine: int | None = None, after: bytes = b"") -> bytes:
    """An ELF file with one program header, which is of notes."""
    machine = machine if machine is not None else (62 if bits == 64 else 3)
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1, 1]) + bytes(9)
    if bits == 64:
        head = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        table = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(notes), len(notes), 4)
    else:
        head = ident + struct.pack("<HHIIIIIHHHHHH", 2, machine, 1, 0, 52, 0, 0, 52, 32, 1, 0, 0, 0)
        table = struct.pack("<IIIIIIII", 4, 84, 0, 0, len(notes), len(notes), 4, 4)
    return head + table + notes + after


def note(name: bytes, kind: int, body: bytes) -> bytes:
    padded = name + bytes(-len(name) % 4)
    return struct.pack("<3I", len(name), len(body), kind) + padded + body + bytes(-len(body) % 4)


def multiboot(flags: int) -> bytes:
    return struct.pack("<3I", MULTIBOOT, flags, -(MULTIBOOT + flags) & 0xFFFFFFFF)


PVH = note(b"Xen\0", 18, struct.pack("<I", 0x100000))


@pytest.mark.parametrize("bits", [32, 64])
def test_a_pvh_note_among_others(bits: int) -> None:
    notes = note(b"GNU\0", 18, b"12345678") + note(b"Xen\0", 6, b"x") + PVH
    assert recognize(reader(elf(bits=bits, notes=notes))) == Kernel(form=Form.PVH, bits=bits, entry=0x100000)


def test_multiboot_as_elf_and_raw() -> None:
    assert recognize(reader(elf(bits=32, after=multiboot(3) + bytes(100)))).form is Form.MULTIBOOT
    raw = bytes(64) + multiboot(0x10003) + bytes(100)
    assert recognize(reader(raw)) == Kernel(form=Form.MULTIBOOT, bits=0)


def test_a_linux_kernel() -> None:
    assert recognize(reader(bytes(0x202) + b"HdrS" + bytes(100))).form is Form.LINUX


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "neither a PVH note"),
        (b"#!/bin/sh\n" * 100, "neither a PVH note"),
        (elf(), "64-bit ELF file is no kernel"),
        (elf(machine=183), "another processor"),
        (elf(after=multiboot(3) + bytes(100)), "64-bit ELF file, which QEMU does not load"),
        (elf(notes=PVH, after=multiboot(3) + bytes(100)), "even though it could be entered as PVH"),
        (bytes(16) + multiboot(3) + bytes(100), "without addresses"),
        (struct.pack("<4I", MULTIBOOT2, 0, 16, -(MULTIBOOT2 + 16) & 0xFFFFFFFF) + bytes(64), "multiboot 2"),
        (bytes(16) + struct.pack("<3I", MULTIBOOT, 3, 0) + bytes(100), "neither a PVH note"),
    ],
)
def test_what_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(Unsupported, match=words) as raised:
        recognize(reader(content))
    assert raised.value.hint


@settings(deadline=None)
@given(st.binary(max_size=4096), st.sampled_from([b"", elf(notes=PVH), elf(bits=32, notes=PVH)]))
def test_nothing_that_is_read_does_harm(tail: bytes, head: bytes) -> None:
    content = bytearray(head + tail)
    try:
        recognize(reader(bytes(content)))
    except Unsupported as error:
        assert error.message


@settings(deadline=None)
@given(st.data())
def test_torn_headers_do_no_harm(data: st.DataObject) -> None:
    content = bytearray(elf(notes=PVH * 3))
    for _ in range(4):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        recognize(reader(bytes(content[: data.draw(st.integers(0, len(content)))])))
    except Unsupported as error:
        assert error.message
