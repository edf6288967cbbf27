"""Layers made into directories: what is kept, and what a lying one is refused for. Every lie comes as a whole image."""

import os
import random
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tarballs
from tarballs import folder, hardlink, member, names, symlink, tar, tool

from lamella.host.images.disk import DiskLibrary
from lamella.host.images.library import Progress
from lamella.host.images.tape import Bounds
from lamella.model.errors import Corrupt, Unsupported

pytestmark = pytest.mark.root
Report = Callable[[Progress], None]
Look = Callable[[], list[str]]


async def unpacked(library: DiskLibrary, report: Report, path: Path, layer: bytes, compression: str = "") -> Path:
    tarballs.layout(path / "layout", [layer], compression=compression)
    status = await library.import_file(str(path / "layout"), report)
    return (await library.rootfs(status.digest)).layers[0]


CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw, as vfs_cap_data of revision 2


async def test_what_is_kept(library: DiskLibrary, report: Report, tmp_path: Path) -> None:
    attributes = {
        "SCHILY.xattr.user.colour": "red",
        "SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "mtime": "1234567890.5",
    }
    root = await unpacked(
        library,
        report,
        tmp_path,
        tar(
            folder("./", mode=0o750, uid=3, gid=4),
            folder("deep/er", mode=0o2775, uid=5, gid=6),
            member("deep/er/file", b"data", mode=0o4711, uid=70000, gid=7, pax_headers=attributes),
            symlink("deep/link", "../../../etc"),
            member("pipe", type=tarfile.FIFOTYPE, mode=0o600),
            member("n" * 255, b""),
            member("/absolute", b"stays inside"),
            folder("late"),
            member("late/file", b"1"),
        ),
    )
    kept = (root / "deep/er/file").stat()
    assert (stat.S_IMODE(kept.st_mode), kept.st_uid, kept.st_gid, kept.st_mtime) == (0o4711, 70000, 7, 1234567890.5)
    assert sorted(os.listxattr(root / "deep/er/file")) == ["security.capability", "user.colour"]
    assert os.getxattr(root / "deep/er/file", "security.capability") == CAPABILITY
    inner = (root / "deep/er").stat()
    assert (stat.S_IMODE(inner.st_mode), inner.st_uid, inner.st_gid) == (0o2775, 5, 6)
    assert (stat.S_IMODE(root.stat().st_mode), root.stat().st_uid, root.stat().st_gid) == (0o750, 3, 4)
    assert str((root / "deep/link").readlink()) == "../../../etc"
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
    assert (root / "absolute").read_bytes() == b"stays inside"
    assert (root / "late").stat().st_mtime == 1_600_000_000  # though a file came into it later


async def test_later_entries_replace_earlier(library: DiskLibrary, report: Report, tmp_path: Path) -> None:
    root = await unpacked(
        library,
        report,
        tmp_path,
        tar(
            member("a", b"first"),
            member("a", b"second"),
            folder("b"),
            member("b/inside", b"1"),
            member("b", b"now a file"),
            member("c", b"1"),
            folder("c"),
            member("c/inside", b"2"),
            symlink("d", "/c"),
            member("d/through", b"3"),
            folder("d"),
            member("d/own", b"4"),
            hardlink("a", "a"),
            member(".wh.e"),
            folder("e"),
        ),
    )
    assert (root / "a").read_bytes() == b"second"
    assert (root / "b").read_bytes() == b"now a file"
    assert names(root / "c") == ["inside", "through"]
    assert names(root / "d") == ["own"]
    assert os.getxattr(root / "e", "trusted.overlay.opaque") == b"y"


async def test_links_resolve_inside_the_image(library: DiskLibrary, report: Report, tmp_path: Path) -> None:
    """Absolute and climbing links lead to the image's own root, as they do once it runs."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("untouched")
    root = await unpacked(
        library,
        report,
        tmp_path,
        tar(
            symlink("up", "../../../../../../../../../.."),
            member("up/climbed", b"1"),
            symlink("abs", str(outside)),
            folder(str(outside)),
            member("abs/victim", b"replaced"),
            symlink("passwd", "/etc/passwd"),
            member("passwd", b"a file of the image"),
            hardlink("hard", "abs/victim"),
        ),
    )
    assert (root / "climbed").read_bytes() == b"1"
    assert (outside / "victim").read_text() == "untouched"
    assert (root / str(outside).lstrip("/") / "victim").read_bytes() == b"replaced" == (root / "hard").read_bytes()
    assert (root / "passwd").read_bytes() == b"a file of the image" and not (root / "passwd").is_symlink()


async def test_same_as_tar(library: DiskLibrary, report: Report, tmp_path: Path) -> None:
    """A tree of this host's own, through tar and through us: no difference in content, owner, mode or time."""
    tree = tmp_path / "tree"
    tree.mkdir()
    tool("cp", "-a", "/usr/share/zoneinfo", "/usr/share/perl5", tree)
    for format in ("gnu", "pax", "ustar"):
        archive = tmp_path / f"{format}.tar"
        tool("tar", "-C", tree, f"--format={format}", "-cf", archive, ".")
        status = await library.import_file(str(archive), report)
        root = (await library.rootfs(status.digest)).layers[0]
        tool("tar", "-C", root, "--compare", "-f", archive)


