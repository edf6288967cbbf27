"""What a file is, told by its content and never by its name."""

from enum import StrEnum

from lamella.host.images.formats import elf, iso, qcow2, vdi, vhdx, vmdk, vpc, wasm
from lamella.host.images.formats.disk import DiskHeader, checked_size, encrypted
from lamella.host.images.formats.window import Window
from lamella.model.errors import Unsupported

_SECTOR = 512
_LINUX = b"HdrS"  # Documentation/x86/boot.rst: the setup header of a bzImage, at 0x202


class Form(StrEnum):
    """``ARCHIVE`` is whatever a tar reader has to judge."""

    DISK = "disk"
    CDROM = "cdrom"
    MODULE = "module"
    KERNEL = "kernel"
    OVF = "ovf"
    ARCHIVE = "archive"


def recognise(file: Window) -> Form:
    """What *file* seems to be; nothing is checked yet."""
    head = file.some(0, 4096)
    if head[257:262] == b"ustar":
        return Form.ARCHIVE
    if head.startswith(wasm.MAGIC):
        return Form.MODULE
    if head.startswith(elf.MAGIC):
        return Form.KERNEL
    if iso.is_iso(file):
        return Form.CDROM
    if _of_disk(file, head):
        return Form.DISK
    if elf.raw_kernel(file):
        return Form.KERNEL
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith((b"<?xml", b"<Envelope", b"<ovf:Envelope", b"<!--", b"<!DOCTYPE")):
        return Form.OVF
    return Form.ARCHIVE


def disk_header(file: Window) -> DiskHeader:
    """The header of the disk *file*, read and checked; a raw one has none.

    :raise Corrupt: when it is torn, contradicts itself or stands on other files.
    :raise Unsupported: when it is encrypted, too big, or of a kind that is not known here.
    """
    head = file.some(0, 4096)
    if head.startswith(qcow2.MAGIC):
        return qcow2.read(file)
    if head.startswith(vmdk.MAGIC):
        return vmdk.read(file)
    if head.startswith(b"COWD") or vmdk.is_descriptor(head):
        raise vmdk.refuse_descriptor(file)
    if head.startswith(vhdx.MAGIC):
        return vhdx.read(file)
    if _is_vdi(head):
        return vdi.read(file)
    if vpc.footer_at(file) is not None:
        return vpc.read(file)
    if head[0x202:0x206] == _LINUX and head[510:512] == b"\x55\xaa":
        raise Unsupported(
            f"{file.name} is a Linux kernel packed for a boot loader",
            hint="import its vmlinux, which has a PVH note, or a disk that it is on",
        )
    if head.startswith(b"LUKS\xba\xbe"):
        raise encrypted(file)
    if head.startswith(b"QED\0"):
        raise Unsupported(
            f"{file.name} is a disk of a kind that is not taken", hint="convert it: qemu-img convert -O qcow2"
        )
    return DiskHeader(driver="raw", size=checked_size(file, -(-file.size // _SECTOR) * _SECTOR))


def _of_disk(file: Window, head: bytes) -> bool:
    magics = (qcow2.MAGIC, vmdk.MAGIC, vhdx.MAGIC, b"COWD", b"LUKS\xba\xbe", b"QED\0")
    return (
        head.startswith(magics)
        or vmdk.is_descriptor(head)
        or _is_vdi(head)
        or head[510:512] == b"\x55\xaa"
        or head[512:520] == b"EFI PART"
        or vpc.footer_at(file) is not None
    )


def _is_vdi(head: bytes) -> bool:
    return int.from_bytes(head[vdi.SIGNATURE_AT : vdi.SIGNATURE_AT + 4], "little") == vdi.SIGNATURE
