"""Files that other tools made, told by their content."""

import gzip
import json
import lzma
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tarballs
import zstandard
from tarballs import folder, member, symlink, tar, tool

from lamella.host.images.disk import DiskLibrary
from lamella.host.images.library import Progress
from lamella.model.errors import Corrupt, Invalid, LamellaError, NotFound

pytestmark = pytest.mark.root
Report = Callable[[Progress], None]
Look = Callable[[], list[str]]
BASE = tar(folder("bin"), member("bin/sh", b"#!", mode=0o755), member("hello", b"hi"))
ABOVE = tar(member(".wh.hello"), member("bye", b"bye"))


async def check(library: DiskLibrary, report: Report, path: Path) -> str:
    status = await library.import_file(str(path), report)
    top, bottom = (await library.rootfs(status.digest)).layers
    assert (top / "bye").read_text() == "bye" and (bottom / "hello").read_text() == "hi"
    assert status.config.command == ["/hello"]
    return status.digest


async def test_oci_layout_and_archives_of_it(library: DiskLibrary, report: Report, tmp_path: Path) -> None:
    digest = tarballs.layout(tmp_path / "l", [BASE, ABOVE])
    assert await check(library, report, tmp_path / "l") == digest
    tool("tar", "-C", tmp_path / "l", "-cf", tmp_path / "plain.tar", ".")
    tool("skopeo", "copy", f"oci:{tmp_path}/l", f"oci-archive:{tmp_path}/skopeo.tar:name")
    (tmp_path / "packed").write_bytes(gzip.compress((tmp_path / "plain.tar").read_bytes()))
    for name in ("plain.tar", "skopeo.tar", "packed"):
        assert await check(library, report, tmp_path / name) == digest, name
    assert await library.inventory() == {digest}


async def test_docker_archives(library: DiskLibrary, report: Report, tmp_path: Path) -> None:
    """By skopeo, by podman, by hand as docker of old wrote them: layers as links to those of other images, several tags."""
    tarballs.layout(tmp_path / "l", [BASE, ABOVE])
    tool("skopeo", "copy", f"oci:{tmp_path}/l", f"docker-archive:{tmp_path}/skopeo.tar:name:1")
    digest = await check(library, report, tmp_path / "skopeo.tar")
    assert await check(library, report, tmp_path / "skopeo.tar") == digest
    await library.collect(set())
    with tarfile.open(tmp_path / "skopeo.tar") as archive:
        saved = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
        configuration = archive.extractfile(saved[0]["Config"]).read()  # type: ignore[union-attr]
    name = saved[0]["Config"]
    old = [{"Config": name, "RepoTags": ["a:1", "a:2"], "Layers": ["one/layer.tar", "two/layer.tar"]}]
    (tmp_path / "old.tar").write_bytes(
        tar(
            folder("zero"), member("zero/layer.tar", BASE), folder("one"), symlink("one/layer.tar", "../zero/layer.tar"),
            folder("two"), member("two/layer.tar", ABOVE), member(name, configuration), member("manifest.json", json.dumps(old).encode()),
        )
    )  # fmt: skip
    assert await check(library, report, tmp_path / "old.tar") == digest
    (tmp_path / "two.tar").write_bytes(
        tar(member("manifest.json", json.dumps([*old, {**old[0], "Config": "other.json"}]).encode()))
    )
    with pytest.raises(Invalid, match="holds 2 images"):
        await library.import_file(str(tmp_path / "two.tar"), report)
    lying = configuration.replace(b"/hello", b"/hullo")
    (tmp_path / "lie.tar").write_bytes(
        tar(
            member("one/layer.tar", BASE),
            member("two/layer.tar", ABOVE),
            member(name, lying),
            member("manifest.json", json.dumps(old).encode()),
        )
    )
    with pytest.raises(Corrupt, match="configuration is not what its digest"):
        await library.import_file(str(tmp_path / "lie.tar"), report)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress, zstandard.ZstdCompressor().compress])
async def test_root_filesystem(
    library: DiskLibrary, report: Report, tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    """Devices in ``/dev`` are passed over, elsewhere they are refused; without its end mark the archive is not whole."""
    null = {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}
    whole = tar(folder("./"), folder("./bin"), member("./bin/sh", b"#!"), folder("./dev"), member("./dev/null", **null))
    (tmp_path / "root").write_bytes(compress(whole))
    status = await library.import_file(str(tmp_path / "root"), report)
    assert status.config.command == ["sh"]
    (root,) = (await library.rootfs(status.digest)).layers
    assert (root / "bin/sh").exists() and not list((root / "dev").iterdir())
    (tmp_path / "lie").write_bytes(compress(tar(member("./null", **null))))
    with pytest.raises(Corrupt, match="device node"):
        await library.import_file(str(tmp_path / "lie"), report)
    end = whole.rstrip(b"\0")
    (tmp_path / "cut").write_bytes(compress(end + bytes(-len(end) % 512)))
    with pytest.raises(Corrupt, match="cut short"):
        await library.import_file(str(tmp_path / "cut"), report)


async def test_hostile_layout_reaches_nothing_of_the_host(
    library: DiskLibrary, report: Report, tmp_path: Path, nothing_left: Look
) -> None:
    digest = tarballs.layout(tmp_path / "l", [BASE])
    manifest = json.loads((tmp_path / "l/blobs/sha256" / digest[7:]).read_text())
    blob = tmp_path / "l/blobs/sha256" / manifest["layers"][0]["digest"][7:]
    shutil.move(blob, tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Corrupt, match="lacks"):
        await library.import_file(str(tmp_path / "l"), report)
    assert nothing_left() == []


@pytest.mark.parametrize("harm", range(6))
async def test_damaged_layouts(
    library: DiskLibrary, report: Report, tmp_path: Path, nothing_left: Look, harm: int
) -> None:
    digest = tarballs.layout(tmp_path / "l", [BASE])
    blobs = tmp_path / "l/blobs/sha256"
    layer = blobs / json.loads((blobs / digest[7:]).read_text())["layers"][0]["digest"][7:]
    if harm == 0:
        layer.write_bytes(layer.read_bytes() + b"trailing")
    elif harm == 1:
        layer.write_bytes(layer.read_bytes()[:-20])
    elif harm == 2:
        layer.write_bytes(gzip.compress(BASE, 1, mtime=1))  # the same tar, another blob
    elif harm == 3:
        (blobs / digest[7:]).write_bytes(b"{}")
    elif harm == 4:
        (tmp_path / "l/index.json").write_text("[" * 100_000)
    else:
        layer.unlink()
    with pytest.raises(Corrupt):
        await library.import_file(str(tmp_path / "l"), report)
    assert nothing_left() == []


async def test_what_is_no_image(library: DiskLibrary, report: Report, tmp_path: Path, nothing_left: Look) -> None:
    (tmp_path / "text").write_text("hello " * 500)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "none.tar").write_bytes(tar())
    for name, error in (
        ("absent", NotFound),
        ("text", Corrupt),
        ("empty", LamellaError),
        ("folder", Invalid),
        ("none.tar", Invalid),
    ):
        with pytest.raises(error):
            await library.import_file(str(tmp_path / name), report)
    with pytest.raises(Invalid, match="not a file"):
        await library.import_file("/dev/zero", report)
    assert nothing_left() == []
