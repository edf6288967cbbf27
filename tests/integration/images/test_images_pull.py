"""Pulling from real registries."""

import asyncio
import ctypes
import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tarballs
from registries import Asked, BrokenLine, TokenService, certificate, put, put_manifest, registry, stored_blob
from tarballs import folder, hardlink, member, names, symlink, tar, tool

from lamella.host.images.disk import DiskLibrary
from lamella.host.images.library import Credentials, Progress
from lamella.model.errors import Corrupt, Forbidden, NotFound, Unavailable, Unsupported

pytestmark = pytest.mark.root
Report = Callable[[Progress], None]
Look = Callable[[], list[str]]

BASE = tar(
    folder("./", mode=0o755),
    folder("etc/"),
    member("etc/one", b"one"),
    member("etc/two", b"two"),
    folder("old/"),
    member("old/file", b"x"),
    symlink("link", "/etc/one"),
    hardlink("etc/same", "etc/one"),
)
ABOVE = tar(
    folder("etc/"),
    member("etc/.wh.two"),
    folder("old/"),
    member("old/.wh..wh..opq"),
    member("old/new", b"new"),
    member("hello", b"hi", mode=0o4755, uid=7, gid=8),
)
BIG = tar(folder("data/"), member("data/noise", os.urandom(3 << 20)))


@pytest.mark.parametrize("compression", ["gzip", "zstd", ""])
async def test_pull_gives_layers_for_overlayfs(
    library: DiskLibrary,
    report: Report,
    told: list[Progress],
    open_registry: tuple[str, Path],
    tmp_path: Path,
    compression: str,
) -> None:
    host, _ = open_registry
    process: dict[str, object] = {
        "Env": ["A=b"], "Entrypoint": ["/hello"], "Cmd": ["x"], "WorkingDir": "/etc", "User": "7", "StopSignal": "SIGINT",
        "ExposedPorts": {"80/tcp": {}}, "Labels": {"k": "v"},
    }  # fmt: skip
    digest = tarballs.layout(tmp_path / "layout", [BASE, ABOVE], compression=compression, process=process)
    put(host, "made/here", f"c{compression}", tmp_path / "layout")

    status = await library.pull(f"docker://{host}/made/here:c{compression}", report)

    assert status.digest == digest
    assert [layer.diff_id for layer in status.layers] == [tarballs.digest(BASE), tarballs.digest(ABOVE)]
    assert await library.inventory() == {digest}
    config = status.config
    assert (config.environment, config.entrypoint, config.command) == (["A=b"], ["/hello"], ["x"])
    assert (config.working_directory, config.user, config.stop_signal) == ("/etc", "7", "SIGINT")
    assert (config.exposed_ports, config.labels) == (["80/tcp"], {"k": "v"})
    rootfs = await library.rootfs(digest)
    top, bottom = rootfs.layers
    assert (bottom / "etc/one").read_text() == "one"
    assert (bottom / "etc/same").stat().st_ino == (bottom / "etc/one").stat().st_ino
    assert str((bottom / "link").readlink()) == "/etc/one"
    assert stat.S_ISCHR((top / "etc/two").lstat().st_mode) and (top / "etc/two").lstat().st_rdev == 0
    assert os.getxattr(top / "old", "trusted.overlay.opaque") == b"y"
    hello = (top / "hello").stat()
    assert (hello.st_uid, hello.st_gid, stat.S_IMODE(hello.st_mode), hello.st_mtime) == (7, 8, 0o4755, 1_600_000_000)
    merged = tmp_path / "merged"
    merged.mkdir()
    tool("mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={top}:{bottom}", merged)
    try:
        assert names(merged / "etc") == ["one", "same"]
        assert names(merged / "old") == ["new"]
    finally:
        tool("umount", merged)
    assert told[-1].step == "unpacking" and told[-1].done == told[-1].total > 0
    assert not list((tmp_path / "images/scratch").iterdir())
    assert len(list((tmp_path / "images/blobs/sha256").iterdir())) == 2  # the layers' own are not kept


