"""Headers of disks: what qemu-img writes is read right, and whatever is done to it, a reader answers or refuses in words."""

import functools
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.host.images.formats import elf, iso, wasm
from lamella.host.images.formats.disk import LARGEST_DISK
from lamella.host.images.formats.recognise import Form, disk_header, recognise
from lamella.host.images.formats.window import Window
from lamella.model.errors import Corrupt, LamellaError, Unsupported

SIZE = 3 << 20
MADE = {
    "qcow2": ["-f", "qcow2"],
    "qcow2-old": ["-f", "qcow2", "-o", "compat=0.10"],
    "qcow2-extended": ["-f", "qcow2", "-o", "extended_l2=on"],
    "vmdk": ["-f", "vmdk"],
    "vmdk-stream": ["-f", "vmdk", "-o", "subformat=streamOptimized"],
    "vdi": ["-f", "vdi"],
    "vhdx": ["-f", "vhdx"],
    "vpc": ["-f", "vpc", "-o", "force_size=on"],
    "vpc-fixed": ["-f", "vpc", "-o", "subformat=fixed,force_size=on"],
}
DRIVERS = {name: name.partition("-")[0] for name in MADE}


@functools.cache
def made(name: str) -> bytes:
    """An empty disk as qemu-img makes it; a stream is finished only by a conversion."""
    with tempfile.TemporaryDirectory() as folder:
        raw, path = Path(folder, "raw"), Path(folder, "disk")
        raw.write_bytes(bytes(510) + b"\x55\xaa" + bytes(SIZE - 512))
        options = ["-O" if part == "-f" else part for part in MADE[name]]
        subprocess.run(["qemu-img", "convert", "-f", "raw", *options, raw, path], check=True, capture_output=True)
        return path.read_bytes()


def window(data: bytes) -> Window:
    return Window.of_bytes(data, "disk")


def patched(data: bytes, offset: int, form: str, *values: int) -> Window:
    changed = bytearray(data)
    struct.pack_into(form, changed, offset, *values)
    return window(bytes(changed))


@pytest.mark.parametrize("name", MADE)
def test_what_qemu_img_makes(name: str) -> None:
    file = window(made(name))
    assert recognise(file) is Form.DISK
    header = disk_header(file)
    assert (header.driver, header.size) == (DRIVERS[name], SIZE)


@pytest.mark.parametrize("name", [name for name in MADE if name != "vpc-fixed"])
def test_torn(name: str) -> None:
    """A fixed VHD is a raw disk with a footer: cut, it is a raw disk."""
    data = made(name)
    for length in (100, 400 if name == "vdi" else 600):
        cut = window(data[:length])
        assert recognise(cut) is Form.DISK
        with pytest.raises(Corrupt):
            disk_header(cut)


@pytest.mark.parametrize("name", MADE)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_damage_never_surprises(name: str, data: st.DataObject) -> None:
    """Bytes of the headers changed anywhere, cut anywhere: a header within bounds comes out, or an error of ours."""
    whole = bytearray(made(name))
    places = (
        st.integers(0, 1024)
        if "vhdx" not in name
        else st.sampled_from([0, 64 << 10, 128 << 10, 192 << 10, 256 << 10, 2 << 20])
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(places) + data.draw(st.integers(0, 120))
        value = data.draw(st.binary(min_size=1, max_size=8))
        end = data.draw(st.booleans()) and name.startswith(("vpc", "vmdk"))
        at = max(len(whole) - 1536, 0) + at % 1500 if end else at
        whole[at : at + len(value)] = value
    cut = data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))
    file = window(bytes(whole[:cut]))
    try:
        recognise(file)
        header = disk_header(file)
    except LamellaError as error:
        assert error.message and error.hint
    else:
        assert 0 < header.size <= LARGEST_DISK and header.size % 512 == 0


MAGICS = [
    b"",
    b"QFI\xfb\0\0\0\3",
    b"KDMV",
    b"vhdxfile",
    b"conectix",
    b"\x7fELF",
    b"\0asm\1\0\0\0",
    bytes(64) + b"\x7f\x10\xda\xbe",
]


@given(st.binary(max_size=2048), st.sampled_from(MAGICS))
@settings(max_examples=500, deadline=None)
def test_anything_at_all(tail: bytes, head: bytes) -> None:
    file = window(head + tail)
    readers = (recognise, disk_header, wasm.check, elf.read, iso.check)
    for reader in readers:
        try:
            reader(file)
        except LamellaError as error:
            assert error.message and error.hint


@given(st.integers(0, 5000), st.integers(0, (1 << 64) - 1))
@settings(max_examples=200, deadline=None)
def test_window_never_reads_beyond(offset: int, length: int) -> None:
    file = window(bytes(4096))
    if offset + length <= 4096:
        assert len(file.at(offset, length)) == length
    else:
        with pytest.raises(Corrupt):
            file.at(offset, length)


