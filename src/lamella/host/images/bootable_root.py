"""What a Debian root holds more when it is to boot by itself: packages, settings, and the commands that put them there.

A container or a microVM of the same image has all of this too and starts none of it: they share one root.
"""

import shlex
from pathlib import Path

from lamella.host.compute.guest.service import ServiceFile, systemd_files
from lamella.host.linux import binaries

_KERNELS = {"amd64": "linux-image-cloud-amd64", "arm64": "linux-image-cloud-arm64"}
_PACKAGES = (
    "systemd-sysv",
    "systemd-resolved",
    "udev",
    "dbus",
    "cloud-init",
    "openssh-server",
    "iproute2",
    "netbase",
    "ca-certificates",
    "sudo",
    "e2fsprogs",
    "cloud-guest-utils",
    "fdisk",
    "zstd",
)

# What stands between the firmware and the root, of every hypervisor that the disk may be exported to. What the kernel has built
# in (NVMe, ext4) is not a module; a name that it does not know is passed over.
_BOOT_MODULES = (
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_scsi",
    "ahci",
    "ata_piix",
    "sd_mod",
    "hv_vmbus",
    "hv_storvsc",
    "xen-blkfront",
    "vmw_pvscsi",
    "mptspi",
)

_INITRAMFS = """\
# Modules for the root's disk alone: the initramfs is unpacked at every boot, and everything else is loaded from the root.
MODULES=list
COMPRESS=zstd
RESUME=none
FSTYPE=ext4
"""

# `/vmlinuz` and `/initrd.img` are links that Debian keeps at the newest kernel, `.old` at the one before it: an upgrade inside needs
# no tool of GRUB. `no_timer_check` passes over a test of the timer's interrupt that fails now and then where the processor is
# emulated; under KVM the kernel passes over it by itself.
_GRUB = """\
set default=0
set fallback=1
set timeout=0
set arguments="root=UUID=$lamella_root rw console=tty0 console=ttyS0,115200n8 no_timer_check"
menuentry "Debian GNU/Linux" {
    linux /vmlinuz $arguments
    initrd /initrd.img
}
menuentry "Debian GNU/Linux, the kernel before" {
    linux /vmlinuz.old $arguments
    initrd /initrd.img.old
}
"""

_CLOUD = """\
# A drive labelled CIDATA or nothing: no other source is looked for, and none is waited for.
datasource_list: [NoCloud, None]
"""

_CLOUD_KEYS = """\
# RSA keys take seconds to find where the processor is emulated; every client since OpenSSH 5.7 knows these.
ssh_genkeytypes: [ed25519, ecdsa]
ssh:
  emit_keys_to_console: false
# The locale is C.UTF-8, GRUB is not installed inside, and nothing here is to be found by a vendor's tool.
locale: false
grub_dpkg: {enabled: false}
"""

_RESOLVED = """\
[Resolve]
LLMNR=no
MulticastDNS=no
"""

_WAIT_ONLINE = """\
[Unit]
# Where there is no interface there is nothing to wait for.
ConditionPathExistsGlob=/sys/class/net/[!l]*

[Service]
# One interface is enough, and one that nobody configures holds nothing up for long.
ExecStart=
ExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=10
"""

_HOST_KEYS = """\
[Unit]
Description=SSH host keys, where cloud-init has made none
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
After=cloud-init.service
Before=ssh.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key

[Install]
WantedBy=multi-user.target
"""

_ENABLED = ("systemd-networkd.service", "systemd-networkd-wait-online.service", "systemd-resolved.service")

# A machine that lives for minutes is not kept up to date by itself, and one that lives for years is by its owner's choice.
# The watchers of file systems (e2scrub) need LVM, which is not there. Modules are loaded by whoever uses them, and nobody starts
# Python's compiled files as programs (systemd-binfmt).
_MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "systemd-pstore.service",
    "systemd-binfmt.service",
    *(f"modprobe@{module}.service" for module in ("configfs", "dm_mod", "drm", "fuse", "loop")),
)
_UNITS = "/etc/systemd/system"


