"""The pure parts of a bootable disk: sectors, ids, boot code, inode times, and what mmdebstrap is told."""

import re
import struct
import uuid
import zlib
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.host.compute.guest.service import PATH
from lamella.host.images import bootable, bootable_ext4, bootable_layout, bootable_root, bytecode, debian
from lamella.host.images.bootable_layout import MIB, SECTOR
from lamella.model.errors import Internal, Unsupported

CONTENTS = st.integers(min_value=0, max_value=1 << 40)


@settings(deadline=None)
@given(content=CONTENTS, architecture=st.sampled_from(["amd64", "arm64"]))
def test_partitions_lie_apart_and_the_root_is_last_with_room(content: int, architecture: str) -> None:
    layout = bootable_layout.plan("sha256:aa", content, architecture)
    laid = sorted(layout.partitions, key=lambda part: part.start)
    assert all(part.start % MIB == 0 and part.size % MIB == 0 for part in laid)
    assert all(one.start + one.size <= other.start for one, other in pairwise(laid))
    assert laid[-1] is layout.root and laid[0].start >= MIB
    assert layout.root.size >= content * 5 // 4 + 256 * MIB
    assert layout.root.start + layout.root.size + 33 * SECTOR <= layout.size
    assert (layout.bios is not None) == (architecture == "amd64")


@settings(deadline=None)
@given(content=CONTENTS)
def test_every_id_follows_from_the_root_and_no_two_are_the_same(content: int) -> None:
    one, same, other = (bootable_layout.plan(name, content, "amd64") for name in ("a", "a", "b"))
    assert one == same
    ids = [one.identity, one.root_uuid, one.hash_seed, *(part.identity for part in one.partitions)]
    assert len(set(ids)) == len(ids)
    assert not set(ids) & {other.identity, other.root_uuid, other.hash_seed}


