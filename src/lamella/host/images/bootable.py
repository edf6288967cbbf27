"""A bootable disk made from the unpacked root of a Debian image: a sparse raw file that a BIOS, UEFI and Secure Boot start.

No loop device, no mount, nothing of the root is run: mke2fs(8) copies the tree, mkfs.fat(8) and mtools(1) make the EFI system
partition, grub-mkimage(1) the code for a BIOS. Every id and time follows from the root, so that the same root and the same tools
give the same bytes. Secure Boot stands on Debian's own signatures: shim, GRUB and the kernel.
"""

import os
import stat
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from lamella.host.images import bootable_ext4, bootable_layout
from lamella.host.images.bootable_layout import SECTOR, Layout
from lamella.host.images.thread import stoppable, together
from lamella.host.linux import binaries
from lamella.host.linux.processes import run
from lamella.model.errors import Internal, Unavailable, Unsupported

_DEADLINE = 900.0
_BLOCK = 4096
_PIECE = 64 << 10
# Named one by one: what this host's mke2fs.conf(5) holds as usual is not what every GRUB reads.
_FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
_BIOS_MODULES = (
    "biosdisk",
    "part_gpt",
    "ext2",
    "search",
    "search_fs_uuid",
    "normal",
    "configfile",
    "linux",
    "serial",
    "terminal",
    "echo",
    "test",
    "ls",
    "cat",
    "reboot",
    "halt",
)


_TOOLS = "e2fsprogs dosfstools mtools grub-common"


class Firmware(msgspec.Struct, kw_only=True, frozen=True):
    """What this host's packages hold for machines of one architecture: files, and where UEFI looks for them."""

    packages: str
    shim: Path
    grub: Path
    manager: Path
    shim_name: str
    grub_name: str
    manager_name: str
    bios: Path | None


_FIRMWARE = {
    "amd64": Firmware(
        packages="shim-signed grub-efi-amd64-signed grub-pc-bin",
        shim=Path("/usr/lib/shim/shimx64.efi.signed"),
        grub=Path("/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"),
        manager=Path("/usr/lib/shim/mmx64.efi.signed"),
        shim_name="BOOTX64.EFI",
        grub_name="grubx64.efi",
        manager_name="mmx64.efi",
        bios=Path("/usr/lib/grub/i386-pc"),
    ),
    "arm64": Firmware(
        packages="shim-signed grub-efi-arm64-signed",
        shim=Path("/usr/lib/shim/shimaa64.efi.signed"),
        grub=Path("/usr/lib/grub/arm64-efi-signed/grubaa64.efi.signed"),
        manager=Path("/usr/lib/shim/mmaa64.efi.signed"),
        shim_name="BOOTAA64.EFI",
        grub_name="grubaa64.efi",
        manager_name="mmaa64.efi",
        bios=None,
    ),
}


def architecture() -> str:
    """This host's, as dpkg names it."""
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def check_tools(architecture: str) -> None:
    """:raise Unsupported: when a disk for *architecture* cannot be made here, and what to install for it."""
    firmware = _FIRMWARE.get(architecture)
    if firmware is None:
        raise Unsupported(
            f"no bootable disk can be made for {architecture}", hint=f"one can for {', '.join(sorted(_FIRMWARE))}"
        )
    files = [firmware.shim, firmware.grub, firmware.manager, *([firmware.bios / "boot.img"] if firmware.bios else [])]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise Unsupported(f"a bootable disk needs {', '.join(missing)}", hint=f"apt install {firmware.packages}")
    try:
        for name in ("mke2fs", "mkfs.fat", "mmd", "mcopy", *(["grub-mkimage"] if firmware.bios else [])):
            binaries.tool(name)
    except Unavailable as error:
        raise Unsupported(
            f"a bootable disk cannot be made: {error.message}", hint=f"apt install {_TOOLS} {firmware.packages}"
        ) from error


def loader_settings(layout: Layout) -> str:
    """The first settings that GRUB reads: it finds the root by its UUID, wherever the disk is, and goes on with the root's own."""
    return (
        f"search.fs_uuid {layout.root_uuid} root\n"
        f"set lamella_root={layout.root_uuid}\n"
        "export lamella_root\n"
        "set prefix=($root)/boot/grub\n"
        "configfile $prefix/grub.cfg\n"
    )


async def make_disk(
    root: Path,
    target: Path,
    scratch: Path,
    *,
    identity: str,
    architecture: str,
    epoch: int,
    mark: str = "",
) -> Layout:
    """Write the disk of the tree *root* to the new file *target*. *identity* names the content of *root* (its digest), *epoch* is the
    time (seconds) that made files bear, *scratch* a directory for work in hand, *mark* what our processes bear in their environment.

    :raise Unsupported: when a tool or a signed loader is not installed.
    :raise Internal: when a tool fails; its words are in the error.
    """
    check_tools(architecture)
    firmware = _FIRMWARE[architecture]
    environment = {
        **os.environ,
        **({"LAMELLA_MARK": mark} if mark else {}),
        "SOURCE_DATE_EPOCH": str(epoch),
        "E2FSPROGS_FAKE_TIME": str(epoch),
        "MTOOLSRC": "/dev/null",
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
    }
    content, files = await stoppable(lambda _stop: _content(root))
    layout = bootable_layout.plan(identity, content, architecture)
    await stoppable(lambda _stop: _lay_out(target, layout))
    works: list[Coroutine[Any, Any, None]] = [
        _root(root, target, layout, files, environment),
        _efi(target, scratch, layout, firmware, epoch, environment),
    ]
    if firmware.bios is not None and layout.bios is not None:
        works.append(_bios(target, scratch, layout, firmware.bios, environment))
    await together(works)
    return layout