def packages(architecture: str) -> list[str]:
    """Names of the packages that make a root bootable on *architecture* (as dpkg names it)."""
    return [_KERNELS[architecture], *_PACKAGES]


def early_files() -> list[ServiceFile]:
    """Settings that must lie there before the packages are configured: the initramfs is made from them."""
    modules = "\n".join(f"manual_add_modules {name}" for name in _BOOT_MODULES)
    hook = f'#!/bin/sh\n[ "$1" = prereqs ] && exit 0\n. /usr/share/initramfs-tools/hook-functions\n{modules}\n'
    return [
        ServiceFile(path="/etc/initramfs-tools/conf.d/lamella", content=_INITRAMFS.encode()),
        ServiceFile(path="/etc/initramfs-tools/hooks/lamella", content=hook.encode(), mode=0o755),
    ]


def late_files() -> list[ServiceFile]:
    """Settings of the finished system, over those of the packages."""
    return [
        ServiceFile(path="/etc/cloud/cloud.cfg.d/91-lamella-datasource.cfg", content=_CLOUD.encode()),
        ServiceFile(path="/etc/cloud/cloud.cfg.d/91-lamella.cfg", content=_CLOUD_KEYS.encode()),
        ServiceFile(
            path=f"{_UNITS}/systemd-networkd-wait-online.service.d/lamella.conf", content=_WAIT_ONLINE.encode()
        ),
        ServiceFile(path=f"{_UNITS}/ssh-host-keys.service", content=_HOST_KEYS.encode()),
        ServiceFile(
            path=f"{_UNITS}/multi-user.target.wants/ssh-host-keys.service", target=f"{_UNITS}/ssh-host-keys.service"
        ),
        ServiceFile(path="/etc/systemd/resolved.conf.d/lamella.conf", content=_RESOLVED.encode()),
        ServiceFile(path="/boot/grub/grub.cfg", content=_GRUB.encode()),
        ServiceFile(path="/etc/machine-id"),
        *[ServiceFile(path=f"{_UNITS}/{unit}", target="/dev/null") for unit in _MASKED],
    ]


def prepare(scratch: Path) -> list[str]:
    """Write into *scratch* what the root gets beside packages, our agent's program among it, and return mmdebstrap's options for it.

    :raise Unavailable: when the agent was not built.
    """
    agent = binaries.own("lamella-agent").read_bytes()
    write(early_files(), scratch / "early")
    write([*late_files(), *systemd_files(agent)], scratch / "late")
    return hooks(scratch / "early", scratch / "late")


def write(files: list[ServiceFile], folder: Path) -> None:
    """Lay *files* out below the new directory *folder*, with modes that do not depend on the umask."""
    folder.mkdir(mode=0o755)
    for file in files:
        path = folder / file.path.lstrip("/")
        for parent in reversed(path.relative_to(folder).parents):
            (folder / parent).mkdir(exist_ok=True)
            (folder / parent).chmod(0o755)
        if file.target:
            path.symlink_to(file.target)
        else:
            path.write_bytes(file.content)
            path.chmod(file.mode)


def hooks(early: Path, late: Path) -> list[str]:
    """Options for mmdebstrap(1) that bring the trees *early* and *late* in at their time, and make the machine nobody's yet: no
    identity, no host keys, no password."""
    units = " ".join(_ENABLED)
    return [
        f"--essential-hook=sync-in {shlex.quote(str(early))} /",
        f'--customize-hook=chroot "$1" systemctl --quiet enable {units}',
        f"--customize-hook=sync-in {shlex.quote(str(late))} /",
        '--customize-hook=rm -f "$1"/etc/ssh/ssh_host_* "$1/var/lib/dbus/machine-id" "$1/var/lib/systemd/random-seed"',
        '--customize-hook=chroot "$1" passwd --quiet --lock root',
    ]
