"""A Linux guest with an init of its own: busybox from an initramfs, the agent one of its services."""

import json
import shutil
import socket
import subprocess
from pathlib import Path

from lamella.host.compute.guest.service import PATH
from lamella.host.compute.microvm import initramfs
from lamella.host.compute.microvm.modules import CHANNEL, ModuleTree

_REST = ("virtio_blk", "virtio_net", "ext4", "nls_cp437", "nls_ascii", "nls_utf8", "vfat")
MODULES = [*CHANNEL, *((name, "") for name in _REST)]
MAC = "02:00:00:00:00:08"

INIT = r"""#!/bin/sh
export PATH=/bin
busybox mkdir -p /proc /sys /dev /tmp /data /sbin /mnt
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
busybox mkdir -p /dev/pts
busybox mount -t devpts -o ptmxmode=0666 devpts /dev/pts
busybox --install -s /bin
for module in $(cat /modules/order); do insmod /modules/$module || echo "no $module"; done
ln -s /bin/busybox /sbin/init
ln -s /bin/busybox /sbin/poweroff
ln -s /bin/busybox /sbin/reboot
hostname untouched
ip link set eth0 name enp0s3
ip addr add 10.0.2.15/24 dev enp0s3
ip link set enp0s3 up
ip route add default via 10.0.2.2
[ ! -b /dev/vda ] || mount -t ext4 /dev/vda /data
exec /sbin/init
"""

INITTAB = f"""\
::sysinit:/bin/true
::respawn:{PATH} --service
::shutdown:/bin/touch /data/shut-down
::shutdown:/bin/umount /data
"""

INITTAB_OF_SEED = """\
::sysinit:/boothook
::shutdown:/bin/true
"""


def make_initramfs(tree: ModuleTree, files: list[initramfs.Entry]) -> bytes:
    """busybox as init, the modules that it loads, and *files*."""
    busybox = shutil.which("busybox")
    assert busybox is not None
    modules = tree.ordered(MODULES, set())
    present = [module for module in modules if module.name != "virtio_pci"]
    return initramfs.archive(
        [
            *(
                initramfs.directory(path)
                for path in ("bin", "etc", "modules", "usr", "usr/lib", "usr/lib/lamella", "dev")
            ),
            initramfs.Entry(path="dev/console", mode=0o20600, device=(5, 1)),
            initramfs.file("bin/busybox", Path(busybox).read_bytes(), 0o755),
            initramfs.file("bin/sh", Path(busybox).read_bytes(), 0o755),
            initramfs.file("init", INIT.encode(), 0o755),
            initramfs.file("etc/passwd", b"root:x:0:0::/root:/bin/sh\nann:x:1000:1001::/home/ann:/bin/sh\n"),
            initramfs.file("etc/group", b"root:x:0:\nann:x:1001:\n"),
            initramfs.file("modules/order", "".join(f"{module.name}.ko\n" for module in present).encode()),
            *(initramfs.file(f"modules/{module.name}.ko", module.content) for module in present),
            *files,
        ]
    )


class BusyboxMachine:
    """Runs from the moment it is made, until :meth:`end`."""

    def __init__(self, kernel: Path, archive: bytes, disk: Path, directory: Path, *, tsc_khz: int) -> None:
        self.agent = directory / "agent"
        self.qga = directory / "qga"
        self.console = directory / "console"
        self._monitor = directory / "monitor"
        ramdisk = directory / "initramfs"
        ramdisk.write_bytes(archive)
        line = "console=ttyS0 quiet reboot=t panic=-1 no_timer_check tsc=reliable mitigations=off cryptomgr.notests=1"
        self.qemu = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
                *("-machine", "microvm,rtc=on", "-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max", "-m", "192M"),
                *("-global", "virtio-mmio.force-legacy=false"),
                *("-kernel", kernel, "-initrd", ramdisk, "-append", f"{line} tsc_early_khz={tsc_khz}"),
                *("-serial", f"file:{self.console}"),
                *("-qmp", f"unix:{self._monitor},server=on,wait=off"),
                *("-device", "virtio-serial-device,id=serial"),
                *("-chardev", f"socket,id=agent,path={self.agent},server=on,wait=off"),
                *("-device", "virtserialport,id=port,nr=1,chardev=agent,name=org.lamella.agent"),
                *("-chardev", f"socket,id=qga,path={self.qga},server=on,wait=off"),
                *("-device", "virtserialport,nr=2,chardev=qga,name=org.qemu.guest_agent.0"),
                *("-drive", f"if=none,id=disk,file={disk},format=raw"),
                *("-device", "virtio-blk-device,drive=disk"),
                *("-netdev", "user,id=net,restrict=on", "-device", f"virtio-net-device,netdev=net,mac={MAC}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def tell(self, command: str, **arguments: object) -> object:
        """One QMP command, after which the monitor is free again."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(10)
            monitor.connect(str(self._monitor))
            with monitor.makefile("rw") as file:
                file.readline()
                for request in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                    file.write(json.dumps(request) + "\n")
                    file.flush()
                    while "event" in (answer := json.loads(file.readline())):
                        continue
                    assert "return" in answer, answer
                return answer["return"]

    def end(self) -> None:
        self.qemu.kill()
        self.qemu.wait()