async def test_pull_by_digest_and_again(
    library: DiskLibrary, report: Report, open_registry: tuple[str, Path], tmp_path: Path
) -> None:
    host, _ = open_registry
    digest = tarballs.layout(tmp_path / "layout", [BASE])
    put(host, "twice", "1", tmp_path / "layout")
    first = await library.pull(f"docker://{host}/twice@{digest}", report)
    inode = (await library.rootfs(digest)).layers[0].stat().st_ino
    assert await library.pull(f"docker://{host}/twice:1", report) == first
    assert (await library.rootfs(digest)).layers[0].stat().st_ino == inode


async def test_shared_layer_is_fetched_once(
    library: DiskLibrary, report: Report, open_registry: tuple[str, Path], tmp_path: Path
) -> None:
    """Two images with one base pulled at once: its blob crosses the line a single time."""
    host, _ = open_registry
    for name in ("left", "right"):
        tarballs.layout(tmp_path / name, [BIG, tar(member(name, b"1"))])
        put(host, "shared", name, tmp_path / name)
    async with BrokenLine(host, cuts=0, after=0) as line:
        seen: list[Progress] = []
        left, right = await asyncio.gather(
            library.pull(f"docker://{line.host}/shared:left", seen.append),
            library.pull(f"docker://{line.host}/shared:right", report),
        )
        assert left.layers[0] == right.layers[0]
        assert line.sent < len(BIG) + (1 << 20)


async def test_index_of_several_architectures(
    library: DiskLibrary, report: Report, open_registry: tuple[str, Path], tmp_path: Path
) -> None:
    host, _ = open_registry
    ours = tarballs.layout(tmp_path / "ours", [BASE])
    tarballs.layout(tmp_path / "other", [BASE], architecture="s390x")
    descriptors = []
    for name, architecture in (("other", "s390x"), ("ours", tarballs.ARCHITECTURE)):
        put(host, "many", name, tmp_path / name)
        descriptor = json.loads((tmp_path / name / "index.json").read_text())["manifests"][0]
        descriptors.append({**descriptor, "platform": {"os": "linux", "architecture": architecture}})
    for tag, type in (
        ("oci", tarballs.OCI_INDEX),
        ("docker", "application/vnd.docker.distribution.manifest.list.v2+json"),
    ):
        index = json.dumps({"schemaVersion": 2, "mediaType": type, "manifests": descriptors}).encode()
        put_manifest(host, "many", tag, type, index)
        assert (await library.pull(f"docker://{host}/many:{tag}", report)).digest == ours
    only = json.dumps({"schemaVersion": 2, "mediaType": tarballs.OCI_INDEX, "manifests": descriptors[:1]}).encode()
    put_manifest(host, "many", "foreign", tarballs.OCI_INDEX, only)
    with pytest.raises(Unsupported, match="only for linux/s390x"):
        await library.pull(f"docker://{host}/many:foreign", report)


