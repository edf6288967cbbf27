"""Disks, machines, CDs, modules and kernels as real tools make them: in, the same by every way, and out again."""

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tarballs
from tarballs import tool

from lamella.host.images.disk import DiskLibrary
from lamella.host.images.formats.digest import disk_digest
from lamella.host.images.library import Progress
from lamella.model.board import Firmware, Hardware
from lamella.model.errors import Corrupt, Invalid, LamellaError, NotFound, Unsupported
from lamella.model.image import ArtifactKind

pytestmark = pytest.mark.root
Report = Callable[[Progress], None]
Look = Callable[[], list[str]]
SIZE = 24 << 20
FORMATS = {
    "raw": "raw",
    "qcow2": "qcow2",
    "qcow2-compressed": "qcow2 -c",
    "qcow2-zstd-extended": "qcow2 -c -o compression_type=zstd,extended_l2=on,cluster_size=128k",
    "vmdk": "vmdk",
    "vmdk-stream": "vmdk -o subformat=streamOptimized",
    "vdi": "vdi",
    "vdi-static": "vdi -o static=on",
    "vhdx": "vhdx",
    "vpc": "vpc -o force_size=on",
    "vpc-fixed": "vpc -o subformat=fixed,force_size=on",
}
MODULE = bytes.fromhex("0061736d01000000 0105016000017f 030201 00 07080104 6d61696e0000 0a06010400412a0b")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk of holes, stored zeros and content, with a boot sector."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(510)
        file.write(b"\x55\xaa")
        for at, data in ((5 << 20, os.urandom(3 << 20)), (12 << 20, bytes(2 << 20)), (SIZE - 4096, b"\1" * 4096)):
            file.seek(at)
            file.write(data)
    return path


def expected(path: Path) -> str:
    data = path.read_bytes()
    return disk_digest(
        len(data), {n: hashlib.sha256(data[n << 20 : (n + 1) << 20]).digest() for n in range(-(-len(data) >> 20))}
    )


def made(disk: Path, tmp_path: Path, form: str) -> Path:
    path = tmp_path / f"{form}.img"
    tool("qemu-img", "convert", "-f", "raw", "-O", *FORMATS[form].split(), disk, path)
    return path


async def exported(library: DiskLibrary, digest: str, form: str, path: Path) -> Path:
    with path.open("wb") as file:
        async for piece in library.export(digest, form):
            file.write(piece)
    return path


def scratch(library: DiskLibrary) -> list[Path]:
    return list((library.path / "scratch").iterdir())


@pytest.mark.parametrize("form", FORMATS)
async def test_every_format_is_the_same_disk(
    library: DiskLibrary, report: Report, told: list[Progress], disk: Path, tmp_path: Path, form: str
) -> None:
    status = await library.import_file(str(made(disk, tmp_path, form)), report)
    (artifact,) = status.artifacts
    assert (artifact.kind, artifact.size, artifact.digest) == (ArtifactKind.DISK, SIZE, expected(disk))
    (stored,) = (await library.rootfs(status.digest)).artifacts
    tool("qemu-img", "compare", "-f", "raw", "-F", "raw", disk, stored.path)
    assert stored.path.stat().st_mode & 0o777 == 0o440 and stored.path.parent.stat().st_mode & 0o777 == 0o700
    assert artifact.stored == stored.path.stat().st_blocks * 512 < 4 << 20
    assert status.size - artifact.stored < 4096 and not status.layers and not status.config.command
    steps = [one for one in told if one.step == "converting"]
    assert steps[-1].done == steps[-1].total == SIZE
    assert not scratch(library)
    # Once more, by another way: the same image, stored once.
    again = await library.import_file(str(disk), report)
    assert again.digest == status.digest and len(list((library.path / "artifacts").iterdir())) == 1
    await library.collect(set())
    assert not list((library.path / "artifacts").iterdir())


