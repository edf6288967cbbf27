"""One build, a root and a disk: what is in them, that the disk is the same when it is made again, and that machines start from it.

The build takes a minute and each boot up to one under emulation: there is one build for all, and one boot for each way that firmware
finds a loader, which is what only a boot can show.
"""

import asyncio
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from tests.debian import Built

from lamella.host.compute.guest import service
from lamella.host.images import bootable, bootable_layout, debian
from lamella.host.images.formats.digest import digest_disk
from lamella.host.storage.directory import DirectoryDriver
from lamella.host.storage.driver import Base
from lamella.model.ids import new_id
from lamella.model.image import ArtifactKind
from lamella.model.storage import VolumeForm

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]
GIB = 1 << 30
OVMF = Path("/usr/share/OVMF")


@pytest.fixture(scope="module")
def built(debian: Built) -> Built:
    return debian


def test_one_image_holds_a_root_and_a_disk(built: Built) -> None:
    (layer,), (artifact,) = built.status.layers, built.status.artifacts
    assert artifact.kind is ArtifactKind.DISK and artifact.digest == built.disk.digest
    assert artifact.size == built.disk.size == built.disk.path.stat().st_size < 2.5 * GIB
    assert artifact.stored < layer.size * 5 // 4
    assert (built.root / "usr/sbin/nginx").exists() and built.status.config.command == ["bash"]
    assert not list((built.library / "scratch").iterdir())


def test_the_root_is_nobodys_machine_yet(built: Built) -> None:
    root = built.root
    assert (root / "etc/machine-id").read_bytes() == b""
    assert not list((root / "etc/ssh").glob("ssh_host_*")) and not os.path.lexists(root / "etc/resolv.conf")
    (shadow,) = [line for line in (root / "etc/shadow").read_text().splitlines() if line.startswith("root:")]
    assert shadow.split(":")[1].startswith(("!", "*"))
    assert os.access(root / service.PATH.lstrip("/"), os.X_OK)
    assert (root / service.UNIT_LINK.lstrip("/")).readlink() == Path(service.UNIT_PATH)
    assert (root / "vmlinuz").readlink().parts[0] == "boot"
    assert next(root.glob("boot/initrd.img-*")).stat().st_size < 16 << 20


def test_python_in_the_root_need_not_read_its_sources(built: Built) -> None:
    modules = list(built.root.glob("usr/lib/python3/dist-packages/cloudinit/**/*.pyc"))
    assert len(modules) > 100
    for module in modules:
        source = module.parent.parent / (module.name.partition(".")[0] + ".py")
        header = module.read_bytes()[4:16]
        expected = bytes(4) + int(source.stat().st_mtime).to_bytes(4, "little")
        assert header == expected + source.stat().st_size.to_bytes(4, "little"), module


def test_the_disk_is_whole(built: Built, tmp_path: Path) -> None:
    """By the tools of others: sgdisk(8), e2fsck(8), mtools(1)."""
    told = run("sgdisk", "--verify", str(built.disk.path))
    assert "No problems found" in told
    layout = layout_of(built)
    run("e2fsck", "-fn", f"{built.disk.path}?offset={layout.root.start}")
    efi = f"{built.disk.path}@@{layout.efi.start}"
    assert "BOOTX64" in run("mdir", "-b", "-i", efi, "::/EFI/BOOT").upper()
    assert str(layout.root_uuid) in run("mtype", "-i", efi, "::/EFI/debian/grub.cfg")


def test_owners_attributes_and_links_are_those_of_the_root(built: Built, tmp_path: Path) -> None:
    """What debugfs(8) reads from the disk, against the tree that containers get."""
    filesystem = f"{built.disk.path}?offset={layout_of(built).root.start}"
    for name in ("/usr/bin/sudo", "/etc/shadow", "/usr/bin/passwd", "/var/mail", "/tmp", "/var/log/journal"):
        here = built.root / name.lstrip("/")
        if not here.exists():
            continue
        told = run("debugfs", "-R", f"stat {name}", filesystem)
        found = here.stat()
        assert f"{found.st_mode & 0o7777:04o}" in told.split("Mode:")[1].split()[0], name
        assert f"User: {found.st_uid:5}   Group: {found.st_gid:5}" in told, name
        assert f"ctime: 0x{int(found.st_mtime):08x}" in told and f"atime: 0x{int(found.st_mtime):08x}" in told, name


