"""What is no disk: kernels, modules and CDs, told from programs and from what is cut short."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.host.images.formats import elf, iso, wasm
from lamella.host.images.formats.elf import KernelKind
from lamella.host.images.formats.recognise import Form, recognise
from lamella.host.images.formats.window import Window
from lamella.model.errors import Corrupt, LamellaError, Unsupported


def window(data: bytes) -> Window:
    return Window.of_bytes(data, "file")


def note(name: bytes = b"Xen\0", kind: int = 18, data: bytes = bytes(4)) -> bytes:
    return struct.pack("<III", len(name), len(data), kind) + name + data


def kernel(notes: bytes = b"", body: bytes = b"", *, machine: int = 62, wide: bool = True) -> bytes:
    """An ELF file of one segment of notes, with *body* behind it."""
    width = 56 if wide else 32
    start = 64 + width if wide else 52 + width
    head = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9) + struct.pack("<HHI", 2, machine, 1)
    if wide:
        head += struct.pack("<QQQIHHHHHH", 0x100000, 64, 0, 0, 64, width, 1, 0, 0, 0)
        segment = struct.pack("<IIQQQQQQ", 4, 4, start, 0, 0, len(notes), len(notes), 4)
    else:
        head += struct.pack("<IIIIHHHHHH", 0x100000, 52, 0, 0, 52, width, 1, 0, 0, 0)
        segment = struct.pack("<IIIIIIII", 4, start, 0, 0, len(notes), len(notes), 4, 4)
    return head + segment + notes + body


MULTIBOOT = struct.pack("<III", 0x1BADB002, 3, -(0x1BADB002 + 3) & 0xFFFFFFFF)
MULTIBOOT2 = struct.pack("<IIII", 0xE85250D6, 0, 16, -(0xE85250D6 + 16) & 0xFFFFFFFF)


@pytest.mark.parametrize("wide", [True, False])
def test_kernels(wide: bool) -> None:
    machine = 62 if wide else 3
    made = {
        KernelKind.PVH: kernel(note(b"GNU\0", 1) + note(), machine=machine, wide=wide),
        KernelKind.MULTIBOOT: kernel(body=bytes(-len(kernel(wide=wide)) % 8) + MULTIBOOT, machine=machine, wide=wide),
        KernelKind.MULTIBOOT2: kernel(body=bytes(-len(kernel(wide=wide)) % 8) + MULTIBOOT2, machine=machine, wide=wide),
    }
    for kind, data in made.items():
        assert recognise(window(data)) is Form.KERNEL
        assert elf.read(window(data)) is kind


def test_programs_are_not_kernels() -> None:
    for data in (kernel(), kernel(note(b"Xen\0", 5)), kernel(note(b"Zen\0")), kernel(body=b"\xd6\x50\x52\xe8" * 9)):
        with pytest.raises(Unsupported, match="not a kernel"):
            elf.read(window(data))
    with pytest.raises(Unsupported, match="another machine"):
        elf.read(window(kernel(note(), machine=183)))
    with pytest.raises(Corrupt, match="ends before"):
        elf.read(window(kernel(note() * 10)[:-30]))


def test_raw_multiboot() -> None:
    flags = 3 | 1 << 16
    header = struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF)
    assert recognise(window(bytes(64) + header + bytes(900))) is Form.KERNEL
    assert recognise(window(bytes(64) + MULTIBOOT + bytes(900))) is Form.ARCHIVE


@given(st.binary(max_size=200), st.booleans(), st.integers(0, 119), st.binary(min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_damaged_kernels(body: bytes, wide: bool, at: int, value: bytes) -> None:
    data = bytearray(kernel(note() * 2, body, wide=wide))
    data[at : at + len(value)] = value
    try:
        elf.read(window(bytes(data)))
    except LamellaError as error:
        assert error.message and error.hint


def section(kind: int, data: bytes) -> bytes:
    length, out = len(data), bytes([kind])
    while length >= 0x80:
        out += bytes([length & 0x7F | 0x80])
        length >>= 7
    return out + bytes([length]) + data


@given(st.lists(st.tuples(st.integers(0, 12), st.binary(max_size=300)), max_size=6), st.booleans())
def test_modules(sections: list[tuple[int, bytes]], component: bool) -> None:
    """Every whole one is taken, every cut inside a section refused."""
    data = b"\0asm" + (b"\x0d\0\x01\0" if component else b"\x01\0\0\0")
    ends = {len(data)}
    for kind, body in sections:
        data += section(kind, body)
        ends.add(len(data))
    assert recognise(window(data)) is Form.MODULE
    wasm.check(window(data))
    for length in range(8, len(data)):
        if length not in ends:
            with pytest.raises(Corrupt):
                wasm.check(window(data[:length]))


def test_modules_of_other_times() -> None:
    with pytest.raises(Unsupported, match="unknown version"):
        wasm.check(window(b"\0asm\x02\0\0\0"))
    with pytest.raises(Corrupt, match="unknown kind"):
        wasm.check(window(b"\0asm\x01\0\0\0" + section(99, b"")))
    with pytest.raises(Corrupt):
        wasm.check(window(b"\0asm\x01\0\0\0\0\xff\xff\xff\xff\xff\x01"))


def cd(blocks: int, size: int) -> bytes:
    primary = bytearray(2048)
    primary[:7] = b"\1CD001\1"
    struct.pack_into("<I", primary, 80, blocks)
    struct.pack_into(">I", primary, 84, blocks)
    struct.pack_into("<H", primary, 128, 2048)
    struct.pack_into(">H", primary, 130, 2048)
    return (bytes(32768) + bytes(primary) + b"\xffCD001\1" + bytes(2041)).ljust(size, b"\0")


def test_cds() -> None:
    whole = cd(200, 200 * 2048)
    assert recognise(window(whole)) is Form.CDROM
    iso.check(window(whole))
    hybrid = whole[:510] + b"\x55\xaa" + whole[512:]
    assert recognise(window(hybrid)) is Form.CDROM
    with pytest.raises(Corrupt, match="ends before"):
        iso.check(window(cd(2000, 200 * 2048)))
    with pytest.raises(Corrupt, match="order of their bytes"):
        iso.check(window(whole[: 32768 + 80] + b"\1" + whole[32768 + 81 :]))
    with pytest.raises(Corrupt, match="no primary"):
        iso.check(window(whole[:32768] + b"\2" + whole[32769:]))
    udf = bytearray(600 << 10)
    udf[32769:32774], udf[32768 + 2049 : 32768 + 2054] = b"BEA01", b"NSR03"
    assert recognise(window(bytes(udf))) is Form.CDROM
    with pytest.raises(Corrupt, match="no anchor"):
        iso.check(window(bytes(udf)))
    udf[256 * 2048] = 2
    iso.check(window(bytes(udf)))