async def test_images_of_other_tools(
    library: DiskLibrary, report: Report, open_registry: tuple[str, Path], tmp_path: Path
) -> None:
    """umoci makes it, skopeo pushes it in both formats, buildah and podman make and push theirs."""
    host, _ = open_registry
    (tmp_path / "root").mkdir()
    (tmp_path / "root/hello").write_text("hi")

    def here(*arguments: object) -> None:
        tool(*arguments, cwd=tmp_path)

    here("umoci", "init", "--layout", "ol")
    here("umoci", "new", "--image", "ol:a")
    here("umoci", "unpack", "--image", "ol:a", "bundle")
    here("cp", "root/hello", "bundle/rootfs/")
    here("umoci", "repack", "--image", "ol:a", "bundle")
    here("umoci", "config", "--image", "ol:a", "--config.cmd", "/hello")
    here("skopeo", "copy", "--dest-tls-verify=false", "oci:ol:a", f"docker://{host}/tools:oci")
    here("skopeo", "copy", "--dest-tls-verify=false", "--format", "v2s2", "oci:ol:a", f"docker://{host}/tools:v2s2")
    here(
        "skopeo",
        "copy",
        "--dest-tls-verify=false",
        "--dest-compress-format",
        "zstd",
        "oci:ol:a",
        f"docker://{host}/tools:zstd",
    )
    stores = ("--root", tmp_path / "s", "--runroot", tmp_path / "r", "--storage-driver", "vfs")
    here("buildah", *stores, "from", "--name", "work", "scratch")
    here("buildah", *stores, "copy", "work", "root", "/")
    here("buildah", *stores, "config", "--cmd", "/hello", "work")
    here("buildah", *stores, "commit", "work", "made")
    here("buildah", *stores, "push", "--tls-verify=false", "made", f"docker://{host}/tools:buildah")
    here("tar", "-C", "root", "-cf", "root.tar", ".")
    with tempfile.TemporaryDirectory(dir="/tmp") as run:  # podman takes no runroot longer than 50 characters
        stores = ("--root", tmp_path / "p", "--runroot", run, "--storage-driver", "vfs")
        here("podman", *stores, "import", "--change", "CMD=/hello", "root.tar", "podmade")
        here("podman", *stores, "push", "--tls-verify=false", "podmade", f"{host}/tools:podman")
    for tag in ("oci", "v2s2", "zstd", "buildah", "podman"):
        status = await library.pull(f"docker://{host}/tools:{tag}", report)
        assert "/hello" in status.config.command[-1], tag
        found = [
            layer / "hello" for layer in (await library.rootfs(status.digest)).layers if (layer / "hello").exists()
        ]
        assert found[0].read_text() == "hi", tag


async def test_basic_authentication(library: DiskLibrary, report: Report, tmp_path: Path, nothing_left: Look) -> None:
    (tmp_path / "htpasswd").write_text(f"anna:{_bcrypt('open sesame')}\n")
    tarballs.layout(tmp_path / "layout", [BASE])
    with registry(tmp_path / "reg") as host:
        put(host, "private", "1", tmp_path / "layout")
    with registry(tmp_path / "reg", f"auth:\n  htpasswd:\n    realm: here\n    path: {tmp_path}/htpasswd\n") as host:
        name = f"docker://{host}/private:1"
        with pytest.raises(Forbidden, match="wants to know who asks"):
            await library.pull(name, report)
        with pytest.raises(Forbidden, match="does not let 'anna'"):
            await library.pull(name, report, credentials=Credentials(username="anna", password="wrong"))
        assert nothing_left() == []
        status = await library.pull(name, report, credentials=Credentials(username="anna", password="open sesame"))
    assert await library.inventory() == {status.digest}
    for file in (tmp_path / "images").rglob("*"):
        assert not file.is_file() or b"sesame" not in file.read_bytes()


async def test_token_authentication(library: DiskLibrary, report: Report, tmp_path: Path) -> None:
    """The registry itself verifies the token's signature and what it is for."""
    tarballs.layout(tmp_path / "layout", [BASE, ABOVE])
    with registry(tmp_path / "reg") as host:
        put(host, "team/private", "1", tmp_path / "layout")
    with TokenService(tmp_path, "anna", "open sesame") as tokens:
        auth = f"auth:\n  token:\n    realm: {tokens.realm}\n    service: registry\n    issuer: issuer\n    rootcertbundle: {tokens.pem}\n"
        with registry(tmp_path / "reg", auth) as host:
            name = f"docker://{host}/team/private:1"
            with pytest.raises(Forbidden, match="wants to know who asks"):
                await library.pull(name, report)
            with pytest.raises(Forbidden, match="does not let 'anna'"):
                await library.pull(name, report, credentials=Credentials(username="anna", password="wrong"))
            status = await library.pull(name, report, credentials=Credentials(username="anna", password="open sesame"))
    assert len(status.layers) == 2
    assert set(tokens.scopes) == {"repository:team/private:pull"}