LIES: dict[str, tuple[bytes, str]] = {
    "climbs": (tar(member("../climbed", b"1")), "climbs out"),
    "climbs in the middle": (tar(folder("a"), member("a/../../climbed", b"1")), "climbs out"),
    "hard link climbs": (tar(hardlink("a", "../../../../etc/passwd")), "climbs out"),
    "hard link to the host": (tar(hardlink("a", "/etc/passwd")), "does not hold"),
    "hard link through a link": (tar(symlink("s", "/"), hardlink("a", "s/etc/passwd")), "does not hold"),
    "character device": (tar(member("sda", type=tarfile.CHRTYPE, devmajor=8)), "device node"),
    "block device": (tar(member("dev/sda", type=tarfile.BLKTYPE, devmajor=8)), "device node"),
    "file below a file": (tar(member("a", b"1"), member("a/b", b"2")), "cannot be unpacked"),
    "below a circle": (tar(symlink("a", "b"), symlink("b", "a"), member("a/c", b"2")), "cannot be unpacked"),
    "below a link to nowhere": (tar(symlink("a", "nowhere"), member("a/c", b"2")), "cannot be unpacked"),
    "root is a file": (tar(member("./", b"1")), "not a directory|cannot"),
    "root is a link": (tar(symlink(".", "/etc")), "not a directory"),
    "whiteout of nothing": (tar(member(".wh.")), "whiteout of nothing"),
    "whiteout of the parent": (tar(folder("a"), member("a/.wh...")), "whiteout of nothing"),
    "inside a whiteout": (tar(member(".wh.a/b", b"1")), "inside a whiteout"),
    "too long a name": (tar(member("n" * 256, b"1")), "longer than Linux"),
    "cut in a file": (tar(member("a", b"1" * 5000))[:3000], "ends in the middle"),
    "cut in a header": (tar(member("a", b"1"))[:300], "cut short"),
    "not a tar": (random.Random(1).randbytes(4096), "checksum|not a tar|no valid"),
    "sparse": (tar(member("a", b"1", pax_headers={"GNU.sparse.major": "1"})), "sparse"),
    "owner beyond ids": (tar(member("a", b"1", pax_headers={"uid": str(2**32 - 1)})), "no valid owner"),
    "giant header": (tar(member("a", b"1", pax_headers={"comment": "x" * (2 << 20)})), "bigger than a mebibyte"),
}


@pytest.mark.parametrize("lie", LIES)
async def test_lies_are_refused(
    library: DiskLibrary, report: Report, tmp_path: Path, nothing_left: Look, lie: str
) -> None:
    layer, sentence = LIES[lie]
    with pytest.raises(Corrupt, match=sentence) as refused:
        await unpacked(library, report, tmp_path, layer)
    assert refused.value.hint
    assert nothing_left() == []
    assert not (tmp_path / "climbed").exists()


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
async def test_decompression_bomb(tmp_path: Path, report: Report, nothing_left: Look, compression: str) -> None:
    """A hundred mebibytes of zeros in a few kilobytes."""
    library = DiskLibrary(tmp_path / "images", bounds=Bounds(ratio=100, ratio_from=8 << 20))
    await library.open()
    with pytest.raises(Corrupt, match="grows more than 100 times"):
        await unpacked(library, report, tmp_path, tar(member("zeros", bytes(100 << 20))), compression)
    assert nothing_left() == []


async def test_bounds(tmp_path: Path, report: Report, nothing_left: Look) -> None:
    library = DiskLibrary(tmp_path / "images", bounds=Bounds(size=1 << 20, entries=10))
    await library.open()
    with pytest.raises(Corrupt, match="unpacked"):
        await unpacked(library, report, tmp_path / "1", tar(member("big", os.urandom(2 << 20))))
    with pytest.raises(Corrupt, match="more than 10 files"):
        await unpacked(library, report, tmp_path / "2", tar(*(member(str(number)) for number in range(11))))
    assert nothing_left() == []


async def test_very_deep_tree_can_be_removed(
    library: DiskLibrary, report: Report, tmp_path: Path, nothing_left: Look
) -> None:
    """Deeper than any stack and any path, by way of links."""
    members = []
    for level in range(4):
        base = f"l{level}/" if level else ""
        members += [folder(base + "d/" * 600), symlink(f"l{level + 1}", (f"l{level}/" if level else "") + "d/" * 600)]
    status_layer = await unpacked(library, report, tmp_path, tar(*members))
    assert status_layer.is_dir()
    await library.collect(set())
    assert nothing_left() == []


@pytest.mark.parametrize("wrong", ["diff_id", "count"])
async def test_digests_that_do_not_match(
    library: DiskLibrary, report: Report, tmp_path: Path, nothing_left: Look, wrong: str
) -> None:
    layer = tar(member("a", b"1"))
    tarballs.layout(tmp_path / "l", [layer], diff_ids=[f"sha256:{'0' * 64}"] * (1 if wrong == "diff_id" else 2))
    with pytest.raises(Corrupt, match=r"unpacks to|contradicts itself"):
        await library.import_file(str(tmp_path / "l"), report)
    assert nothing_left() == []


async def test_other_architecture(library: DiskLibrary, report: Report, tmp_path: Path, nothing_left: Look) -> None:
    tarballs.layout(tmp_path / "l", [tar(member("a", b"1"))], architecture="s390x")
    with pytest.raises(Unsupported, match="linux/s390x"):
        await library.import_file(str(tmp_path / "l"), report)
    assert nothing_left() == []