REFUSED = {
    "backing file": ("qcow2", 8, ">QI", (0x200, 5), Corrupt, "backing file"),
    "length of a backing file's name alone": ("qcow2", 16, ">I", (5,), Corrupt, "backing file"),
    "data file": ("qcow2", 72, ">Q", (4,), Corrupt, "data file"),
    "unknown feature": ("qcow2", 72, ">Q", (1 << 40,), Unsupported, "not known here"),
    "marked corrupt": ("qcow2", 72, ">Q", (2,), Corrupt, "marked"),
    "encrypted": ("qcow2", 32, ">I", (2,), Unsupported, "encrypted"),
    "absurd size": ("qcow2", 24, ">Q", (1 << 62,), Unsupported, "at most"),
    "nothing": ("qcow2", 24, ">Q", (0,), Corrupt, "0 bytes"),
    "absurd clusters": ("qcow2", 20, ">I", (40,), Corrupt, "clusters"),
    "absurd table": ("qcow2", 36, ">I", (0xFFFFFFFF,), Corrupt, "table"),
    "table elsewhere": ("qcow2", 40, ">Q", (1 << 40,), Corrupt, "ends before"),
    "table too small": ("qcow2", 24, ">Q", (1 << 42,), Corrupt, "table"),
    "qcow 1": ("qcow2", 4, ">I", (1,), Unsupported, "version 1"),
    "vmdk of absurd size": ("vmdk", 12, "<Q", (1 << 50,), Unsupported, "at most"),
    "vmdk of absurd grains": ("vmdk", 20, "<Q", (1 << 40,), Corrupt, "grains"),
    "vmdk without size": ("vmdk", 12, "<Q", (0,), Corrupt, "other files"),
    "vmdk whose directory is elsewhere": ("vmdk", 56, "<Q", (1 << 50,), Corrupt, "ends before"),
    "vmdk copied as text": ("vmdk", 73, "<I", (0x0A0A0D0A,), Corrupt, "line ends"),
    "vdi snapshot": ("vdi", 0x4C, "<I", (4,), Corrupt, "snapshot"),
    "vdi with a parent": ("vdi", 0x1B8, "<I", (7,), Corrupt, "snapshot"),
    "vdi of absurd blocks": ("vdi", 0x180, "<I", (1,), Corrupt, "table"),
    "vdi of absurd size": ("vdi", 0x170, "<Q", (1 << 60,), Unsupported, "at most"),
    "vpc with a wrong sum": ("vpc-fixed", SIZE + 64, ">I", (1,), Corrupt, "checksum"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    name, offset, form, values, kind, words = REFUSED[case]
    with pytest.raises(kind, match=words) as refused:
        disk_header(patched(made(name), offset, form, *values))
    assert refused.value.hint


@pytest.mark.parametrize(
    "line",
    [b'RW 4096 FLAT "/etc/passwd" 0\n', b'RW 4096 SPARSE "../other.vmdk"\n', b'RW 4096 SPARSE "a.vmdk"\nRW 4096 SPARSE "b.vmdk"\n',
     b'RW 4096 VMFSRDM "/dev/sda"\n', b'parentFileNameHint="base.vmdk"\n', b"parentCID=12345678\n"],
)  # fmt: skip
def test_descriptors_that_lead_elsewhere(line: bytes) -> None:
    data = bytearray(made("vmdk"))
    at = data.index(b"# Extent description")
    end = data.index(b"\0", at)
    text = bytes(data[at:end]).split(b"\n", 2)
    kept = text[1] + b"\n" if line.startswith((b"parent", b"P")) else b""
    changed = b"\n".join([text[0], kept + line, text[2]])
    data[at : at + len(changed)] = changed
    with pytest.raises(Corrupt):
        disk_header(window(bytes(data)))


def test_descriptor_files_and_old_ones() -> None:
    for data in (b'# Disk DescriptorFile\nversion=1\nRW 63 FLAT "/etc/shadow" 0\n', b"COWD" + bytes(600)):
        assert recognise(window(data)) is Form.DISK
        with pytest.raises(Corrupt, match="in other files"):
            disk_header(window(data))


def test_raw_disks() -> None:
    mbr = bytes(510) + b"\x55\xaa" + bytes(1000)
    assert recognise(window(mbr)) is Form.DISK and disk_header(window(mbr)).size == 1536
    assert recognise(window(bytes(512) + b"EFI PART" + bytes(1000))) is Form.DISK
    assert recognise(window(bytes(4096))) is Form.ARCHIVE
    linux = bytearray(mbr)
    linux[0x202:0x206] = b"HdrS"
    with pytest.raises(Unsupported, match="boot loader"):
        disk_header(window(bytes(linux)))