async def test_tls(library: DiskLibrary, report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem, key, *_ = certificate(tmp_path, "loopback")
    tarballs.layout(tmp_path / "layout", [BASE])
    with registry(tmp_path / "reg") as host:
        put(host, "safe", "1", tmp_path / "layout")
    with registry(tmp_path / "reg", tls=(pem, key)) as host:
        with pytest.raises(Unavailable, match="is not trusted"):
            await library.pull(
                f"docker://{host}/safe:1", report, insecure=True
            )  # plain was allowed, a wrong certificate never is
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        assert (await library.pull(f"docker://{host}/safe:1", report)).layers


async def test_plain_http_only_where_allowed(
    library: DiskLibrary, report: Report, open_registry: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same registry under a name that does not say that it is this machine."""
    host, _ = open_registry
    name = f"docker://{host.replace('127.0.0.1', '0.0.0.0')}/nothing:1"
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(Unavailable, match=r"does not speak TLS.*--insecure"):
        await library.pull(name, report)
    with pytest.raises(NotFound):
        await library.pull(name, report, insecure=True)


async def test_redirects_carry_no_password_and_lead_to_no_plain_http(library: DiskLibrary, report: Report) -> None:
    target = [""]

    def guard(path: str, authorization: str) -> tuple[int, dict[str, str]]:
        if not authorization:
            return 401, {"WWW-Authenticate": 'Basic realm="here"'}
        return (302, {"Location": f"http://{target[0]}/elsewhere"}) if "manifests" in path else (200, {})

    with Asked(lambda _path, _authorization: (404, {})) as other, Asked(guard) as first:
        secret = Credentials(username="anna", password="open sesame")
        target[0] = other.host
        with pytest.raises(NotFound):
            await library.pull(f"docker://{first.host}/a:1", report, credentials=secret)
        assert any(authorization.startswith("Basic ") for _, authorization in first.asked)
        assert other.asked == [("/elsewhere", "")]
        target[0] = other.host.replace("127.0.0.1", "0.0.0.0")
        with pytest.raises(Forbidden, match="leads to plain HTTP"):
            await library.pull(f"docker://{first.host}/a:1", report, credentials=secret)
        assert len(other.asked) == 1
        target[0] = f"{first.host}/v2/x/manifests"
        with pytest.raises(Unavailable, match="in a circle"):
            await library.pull(f"docker://{first.host}/a:1", report, credentials=secret)


async def test_absent_and_unreachable(
    library: DiskLibrary, report: Report, open_registry: tuple[str, Path], nothing_left: Look
) -> None:
    host, _ = open_registry
    with pytest.raises(NotFound, match="has no image"):
        await library.pull(f"docker://{host}/absent:1", report)
    with pytest.raises(Unavailable, match="does not answer"):
        await library.pull("docker://127.0.0.1:9/absent:1", report)
    assert nothing_left() == []


async def test_a_cut_line_is_taken_up_where_it_broke(
    library: DiskLibrary, report: Report, open_registry: tuple[str, Path], tmp_path: Path
) -> None:
    host, _ = open_registry
    tarballs.layout(tmp_path / "layout", [BIG])
    put(host, "resumed", "1", tmp_path / "layout")
    async with BrokenLine(host, cuts=3, after=700_000) as line:
        status = await library.pull(f"docker://{line.host}/resumed:1", report)
        starts = [int(found.removeprefix("bytes=").rstrip("-")) for found in line.ranges]
    assert len(starts) == 3 and 0 < starts[0] < starts[1] < starts[2]
    assert status.layers[0].diff_id == tarballs.digest(BIG)


async def test_a_later_pull_goes_on_where_the_first_gave_up(
    library: DiskLibrary, report: Report, open_registry: tuple[str, Path], tmp_path: Path
) -> None:
    host, _ = open_registry
    tarballs.layout(tmp_path / "layout", [BIG], compression="zstd")
    put(host, "later", "1", tmp_path / "layout")
    async with BrokenLine(host, cuts=1, after=1_500_000) as line:
        line.dead_after_cut = True
        with pytest.raises(Unavailable, match="what came is kept"):
            await library.pull(f"docker://{line.host}/later:1", report)
        (partial,) = (tmp_path / "images/partial").iterdir()
        kept = partial.stat().st_size
        assert kept > 1_000_000
        line.dead = line.dead_after_cut = False
        again = DiskLibrary(tmp_path / "images", grace=0)  # a daemon that was restarted meanwhile
        await again.open()
        await again.pull(f"docker://{line.host}/later:1", report)
        assert line.ranges[-1] == f"bytes={kept}-"
    assert not list((tmp_path / "images/partial").iterdir())


async def test_a_damaged_rest_is_fetched_anew(
    library: DiskLibrary, report: Report, open_registry: tuple[str, Path], tmp_path: Path
) -> None:
    """A partial blob that a power cut turned to zeros costs its bytes, not the pull."""
    host, _ = open_registry
    tarballs.layout(tmp_path / "layout", [BIG], compression="")
    put(host, "zeros", "1", tmp_path / "layout")
    (tmp_path / "images/partial" / tarballs.digest(BIG).removeprefix("sha256:")).write_bytes(bytes(1 << 20))
    assert (await library.pull(f"docker://{host}/zeros:1", report)).layers[0].diff_id == tarballs.digest(BIG)


@pytest.mark.parametrize("harm", ["flipped", "short", "long", "absent"])
@pytest.mark.parametrize("which", ["layer", "config", "manifest"])
async def test_corrupt_store_is_refused(
    library: DiskLibrary,
    report: Report,
    tmp_path: Path,
    nothing_left: Look,
    open_registry: tuple[str, Path],
    harm: str,
    which: str,
) -> None:
    host, store = open_registry
    good = tar(member("good", f"{which}{harm}".encode()))
    layers = [good, tar(member("bad", f"{which}{harm}".encode() * 1000))]
    digest = tarballs.layout(tmp_path / "layout", layers, process={"Cmd": [which, harm]})
    put(host, "harmed", f"{which}{harm}", tmp_path / "layout")
    manifest = json.loads((tmp_path / "layout/blobs/sha256" / digest.removeprefix("sha256:")).read_text())
    victim = {"layer": manifest["layers"][1]["digest"], "config": manifest["config"]["digest"], "manifest": digest}[
        which
    ]
    blob = stored_blob(store, victim)
    data = blob.read_bytes()
    if harm == "absent":
        blob.unlink()
    else:
        middle = len(data) // 2
        blob.write_bytes(
            {
                "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
                "short": data[:middle],
                "long": data + b"x",
            }[harm]
        )
    with pytest.raises((Corrupt, NotFound, Unavailable)) as refused:
        await library.pull(f"docker://{host}/harmed@{digest}", report)
    if isinstance(
        refused.value, Unavailable
    ):  # the registry itself may notice, and then answers with an error of its own
        assert which == "manifest" or harm == "absent"
    assert nothing_left() == []


async def test_cancelled_pull_leaves_only_what_it_can_take_up(
    library: DiskLibrary, report: Report, open_registry: tuple[str, Path], tmp_path: Path
) -> None:
    host, _ = open_registry
    tarballs.layout(tmp_path / "layout", [tar(member("noise", os.urandom(8 << 20)))])
    put(host, "cancelled", "1", tmp_path / "layout")
    pull = asyncio.create_task(library.pull(f"docker://{host}/cancelled:1", report))
    while not any((tmp_path / "images/partial").iterdir()):
        await asyncio.sleep(0.001)
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert await library.inventory() == set()
    assert not list((tmp_path / "images/scratch").iterdir())
    await library.collect(set())
    assert not list((tmp_path / "images/partial").iterdir())
    assert (await library.pull(f"docker://{host}/cancelled:1", report)).layers


def _bcrypt(password: str) -> str:
    """By the system's own crypt(3): the standard library no longer has it."""
    library = ctypes.CDLL("libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    return library.crypt(password.encode(), b"$2b$04$abcdefghijklmnopqrstuu").decode()