def test_the_table_says_where_the_partitions_are_twice() -> None:
    layout = bootable_layout.plan("sha256:aa", 700 * MIB, "amd64")
    front, back = bootable_layout.partition_table(layout)
    assert len(front) == 34 * SECTOR and len(back) == 33 * SECTOR
    assert front[510:512] == b"\x55\xaa" and front[450] == 0xEE
    headers = front[SECTOR : 2 * SECTOR], back[32 * SECTOR :]
    for header, entries in zip(headers, (front[2 * SECTOR :], back[: 32 * SECTOR]), strict=True):
        assert header[:8] == b"EFI PART"
        (told,) = struct.unpack_from("<I", header, 16)
        assert told == zlib.crc32(header[:16] + bytes(4) + header[20:92])
        assert struct.unpack_from("<I", header, 88)[0] == zlib.crc32(entries)
    here, other = struct.unpack_from("<QQ", headers[0], 24)
    assert (here, other) == (1, layout.size // SECTOR - 1)
    assert struct.unpack_from("<QQ", headers[1], 24) == (other, here)
    first, last = struct.unpack_from("<QQ", front, 2 * SECTOR + 32)
    assert (first * SECTOR, (last + 1 - first) * SECTOR) == (layout.root.start, layout.root.size)
    esp = front[2 * SECTOR + 14 * 128 :][:16]
    assert uuid.UUID(bytes_le=esp) == uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")


def test_the_boot_sector_keeps_the_table_and_names_its_successor() -> None:
    code = bytes(range(256)) + bytes(254) + b"\x55\xaa"
    master = bytes([0xAB]) * 510 + b"\x55\xaa"
    sector = bootable_layout.boot_sector(code, master, MIB)
    assert struct.unpack_from("<Q", sector, 0x5C)[0] == MIB // SECTOR
    assert sector[440:] == master[440:] and sector[:0x5C] == code[:0x5C]
    with pytest.raises(Internal, match="not a boot sector"):
        bootable_layout.boot_sector(code[:-1], master, MIB)


def test_the_core_image_loads_what_follows_it() -> None:
    core = bytearray(1500)
    struct.pack_into("<QHH", core, 500, 2, 2, 0x820)
    laid = bootable_layout.core_image(bytes(core), MIB)
    assert struct.unpack_from("<QHH", laid, 500) == (MIB // SECTOR + 1, 2, 0x820)
    for broken in (bytes(core[:600]), bytes(core) + bytes(SECTOR), bytes(1500)):
        with pytest.raises(Internal):
            bootable_layout.core_image(broken, MIB)


def crc32c(data: bytes, seed: int) -> int:
    """Bit by bit, as slow as it is plain."""
    for byte in data:
        seed ^= byte
        for _ in range(8):
            seed = seed >> 1 ^ (0x82F63B78 if seed & 1 else 0)
    return seed


def with_checksum(inode: bytearray, seed: int) -> bytes:
    inode[124:126] = inode[130:132] = b"\0\0"
    checksum = crc32c(bytes(inode), seed)
    struct.pack_into("<H", inode, 124, checksum & 0xFFFF)
    struct.pack_into("<H", inode, 130, checksum >> 16)
    return bytes(inode)


@settings(deadline=None, max_examples=50)
@given(data=st.binary(min_size=256, max_size=256), seed=st.integers(0, 0xFFFFFFFF), at=st.integers(0, 3))
def test_settled_inodes_bear_one_time_and_the_checksum_that_ext4_computes(data: bytes, seed: int, at: int) -> None:
    table = bytearray(1024)
    table[at * 256 : at * 256 + 256] = with_checksum(bytearray(data), seed)
    changed = bootable_ext4.settle_inode(table, at * 256)
    settled = table[at * 256 : at * 256 + 256]
    assert settled[8:12] == settled[12:16] == settled[16:20] == data[16:20]
    assert with_checksum(bytearray(settled), seed) == bytes(settled)
    assert changed == (data[8:16] != data[16:20] * 2)
    assert not bootable_ext4.settle_inode(table, at * 256)


def test_what_is_no_ext4_is_refused(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    with (tmp_path / "disk").open("rb") as file, pytest.raises(Internal, match="no ext4"):
        bootable_ext4.settle_times(file.fileno(), 0)


def test_modules_checked_by_hash_are_marked_by_time(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/python3/__pycache__"
    folder.mkdir(parents=True)
    source = folder.parent / "a.py"
    source.write_text("x = 1\n")
    magic = b"\xa7\r\r\n"
    (folder / "a.cpython-311.pyc").write_bytes(magic + struct.pack("<IQ", 3, 12345) + b"code")
    (folder / "b.cpython-311.pyc").write_bytes(magic + struct.pack("<IQ", 3, 12345))
    assert bytecode.mark(tmp_path, 1686355200) == 1
    assert (folder / "a.cpython-311.pyc").read_bytes() == magic + struct.pack("<III", 0, 1686355200, 6) + b"code"
    assert bytecode.mark(tmp_path, 1686355200) == 0
    assert bytecode.by_time(magic + bytes(12), 1, 1) is None


def test_a_disk_asks_for_more_packages_and_nothing_of_a_machine_that_was() -> None:
    wanted = debian.release("debian:13")
    hooks = bootable_root.hooks(Path("/s/e"), Path("/s/l"))
    told = debian.command(wanted, bootable_root.packages("arm64"), Path("/t"), "http://a", "http://s", [], hooks)
    (include,) = [word for word in told if word.startswith("--include=")]
    assert "linux-image-cloud-arm64" in include and "cloud-init" in include and "openssh-server" in include
    assert any("ssh_host_" in word and "rm -f" in word for word in told)
    assert any("passwd" in word and "--lock root" in word for word in told)
    assert not any(word.startswith("--essential-hook") for word in debian.command(wanted, [], Path("/t"), "a", "s", []))


def test_settings_are_laid_out_with_modes_that_no_umask_changes(tmp_path: Path) -> None:
    bootable_root.write([*bootable_root.early_files(), *bootable_root.late_files()], tmp_path / "tree")
    tree = tmp_path / "tree"
    assert (tree / "etc/machine-id").read_bytes() == b""
    assert "NoCloud, None" in (tree / "etc/cloud/cloud.cfg.d/91-lamella-datasource.cfg").read_text()
    assert (tree / "etc/initramfs-tools/hooks/lamella").stat().st_mode & 0o777 == 0o755
    assert (tree / "etc/systemd/system/apt-daily.timer").readlink() == Path("/dev/null")
    assert all(path.stat().st_mode & 0o777 == 0o755 for path in tree.rglob("*") if path.is_dir())
    assert not (tree / PATH.lstrip("/")).exists()


def test_grub_goes_on_with_what_the_root_says_of_its_own_uuid() -> None:
    layout = bootable_layout.plan("sha256:aa", 0, "amd64")
    settings = bootable.loader_settings(layout)
    assert f"search.fs_uuid {layout.root_uuid} root" in settings
    (grub,) = [file for file in bootable_root.late_files() if file.path == "/boot/grub/grub.cfg"]
    variables = set(re.findall(r"\$(\w+)", grub.content.decode()))
    assert variables == {"lamella_root", "arguments"}


def test_an_architecture_without_loaders_is_refused() -> None:
    with pytest.raises(Unsupported, match="riscv64"):
        bootable.check_tools("riscv64")