async def test_round_trips(library: DiskLibrary, report: Report, disk: Path, tmp_path: Path) -> None:
    digest = (await library.import_file(str(disk), report)).digest
    for form in ("qcow2", "raw", "vmdk", "vdi", "vhdx"):
        out = await exported(library, digest, form, tmp_path / f"out.{form}")
        tool("qemu-img", "compare", "-f", "raw", "-F", form, disk, out)
        assert (await library.import_file(str(out), report)).digest == digest
    assert not scratch(library)
    # Half an export leaves nothing either.
    pieces = library.export(digest, "qcow2")
    await anext(pieces)
    await pieces.aclose()  # type: ignore[attr-defined]
    assert not scratch(library)
    for form in ("file", "floppy"):
        with pytest.raises(Invalid):
            await exported(library, digest, form, tmp_path / "none")
    with pytest.raises(NotFound):
        await exported(library, f"sha256:{'0' * 64}", "raw", tmp_path / "none")


async def test_a_private_file_compressed_and_with_a_colon(
    library: DiskLibrary, report: Report, disk: Path, tmp_path: Path
) -> None:
    """A person's file that nobody else may read stays as it is; a compressed one is opened first."""
    private = tmp_path / "my: disk"
    private.mkdir(mode=0o700)
    path = private / "a:b.qcow2"
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, path)
    path.chmod(0o600)
    digest = (await library.import_file(str(path), report)).digest
    assert path.stat().st_mode & 0o777 == 0o600 and path.stat().st_uid == os.geteuid()
    (tmp_path / "packed").write_bytes(gzip.compress(disk.read_bytes(), 1))
    assert (await library.import_file(str(tmp_path / "packed"), report)).digest == digest


def ovf(name: str, href: str, extra: str = "", kind: str = "lsilogic") -> bytes:
    return f"""<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
 xmlns:vmw="http://www.vmware.com/schema/ovf"><References><File ovf:id="f" ovf:href="{href}" {extra}/></References>
<DiskSection><Disk ovf:diskId="d" ovf:fileRef="f" ovf:capacity="24"/>
<Disk ovf:diskId="e" ovf:capacity="2" ovf:capacityAllocationUnits="byte * 2^20"/></DiskSection>
<VirtualSystem ovf:id="{name}"><VirtualHardwareSection>
<Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
<Item><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>512</rasd:VirtualQuantity></Item>
<Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceType>6</rasd:ResourceType><rasd:ResourceSubType>{kind}</rasd:ResourceSubType></Item>
<Item><rasd:InstanceID>4</rasd:InstanceID><rasd:ResourceType>17</rasd:ResourceType><rasd:Parent>3</rasd:Parent>
<rasd:AddressOnParent>1</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/d</rasd:HostResource></Item>
<Item><rasd:InstanceID>5</rasd:InstanceID><rasd:ResourceType>17</rasd:ResourceType><rasd:Parent>3</rasd:Parent>
<rasd:AddressOnParent>2</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/e</rasd:HostResource></Item>
<Item><rasd:InstanceID>6</rasd:InstanceID><rasd:ResourceType>10</rasd:ResourceType></Item>
<vmw:Config vmw:key="firmware" vmw:value="efi"/></VirtualHardwareSection></VirtualSystem></Envelope>""".encode()