async def _root(root: Path, target: Path, layout: Layout, files: int, environment: dict[str, str]) -> None:
    options = f"offset={layout.root.start},hash_seed={layout.hash_seed},root_owner=0:0"
    # As many as is usual, and where files are small, room for a quarter more of them.
    inodes = max(layout.root.size // 16384, files * 5 // 4 + 16384)
    # A new sparse file reads as zeros: neither tables nor journal need to be written, now or by the guest's first mount.
    options += ",lazy_itable_init=0,lazy_journal_init=1,nodiscard"
    await _tool(
        [
            "mke2fs",
            *("-q", "-F", "-t", "ext4", "-b", str(_BLOCK), "-I", "256", "-N", str(inodes), "-m", "1", "-L", "root"),
            *("-O", _FEATURES, "-U", str(layout.root_uuid), "-E", options, "-d", str(root)),
            *(str(target), f"{layout.root.size // 1024}k"),
        ],
        environment,
    )
    await stoppable(lambda _stop: _settle(target, layout))


async def _efi(
    target: Path, scratch: Path, layout: Layout, firmware: Firmware, epoch: int, environment: dict[str, str]
) -> None:
    image, settings = scratch / "efi.img", scratch / "efi-grub.cfg"
    await stoppable(lambda _stop: _efi_files(image, settings, layout, epoch))
    await _tool(
        ["mkfs.fat", "--invariant", "-F", "16", "-s", "4", "-i", f"{layout.volume_id:08x}", "-n", "EFI", str(image)],
        environment,
    )
    drive = ["-i", str(image)]
    await _tool(["mmd", *drive, "::/EFI", "::/EFI/BOOT", "::/EFI/debian"], environment)
    for source, name in (
        (firmware.shim, f"BOOT/{firmware.shim_name}"),
        (firmware.grub, f"BOOT/{firmware.grub_name}"),
        (firmware.manager, f"BOOT/{firmware.manager_name}"),
        (firmware.grub, f"debian/{firmware.grub_name}"),
        (settings, "debian/grub.cfg"),
    ):
        await _tool(["mcopy", "-m", *drive, str(source), f"::/EFI/{name}"], environment)
    await stoppable(lambda _stop: _copy(image, target, layout.efi.start))


async def _bios(target: Path, scratch: Path, layout: Layout, grub: Path, environment: dict[str, str]) -> None:
    assert layout.bios is not None
    core, settings = scratch / "core.img", scratch / "bios-grub.cfg"
    await stoppable(lambda _stop: settings.write_text(loader_settings(layout)))
    await _tool(
        [
            "grub-mkimage",
            *("--directory", str(grub), "--format", "i386-pc", "--prefix", "/boot/grub"),
            *("--config", str(settings), "--output", str(core)),
            *_BIOS_MODULES,
        ],
        environment,
    )
    await stoppable(lambda _stop: _install_bios(target, layout, grub / "boot.img", core))


async def _tool(argv: list[str], environment: dict[str, str]) -> None:
    code, said = await run([str(binaries.tool(argv[0])), *argv[1:]], environment=environment, timeout=_DEADLINE)
    if code:
        raise Internal(f"{argv[0]} failed while making a bootable disk: {said[-400:]}")


def _content(root: Path) -> tuple[int, int]:
    """Bytes that the tree *root* takes in blocks of 4 KiB and inodes of 256 bytes, and how many files there are. Links are counted once
    a name: an upper bound.
    """
    total = files = 0
    pending = [str(root)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                files += 1
                total += 256
                if stat.S_ISDIR(status.st_mode):
                    pending.append(entry.path)
                    total += _BLOCK
                elif stat.S_ISREG(status.st_mode):
                    total += -(-status.st_size // _BLOCK) * _BLOCK
    return total, files


def _lay_out(target: Path, layout: Layout) -> None:
    front, back = bootable_layout.partition_table(layout)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, layout.size)
        os.pwrite(descriptor, front, 0)
        os.pwrite(descriptor, back, layout.size - len(back))
    finally:
        os.close(descriptor)


def _settle(target: Path, layout: Layout) -> None:
    descriptor = os.open(target, os.O_RDWR | os.O_CLOEXEC)
    try:
        bootable_ext4.settle_times(descriptor, layout.root.start)
    finally:
        os.close(descriptor)


def _efi_files(image: Path, settings: Path, layout: Layout, epoch: int) -> None:
    settings.write_text(loader_settings(layout))
    os.utime(settings, (epoch, epoch))
    image.touch()
    os.truncate(image, layout.efi.size)


def _install_bios(target: Path, layout: Layout, boot: Path, core: Path) -> None:
    assert layout.bios is not None
    image = bootable_layout.core_image(core.read_bytes(), layout.bios.start)
    if len(image) > layout.bios.size:
        raise Internal(f"GRUB's core image takes {len(image)} bytes, the BIOS boot partition holds {layout.bios.size}")
    descriptor = os.open(target, os.O_RDWR | os.O_CLOEXEC)
    try:
        master = os.pread(descriptor, SECTOR, 0)
        os.pwrite(descriptor, bootable_layout.boot_sector(boot.read_bytes(), master, layout.bios.start), 0)
        os.pwrite(descriptor, image, layout.bios.start)
    finally:
        os.close(descriptor)


def _copy(image: Path, target: Path, start: int) -> None:
    """What is not zero of *image* to byte *start* of *target*, so that *target* stays sparse."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
    try:
        with image.open("rb") as source:
            at = start
            while piece := source.read(_PIECE):
                if piece.strip(b"\0"):
                    os.pwrite(descriptor, piece, at)
                at += len(piece)
    finally:
        os.close(descriptor)
