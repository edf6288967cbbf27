"""The command line of one QEMU, from values alone. Everything that it opens was opened for it, but the kernel and the initrd, which its
loader finds by name: two files of its room."""

import msgspec

from lamella.host.compute.qemu.launch import FIRMWARE, QEMU, SANDBOX
from lamella.host.compute.qemu.layers import ColdDisk, serial
from lamella.host.compute.qemu.pages import OWN_PAGES
from lamella.host.compute.qemu.size import MIB, TRANSLATED, Size

# Where things lie inside the room.
KERNEL = "/boot/kernel"
INITRD = "/boot/initrd"

# Descriptors that QEMU inherits. The serial line is standard input and output; SERIAL is a file that gets a copy of what comes out.
INPUT, OUTPUT = 0, 1
MONITOR, SERIAL = 3, 4
FIRST_DEVICE = 10

EXIT_PORTS = (0xF4, 0x501)
"""Where a kernel writes its exit code: the port that most examples use, and QEMU's default."""

# One dump of registers a processor is written when it starts, into memory of a fixed size: with more there is no room for the rest.
_MOST_TRACED = 8


class Drive(msgspec.Struct, kw_only=True, frozen=True):
    """A disk by the device's name. With *waits*, a failure of it stops the machine rather than being told."""

    name: str
    disk: ColdDisk
    waits: bool = False


class Card(msgspec.Struct, kw_only=True, frozen=True):
    """A NIC on a TAP, descriptor *fd*, by the device's name."""

    name: str
    fd: int
    mac: str


class Hardware(msgspec.Struct, kw_only=True, frozen=True):
    """One unikernel as QEMU is to make it.

    ``board`` is ``microvm``, whose devices are virtio-mmio, or a machine type of the q35 family (``pc-q35-7.2``), whose devices are on PCI.
    """

    name: str
    size: Size
    accelerator: str
    board: str = "microvm"
    command_line: str = ""
    initrd: bool = False
    drives: list[Drive] = []
    cards: list[Card] = []

    @property
    def pci(self) -> bool:
        return self.board != "microvm"


def arguments(hardware: Hardware) -> list[str]:
    """The argument vector, the program first. The processors do not run until they are told (``-S``)."""
    return [
        QEMU,
        *("-name", hardware.name, "-S"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-sandbox", SANDBOX),
        *("-L", FIRMWARE),
        *_board(hardware),
        *("-kernel", KERNEL, "-append", hardware.command_line),
        *(("-initrd", INITRD) if hardware.initrd else ()),
        *("-chardev", f"socket,id=monitor,fd={MONITOR},server=on,wait=off", "-mon", "chardev=monitor,mode=control"),
        *("-add-fd", f"fd={SERIAL},set={SERIAL}"),
        *("-chardev", f"stdio,id=serial,signal=off,logfile=/dev/fdset/{SERIAL},logappend=on"),
        *("-serial", "chardev:serial"),
        *_ending(hardware),
        *("-device", _device(hardware, "virtio-rng")),
        *(word for drive in hardware.drives for word in _drive(hardware, drive)),
        *(word for card in hardware.cards for word in _card(hardware, card)),
    ]


def _board(hardware: Hardware) -> list[str]:
    accelerators = {"kvm": "kvm", "tcg": f"tcg,thread=multi,tb-size={TRANSLATED // MIB}"}
    board = f"{hardware.board},vmport=off,smm=off" if hardware.pci else "microvm,rtc=on"
    return [
        *("-machine", board + OWN_PAGES, "-accel", accelerators[hardware.accelerator], "-cpu", "max"),
        *("-smp", str(hardware.size.vcpus), "-m", f"{hardware.size.memory // MIB}M"),
        *(() if hardware.pci else ("-global", "virtio-mmio.force-legacy=false")),
    ]


def _ending(hardware: Hardware) -> list[str]:
    """How a kernel ends its run, and what tells afterwards how it did (ending.py)."""
    words = [word for port in EXIT_PORTS for word in ("-device", f"isa-debug-exit,iobase={port:#x},iosize=4")]
    words += ["-device", "pvpanic", "-trace", "enable=qemu_system_shutdown_request"]
    if hardware.accelerator == "tcg" and hardware.size.vcpus <= _MOST_TRACED:
        words += ["-d", "cpu_reset"]
    return words


def _drive(hardware: Hardware, drive: Drive) -> list[str]:
    node, waits = drive.disk.node["node-name"], ",werror=stop,rerror=stop" if drive.waits else ""
    device = f"{_device(hardware, 'virtio-blk')},id=dev-{drive.name},drive={node},serial={serial(drive.name)}{waits}"
    return [*drive.disk.arguments, "-device", device]


def _card(hardware: Hardware, card: Card) -> list[str]:
    device = f"{_device(hardware, 'virtio-net')},id=dev-{card.name},netdev=net-{card.name},mac={card.mac}"
    return [
        "-netdev",
        f"tap,id=net-{card.name},fd={card.fd}",
        "-device",
        f"{device}{',romfile=' if hardware.pci else ''}",
    ]


def _device(hardware: Hardware, kind: str) -> str:
    return f"{kind}-{'pci' if hardware.pci else 'device'}"