def archive(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as out:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


async def test_machines(library: DiskLibrary, report: Report, disk: Path, tmp_path: Path) -> None:
    """An OVA with a manifest, one with a packed disk, a descriptor with its files beside it: the same machine."""
    data = made(disk, tmp_path, "vmdk-stream").read_bytes()
    text = ovf("one", "d.vmdk", f'ovf:size="{len(data)}"')
    sums = (
        f"SHA256(m.ovf)= {hashlib.sha256(text).hexdigest()}\nSHA1(d.vmdk)= {hashlib.sha1(data).hexdigest()}\n".encode()
    )
    status = await library.import_file(str(archive(tmp_path / "a", m_ovf=text, d_vmdk=data, m_mf=sums)), report)
    assert [one.size for one in status.artifacts] == [SIZE, 2 << 20]
    assert status.artifacts[0].digest == expected(disk)
    appliance = status.appliance
    assert appliance is not None and appliance.cpu == 2000 and appliance.memory == 512 << 20 and appliance.nics == 1
    assert appliance.firmware is Firmware.UEFI and appliance.hardware is Hardware.GENERIC
    packed = archive(tmp_path / "b", m_ovf=ovf("two", "d.gz", 'ovf:compression="gzip"'), d_gz=gzip.compress(data))
    assert (await library.import_file(str(packed), report)).digest == status.digest
    (tmp_path / "x.ovf").write_bytes(ovf("three", "d.qcow2"))
    shutil.copy(made(disk, tmp_path, "qcow2"), tmp_path / "d.qcow2")
    assert (await library.import_file(str(tmp_path / "x.ovf"), report)).digest == status.digest
    raw = archive(tmp_path / "c", m_ovf=ovf("four", "d.img"), d_img=disk.read_bytes())
    assert (await library.import_file(str(raw), report)).digest == status.digest


async def test_hostile_machines(
    library: DiskLibrary, report: Report, nothing_left: Look, disk: Path, tmp_path: Path
) -> None:
    data = made(disk, tmp_path, "vmdk-stream").read_bytes()
    good = ovf("one", "d.vmdk")
    backed = tmp_path / "backed"
    tool("qemu-img", "create", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", backed, "1M")
    wrong = f"SHA256(d.vmdk)= {'0' * 64}\n".encode()
    linked, stepping = tmp_path / "linked", tmp_path / "stepping"
    for path, name, kind in ((linked, "d.vmdk", tarfile.SYMTYPE), (stepping, "../d.vmdk", tarfile.REGTYPE)):
        with tarfile.open(path, "w") as out:
            info = tarfile.TarInfo("m.ovf")
            info.size = len(good)
            out.addfile(info, io.BytesIO(good))
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            out.addfile(member)
    cut = archive(tmp_path / "cut", m_ovf=good, d_vmdk=data)
    cut.write_bytes(cut.read_bytes()[: len(data) // 2])
    (tmp_path / "y.ovf").write_bytes(ovf("one", "link.vmdk"))
    (tmp_path / "link.vmdk").symlink_to(disk)
    cases = {
        "a backing file inside": (archive(tmp_path / "1", m_ovf=ovf("o", "d.q"), d_q=backed.read_bytes()), "backing file"),
        "a path": (archive(tmp_path / "2", m_ovf=ovf("o", "../../etc/passwd"), d_vmdk=data), "does not lie beside"),
        "an absolute path": (archive(tmp_path / "3", m_ovf=ovf("o", "/etc/passwd"), d_vmdk=data), "does not lie beside"),
        "an entity": (
            archive(tmp_path / "4", m_ovf=b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + good[21:]),
            "document type",
        ),
        "another size": (archive(tmp_path / "5", m_ovf=ovf("o", "d.vmdk", 'ovf:size="5"'), d_vmdk=data), "says 5"),
        "another digest": (archive(tmp_path / "6", m_ovf=good, d_vmdk=data, m_mf=wrong), "manifest of its archive"),
        "nothing there": (archive(tmp_path / "7", m_ovf=good), "not there"),
        "a link": (linked, "not a plain file"),
        "a climbing name": (stepping, "not a plain file"),
        "cut short": (cut, "cut short"),
        "a link beside": (tmp_path / "y.ovf", "is a link"),
    }  # fmt: skip
    for name, (path, words) in cases.items():
        with pytest.raises(Corrupt, match=words):
            await library.import_file(str(path), report)
            pytest.fail(f"{name} was taken")
        assert nothing_left() == [], name


async def test_hostile_disks(
    library: DiskLibrary, report: Report, nothing_left: Look, disk: Path, tmp_path: Path
) -> None:
    """Made by qemu-img itself, or bent by hand: none is opened further than its header, and nothing stays."""
    base = made(disk, tmp_path, "qcow2")
    tool("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "qcow2", tmp_path / "backing")
    tool(
        "qemu-img",
        "create",
        "-f",
        "qcow2",
        "-o",
        f"data_file={tmp_path}/data,data_file_raw=on",
        tmp_path / "data-file",
        "1M",
    )
    tool("qemu-img", "create", "-f", "vmdk", "-b", made(disk, tmp_path, "vmdk"), "-F", "vmdk", tmp_path / "vmdk-child")
    tool("qemu-img", "create", "-f", "vmdk", "-o", "subformat=monolithicFlat", tmp_path / "flat.vmdk", "1M")
    secret = ("--object", "secret,id=s,data=x")
    tool(
        "qemu-img",
        "create",
        *secret,
        "-f",
        "qcow2",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s",
        tmp_path / "luks",
        "1M",
    )
    tool("qemu-img", "create", "-f", "qcow2", tmp_path / "absurd", "100T")
    whole = base.read_bytes()
    (tmp_path / "torn").write_bytes(whole[: 100 << 10])
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    sparse = made(disk, tmp_path, "vmdk").read_bytes()
    (tmp_path / "half-vmdk").write_bytes(sparse[: len(sparse) // 2])
    static = made(disk, tmp_path, "vdi").read_bytes()
    (tmp_path / "half-vdi").write_bytes(static[: len(static) // 2])
    lost = bytearray(whole)
    lost[40:48] = (0x30000 + (1 << 20)).to_bytes(8, "big")  # an L1 table in the middle of data
    (tmp_path / "garbled").write_bytes(lost)
    cases: dict[str, tuple[type[LamellaError], str]] = {
        "backing": (Corrupt, "backing file"),
        "data-file": (Corrupt, "data file"),
        "vmdk-child": (Corrupt, "child of another"),
        "flat.vmdk": (Corrupt, "in other files"),
        "luks": (Unsupported, "encrypted"),
        "absurd": (Unsupported, "at most 8 TiB"),
        "torn": (Corrupt, "ends before"),
        "half": (Corrupt, "ends before"),
        "half-vmdk": (Corrupt, "ends before"),
        "half-vdi": (Corrupt, "ends before"),
        "garbled": (Corrupt, "cannot be read|ends before"),
    }
    for name, (kind, words) in cases.items():
        with pytest.raises(kind, match=words) as refused:
            await library.import_file(str(tmp_path / name), report)
        assert refused.value.hint
        assert nothing_left() == [], name


async def test_cd(library: DiskLibrary, report: Report, nothing_left: Look, tmp_path: Path) -> None:
    """memtest86+ as Debian ships it: a hybrid, which is a CD before it is a disk."""
    iso = Path("/usr/lib/memtest86+/memtest86+x64.iso")
    status = await library.import_file(str(iso), report)
    (artifact,) = status.artifacts
    assert (artifact.kind, artifact.size) == (ArtifactKind.CDROM, iso.stat().st_size)
    assert artifact.digest == f"sha256:{hashlib.sha256(iso.read_bytes()).hexdigest()}"
    out = await exported(library, status.digest, "file", tmp_path / "out.iso")
    assert out.read_bytes() == iso.read_bytes()
    with pytest.raises(Invalid, match="no disk but cdrom"):
        await exported(library, status.digest, "qcow2", tmp_path / "none")
    await library.collect(set())
    (tmp_path / "cut.iso").write_bytes(iso.read_bytes()[: 64 << 10])
    with pytest.raises(Corrupt, match="ends before"):
        await library.import_file(str(tmp_path / "cut.iso"), report)
    assert nothing_left() == []


async def test_kernel_with_initrd(library: DiskLibrary, report: Report, tmp_path: Path) -> None:
    source = tmp_path / "k.S"
    source.write_text(
        '.section .note.pvh,"a"\n.long 4,4,18\n.asciz "Xen"\n.long 0x100000\n.text\n.globl _start\n_start: hlt\n'
    )
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    tool("cc", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-o", kernel, source)
    initrd.write_bytes(os.urandom(5000))
    alone = await library.import_file(str(kernel), report)
    both = await library.import_file(str(kernel), report, initrd=str(initrd))
    assert [one.kind for one in alone.artifacts] == [ArtifactKind.KERNEL] and alone.digest != both.digest
    assert [one.kind for one in both.artifacts] == [ArtifactKind.KERNEL, ArtifactKind.INITRD]
    stored = (await library.rootfs(both.digest)).artifacts
    assert [one.path.read_bytes() for one in stored] == [kernel.read_bytes(), initrd.read_bytes()]
    await library.collect({both.digest})
    assert len(list((library.path / "artifacts").iterdir())) == 2
    with pytest.raises(Unsupported, match="not a kernel"):
        await library.import_file("/bin/true", report)
    with pytest.raises(NotFound):
        await library.import_file(str(kernel), report, initrd=str(tmp_path / "none"))
    (tmp_path / "module").write_bytes(MODULE)
    with pytest.raises(Invalid, match="has no initrd"):
        await library.import_file(str(tmp_path / "module"), report, initrd=str(initrd))


def wasm_layout(path: Path, config_type: str, layer_type: str, module: bytes = MODULE) -> str:
    """An OCI layout of a WebAssembly artefact; the digest of its manifest."""
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    config = blob(b'{"architecture":"wasm","os":"wasip1","layerDigests":[]}', config_type)
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [blob(module, layer_type)]}
    entry = blob(json.dumps(manifest).encode(), kind)
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return str(entry["digest"])


TYPES = [
    ("application/vnd.wasm.config.v0+json", "application/wasm"),
    ("application/vnd.wasm.config.v1+json", "application/vnd.wasm.content.layer.v1+wasm"),
    ("application/vnd.module.wasm.config.v1+json", "application/vnd.module.wasm.content.layer.v1+wasm"),
    ("application/vnd.oci.empty.v1+json", "application/wasm"),
]


async def test_modules(
    library: DiskLibrary, report: Report, nothing_left: Look, tmp_path: Path, open_registry: tuple[str, Path]
) -> None:
    """A file, OCI artefacts of every age from a layout, and from a registry: one module, stored once."""
    (tmp_path / "app").write_bytes(MODULE)
    status = await library.import_file(str(tmp_path / "app"), report)
    assert (status.os, status.architecture, [one.kind for one in status.artifacts]) == (
        "wasi",
        "wasm",
        [ArtifactKind.MODULE],
    )
    for number, (config, layer) in enumerate(TYPES):
        digest = wasm_layout(tmp_path / f"l{number}", config, layer)
        found = await library.import_file(str(tmp_path / f"l{number}"), report)
        assert (found.digest, found.os, found.artifacts) == (digest, "wasi", status.artifacts)
    assert len(list((library.path / "artifacts").iterdir())) == 1
    await library.collect(set())
    host, _ = open_registry
    tool("skopeo", "copy", "--dest-tls-verify=false", f"oci:{tmp_path}/l0", f"docker://{host}/wasm/app:1")
    pulled = await library.pull(f"docker://{host}/wasm/app:1", report)
    rootfs = await library.rootfs(pulled.digest)
    assert rootfs.os == "wasi" and rootfs.artifacts[0].path.read_bytes() == MODULE
    assert b"".join([piece async for piece in library.export(pulled.digest, "file")]) == MODULE
    await library.collect(set())
    wasm_layout(tmp_path / "torn", *TYPES[0], MODULE[:-3])
    wasm_layout(tmp_path / "other", *TYPES[0], b"\x7fELF")
    (tmp_path / "cut").write_bytes(MODULE[:-1])
    for name in ("torn", "other", "cut"):
        with pytest.raises(Corrupt):
            await library.import_file(str(tmp_path / name), report)
        assert nothing_left() == []


async def test_layers_for_wasi(library: DiskLibrary, report: Report, tmp_path: Path) -> None:
    """An ordinary image whose platform is WebAssembly keeps its layers, and says what it is for."""
    layer = tarballs.tar(tarballs.member("app.wasm", MODULE))
    digest = tarballs.layout(tmp_path / "l", [layer])
    blobs = tmp_path / "l" / "blobs" / "sha256"
    manifest = json.loads((blobs / digest.removeprefix("sha256:")).read_bytes())
    config = json.loads((blobs / manifest["config"]["digest"].removeprefix("sha256:")).read_bytes())
    config |= {"os": "wasip1", "architecture": "wasm"}
    for document, slot in ((config, manifest["config"]), (manifest, None)):
        data = json.dumps(document).encode()
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        target = slot if slot is not None else json.loads((tmp_path / "l" / "index.json").read_text())["manifests"][0]
        target |= {"digest": f"sha256:{name}", "size": len(data)}
        target.pop("platform", None)
    (tmp_path / "l" / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [target]}))
    status = await library.import_file(str(tmp_path / "l"), report)
    assert status.os == "wasi" and not status.artifacts
    (top,) = (await library.rootfs(status.digest)).layers
    assert (top / "app.wasm").read_bytes() == MODULE


async def test_what_is_lost_makes_the_image_incomplete(
    library: DiskLibrary, report: Report, disk: Path, tmp_path: Path
) -> None:
    status = await library.import_file(str(disk), report)
    (library.path / "scratch" / "left").write_bytes(b"x")
    (library.path / "artifacts" / status.artifacts[0].digest.removeprefix("sha256:")).unlink()
    again = DiskLibrary(library.path, grace=0)
    await again.open()
    assert await again.inventory() == set() and not scratch(again)
