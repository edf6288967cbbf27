"""The sectors of a bootable disk: where its partitions lie, its partition table, and the code that a BIOS starts.

Partition 1 is the root and the last on the disk, so that it grows with it; 14 holds GRUB for a BIOS and 15 is the EFI system
partition, as on Debian's own cloud images. Facts: UEFI specification 2.10, section 5 (GPT); GRUB 2.06, boot.S and diskboot.S.
"""

import struct
import uuid
import zlib

import msgspec

from lamella.model.errors import Internal

SECTOR = 512
MIB = 1 << 20
_BIOS_START, _ESP_START, _ROOT_START = 1 * MIB, 4 * MIB, 36 * MIB
_GRAIN = 64 * MIB
_LEAST_ROOT = 1536 * MIB
_ENTRIES, _ENTRY_SIZE = 128, 128
_TABLE_SECTORS = _ENTRIES * _ENTRY_SIZE // SECTOR
_TAIL = MIB

_BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
_EFI_SYSTEM = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_ROOTS = {
    "amd64": uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
    "arm64": uuid.UUID("b921b045-1df0-41c3-af44-4c6f280d3fae"),
}
_NAMES = uuid.UUID("6b5f0f5e-0c84-5f0e-9f6c-6c616d656c61")

# Offsets in GRUB's boot.img and in the first sector of its core image.
_CODE_END = 440
_KERNEL_SECTOR = 0x5C
_BLOCK_LIST = SECTOR - 12


class Partition(msgspec.Struct, kw_only=True, frozen=True):
    """``start`` and ``size`` are bytes, whole sectors."""

    number: int
    name: str
    kind: uuid.UUID
    identity: uuid.UUID
    start: int
    size: int


class Layout(msgspec.Struct, kw_only=True, frozen=True):
    """A disk of ``size`` bytes. ``bios`` is absent where there is no BIOS (arm64)."""

    size: int
    identity: uuid.UUID
    root: Partition
    efi: Partition
    bios: Partition | None
    root_uuid: uuid.UUID
    hash_seed: uuid.UUID
    volume_id: int

    @property
    def partitions(self) -> list[Partition]:
        return [part for part in (self.root, self.bios, self.efi) if part is not None]


def plan(identity: str, content: int, architecture: str) -> Layout:
    """The layout for a root of *content* bytes, whose every id follows from *identity*: the same root, the same disk."""

    def named(what: str) -> uuid.UUID:
        return uuid.uuid5(_NAMES, f"{identity} {what}")

    # ext4's tables and journal, and room to boot and to log where nobody makes the disk larger.
    wanted = content * 5 // 4 + 256 * MIB
    size = max(_LEAST_ROOT, -(-wanted // _GRAIN) * _GRAIN)
    bios = Partition(
        number=14,
        name="bios",
        kind=_BIOS_BOOT,
        identity=named("bios"),
        start=_BIOS_START,
        size=_ESP_START - _BIOS_START,
    )
    return Layout(
        size=_ROOT_START + size + _TAIL,
        identity=named("disk"),
        root=Partition(
            number=1, name="root", kind=_ROOTS[architecture], identity=named("root"), start=_ROOT_START, size=size
        ),
        efi=Partition(
            number=15,
            name="efi",
            kind=_EFI_SYSTEM,
            identity=named("efi"),
            start=_ESP_START,
            size=_ROOT_START - _ESP_START,
        ),
        bios=bios if architecture == "amd64" else None,
        root_uuid=named("filesystem"),
        hash_seed=named("hash seed"),
        volume_id=named("volume").int & 0xFFFFFFFF,
    )


def partition_table(layout: Layout) -> tuple[bytes, bytes]:
    """The first 34 sectors of the disk, and its last 33: protective MBR, GPT, and GPT's copy."""
    sectors = layout.size // SECTOR
    table = bytearray(_ENTRIES * _ENTRY_SIZE)
    for part in layout.partitions:
        first = part.start // SECTOR
        struct.pack_into(
            "<16s16sQQQ72s",
            table,
            (part.number - 1) * _ENTRY_SIZE,
            part.kind.bytes_le,
            part.identity.bytes_le,
            first,
            first + part.size // SECTOR - 1,
            0,
            part.name.encode("utf-16-le"),
        )
    master = bytearray(SECTOR)
    struct.pack_into(
        "<B3sB3sII", master, 446, 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF)
    )
    master[510:] = b"\x55\xaa"
    front = _header(layout, bytes(table), here=1, other=sectors - 1, entries=2)
    back = _header(layout, bytes(table), here=sectors - 1, other=1, entries=sectors - 1 - _TABLE_SECTORS)
    return bytes(master) + front + bytes(table), bytes(table) + back


def _header(layout: Layout, table: bytes, *, here: int, other: int, entries: int) -> bytes:
    last = layout.size // SECTOR - 2 - _TABLE_SECTORS

    def packed(checksum: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            b"EFI PART",
            0x00010000,
            92,
            checksum,
            0,
            here,
            other,
            2 + _TABLE_SECTORS,
            last,
            layout.identity.bytes_le,
            entries,
            _ENTRIES,
            _ENTRY_SIZE,
            zlib.crc32(table),
        )

    return packed(zlib.crc32(packed(0))).ljust(SECTOR, b"\0")


def boot_sector(code: bytes, master: bytes, start: int) -> bytes:
    """*master* (512 bytes) with the code of GRUB's ``boot.img``, which reads one sector from byte *start* of the disk and jumps there.

    :raise Internal: when *code* is not 512 bytes that end as a boot sector does.
    """
    if len(code) != SECTOR or code[510:] != b"\x55\xaa":
        raise Internal("boot.img of GRUB is not a boot sector", hint="reinstall grub-pc-bin")
    patched = bytearray(code[:_CODE_END] + master[_CODE_END:])
    struct.pack_into("<Q", patched, _KERNEL_SECTOR, start // SECTOR)
    return bytes(patched)


def core_image(core: bytes, start: int) -> bytes:
    """GRUB's core image as it lies from byte *start* of the disk on: its first sector loads the others, which follow at once.

    :raise Internal: when it does not look like one.
    """
    sectors = -(-len(core) // SECTOR) - 1
    if len(core) < 2 * SECTOR:
        raise Internal("grub-mkimage made an image too short to start", hint="reinstall grub-pc-bin")
    first, count, segment = struct.unpack_from("<QHH", core, _BLOCK_LIST)
    if (first, count, segment) != (2, sectors, 0x820):
        raise Internal("grub-mkimage made an image of an unknown form", hint="reinstall grub-pc-bin")
    patched = bytearray(core)
    struct.pack_into("<Q", patched, _BLOCK_LIST, start // SECTOR + 1)
    return bytes(patched)
