"""A bootable disk with a small Linux whose init is busybox and which runs our agent as a service; its root partition is at /data."""

import shutil
import subprocess
from pathlib import Path

from lamella.host.compute.guest.service import PATH
from lamella.host.compute.microvm import initramfs
from lamella.host.compute.microvm.kernel import fetch_kernel
from lamella.host.compute.microvm.modules import ModuleTree
from lamella.host.images.bootable import make_disk
from lamella.host.linux import binaries

REPOSITORY = Path(__file__).resolve().parents[1]
_MODULES = ("virtio_pci", "virtio_console", "virtio_blk", "nvme", "ext4")

_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
mkdir -p /dev/pts /sbin /data; mount -t devpts none /dev/pts
while read m; do insmod /modules/$m; done < /modules/list
for name in init poweroff reboot; do ln -s /bin/busybox /sbin/$name; done
for part in /dev/vd?? /dev/vd??? /dev/nvme0n1p?; do
  mount -t ext4 $part /data 2>/dev/null && [ -e /data/boot/vmlinuz ] && break
  umount /data 2>/dev/null
done
exec /sbin/init
"""
_INITTAB = f"""\
::sysinit:/bin/true
::respawn:{PATH} --service
::shutdown:/bin/umount -a -r
"""
_GRUB = """\
set timeout=0
linux /boot/vmlinuz console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable mitigations=off {line}
initrd /boot/initrd
boot
"""


async def build(directory: Path) -> Path:
    """The disk, a raw file."""
    tree = fetch_kernel(REPOSITORY / ".lamella" / "boot" / "kernel")
    busybox = shutil.which("busybox")
    assert busybox is not None
    modules = ModuleTree(tree.modules).ordered([(name, "") for name in _MODULES], set())
    places = ("bin", "dev", "etc", "modules", "proc", "sys", "usr", "usr/lib", "usr/lib/lamella", "tmp", "root")
    archive = initramfs.archive(
        [
            *(initramfs.directory(name) for name in places),
            initramfs.Entry(path="dev/console", mode=0o20600, device=(5, 1)),
            initramfs.file("bin/busybox", Path(busybox).read_bytes(), 0o755),
            initramfs.file("init", _INIT.encode(), 0o755),
            initramfs.file("etc/inittab", _INITTAB.encode()),
            initramfs.file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"),
            initramfs.file("etc/group", b"root:x:0:\n"),
            initramfs.file(PATH.lstrip("/"), binaries.own("lamella-agent").read_bytes(), 0o755),
            initramfs.file("modules/list", "".join(f"{module.name}.ko\n" for module in modules).encode()),
            *(initramfs.file(f"modules/{module.name}.ko", module.content) for module in modules),
        ]
    )
    tsc = subprocess.run([binaries.own("lamella-tsc")], capture_output=True, text=True, check=True, timeout=90)
    root, scratch = directory / "root", directory / "scratch"
    (root / "boot/grub").mkdir(parents=True)
    scratch.mkdir()
    shutil.copy(tree.image, root / "boot/vmlinuz")
    (root / "boot/initrd").write_bytes(archive)
    (root / "boot/grub/grub.cfg").write_text(_GRUB.format(line=f"tsc_early_khz={int(tsc.stdout)}"))
    disk = directory / "linux.img"
    await make_disk(root, disk, scratch, identity="sha256:test", architecture="amd64", epoch=1_700_000_000)
    return disk