async def test_the_same_root_gives_the_same_disk(built: Built, tmp_path: Path) -> None:
    """From a copy of the tree, on another filesystem where there is one: neither its order nor its times show."""
    elsewhere = Path("/dev/shm") / f"lamella-{tmp_path.name}"
    try:
        await asyncio.to_thread(run, "cp", "-a", str(built.root), str(elsewhere))
        target = tmp_path / "again.raw"
        await bootable.make_disk(
            elsewhere,
            target,
            tmp_path,
            identity=built.status.layers[0].diff_id,
            architecture=bootable.architecture(),
            epoch=debian.release("debian:12").epoch,
        )
    finally:
        await asyncio.to_thread(shutil.rmtree, elsewhere, ignore_errors=True)
    descriptor = os.open(target, os.O_RDONLY)
    try:
        digest = digest_disk(descriptor, target.stat().st_size, threading.Event(), lambda _bytes: None)
    finally:
        os.close(descriptor)
    assert digest == built.disk.digest


@pytest.fixture
async def clone(built: Built, tmp_path: Path) -> Path:
    """A volume of 4 GiB over the disk, as an instance gets it."""
    pool = DirectoryDriver(tmp_path / "pool")
    await pool.open()
    base = Base(path=built.disk.path, size=built.disk.size)
    return (await pool.create(new_id("volume"), VolumeForm.BLOCK, 4 * GIB, base=base)).path


def test_a_bios_starts_it_and_the_root_grows(clone: Path) -> None:
    console = boot(clone, "q35", [])
    assert "Linux version" in console and "login:" in console
    assert "EXT4-fs (vda1): resized filesystem to" in console
    assert "Lamella guest agent" in console
    assert "FAILED" not in console and "cut here" not in console


def test_secure_boot_starts_it(clone: Path, tmp_path: Path) -> None:
    """With Microsoft's keys enrolled: shim, GRUB and the kernel as Debian signed them."""
    variables = tmp_path / "vars.fd"
    shutil.copy(OVMF / "OVMF_VARS_4M.ms.fd", variables)
    console = boot(
        clone,
        "q35,smm=on",
        [
            *("-global", "driver=cfi.pflash01,property=secure,value=on"),
            *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={OVMF / 'OVMF_CODE_4M.ms.fd'}"),
            *("-drive", f"if=pflash,unit=1,format=raw,file={variables}"),
        ],
    )
    assert "secureboot: Secure boot enabled" in console and "login:" in console


def layout_of(built: Built) -> bootable_layout.Layout:
    """As the build planned it: ids follow from the root's digest."""
    layer = built.status.layers[0].diff_id
    return bootable_layout.plan(layer, 0, bootable.architecture())


def run(*command: str) -> str:
    return subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
    ).stdout


def boot(disk: Path, machine: str, firmware: list[str], deadline: float = 400.0) -> str:
    """Start a bare QEMU of the usual devices, and return what its serial console says until a login prompt."""
    command = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", machine),
        *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1G", "-serial", "stdio", *firmware),
        *("-drive", f"if=none,id=disk,file={disk},format=qcow2", "-device", "virtio-blk-pci,drive=disk"),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci", "-chardev", "null,id=agent"),
        *("-device", f"virtserialport,chardev=agent,name={service.PORT}"),
    ]
    said = b""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as qemu:
        assert qemu.stdout is not None
        os.set_blocking(qemu.stdout.fileno(), False)
        try:
            until = time.monotonic() + deadline
            while b"login:" not in said and time.monotonic() < until and qemu.poll() is None:
                said += qemu.stdout.read() or b""
                time.sleep(0.1)
        finally:
            qemu.kill()
    console = said.decode(errors="replace")
    assert "login:" in console, console[-4000:]
    return console
