"""What the boot files are made of: the archive's layout, a module's needs, the package behind the metapackage."""

import lzma
from pathlib import Path

import pytest
import zstandard

from lamella.host.compute.microvm import initramfs
from lamella.host.compute.microvm.kernel import kernel_tree, real_package
from lamella.host.compute.microvm.modules import ModuleTree, dependencies, unpacked
from lamella.model.errors import Unavailable


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content by name, read as Linux reads it."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        values = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = archive[at + 110 : at + 110 + values[11] - 1].decode()
        start = (at + 110 + values[11] + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (values[1], archive[start : start + values[6]])
        at = (start + values[6] + 3) & ~3


def test_an_archive_holds_what_was_put_in() -> None:
    made = initramfs.archive(
        [initramfs.directory("etc"), initramfs.file("etc/odd", b"12345"), initramfs.file("i", b"", 0o755)]
    )
    assert entries(made) == {"etc": (0o040755, b""), "etc/odd": (0o100644, b"12345"), "i": (0o100755, b"")}


def module(path: Path, depends: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"\x7fELF" + b"\0license=GPL\0depends=" + depends.encode() + b"\0retpoline=Y\0"
    match path.suffix:
        case ".xz":
            content = lzma.compress(content)
        case ".zst":
            content = zstandard.ZstdCompressor().compress(content)
    path.write_bytes(content)


def test_modules_come_after_what_they_need_and_once(tmp_path: Path) -> None:
    module(tmp_path / "kernel/a/top.ko.xz", "middle-one,base")
    module(tmp_path / "kernel/b/middle-one.ko.zst", "base")
    module(tmp_path / "kernel/base.ko", "")
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    done: set[str] = set()
    first = ModuleTree(tmp_path).ordered([("top", "/sys/x"), ("ext4", "")], done)
    assert [(m.name, m.condition) for m in first] == [("base", "/sys/x"), ("middle_one", "/sys/x"), ("top", "/sys/x")]
    assert ModuleTree(tmp_path).ordered([("base", "")], done) == []
    assert unpacked(tmp_path / "kernel/b/middle-one.ko.zst").startswith(b"\x7fELF")
    assert dependencies(first[-1].content) == ["middle_one", "base"]


def test_a_kernel_without_what_guests_need_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="virtio_blk"):
        ModuleTree(tmp_path).ordered([("virtio_blk", "")], set())


def test_the_real_package_is_found() -> None:
    text = "Package: linux-image-cloud-amd64\nDepends: linux-image-6.12.9-cloud-amd64 (= 6.12.9-1)\nSize: 1\n"
    assert real_package(text) == "linux-image-6.12.9-cloud-amd64"
    with pytest.raises(Unavailable):
        real_package("Package: x\n")


def test_a_tree_without_a_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no kernel"):
        kernel_tree(tmp_path)
