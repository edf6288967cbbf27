"""What may come and go on a machine, in QEMU's words: the places that are made for it at the start, and each device. Pure.

A disk is virtio-blk, or NVMe on ``generic`` hardware: QEMU's SATA takes no disk while a machine runs, and every system of
the last ten years knows NVMe. A NIC is virtio-net or e1000e. Both sit on a PCIe root port of their own. A CD lies in a SATA
drive that is there from the start, since only the medium may change. USB has one controller.

Ids: device ``dev-NAME``, block node ``disk-NAME``, netdev ``net-NAME``, drive ``drive-N``, root port ``port-N``, controller ``usb``.
"""

from enum import StrEnum

import msgspec

from lamella.host.compute.driver import Machine, MountedVolume
from lamella.host.compute.qemu.layers import Properties, serial
from lamella.model.board import Graphics, Hardware

SPARE_PORTS = 8
SPARE_DRIVES = 1
MOST_DRIVES = 6
_FIRST_SLOT = 0x10
_FUNCTIONS = 8


class Part(StrEnum):
    DISK = "disk"
    NIC = "nic"
    CDROM = "cdrom"
    USB = "usb"


class Wanted(msgspec.Struct, kw_only=True, frozen=True):
    """A device that the machine shall have. Another *identity* (volume, MAC, image, USB numbers) is another device."""

    name: str
    part: Part
    identity: str


_DRIVERS = {
    Hardware.VIRTIO: {Part.DISK: "virtio-blk-pci", Part.NIC: "virtio-net-pci"},
    Hardware.GENERIC: {Part.DISK: "nvme", Part.NIC: "e1000e"},
}
# What else of a machine can be booted from, beside what is plugged in.
BOOTABLE = frozenset({"ide-hd", "ide-cd", "e1000"})
_PARTS = {driver: part for drivers in _DRIVERS.values() for part, driver in drivers.items()}


def cold_arguments(machine: Machine, ports: int | None = None, drives: int | None = None) -> list[str]:
    """What has to be on the command line so that everything else can be plugged in later: as many root *ports* and CD *drives* as are said,
    else as many as *machine* gets at its start."""
    arguments: list[str] = []
    for number in range(ports_at_start(machine) if ports is None else ports):
        slot, function = divmod(number, _FUNCTIONS)
        address = f"{_FIRST_SLOT + slot:#x}.{function}"
        # A PCIe device needs no I/O ports, of which there are enough for a dozen bridges only.
        options = f"id=port-{number},bus=pcie.0,chassis={number + 1},addr={address},io-reserve=0"
        arguments += ["-device", f"pcie-root-port,{options}{',multifunction=on' if function == 0 else ''}"]
    # A controller of their own: the board's has the machine's first disk and the image's own CDs.
    arguments += ["-device", "ich9-ahci,id=drives,bus=pcie.0,addr=0x1e"]
    for number in range(drives_at_start(machine) if drives is None else drives):
        arguments += ["-device", f"ide-cd,id=drive-{number},bus=drives.{number}"]
    arguments += _usb_controller(machine.board.hardware)
    if machine.board.graphics is not Graphics.NONE:
        # A mouse tells only how far it went: only a tablet can be put at a place.
        arguments += ["-device", "usb-tablet,id=tablet,bus=usb.0,port=1"]
        if machine.board.hardware is Hardware.VIRTIO:
            # For guests whose kernel knows no USB, as those for clouds; the one whose driver came last is moved.
            arguments += ["-device", "virtio-tablet-pci,id=touch,bus=pcie.0,addr=0xa"]
    return arguments


def ports_at_start(machine: Machine) -> int:
    """Root ports: one a device, ``SPARE_PORTS`` or more beside."""
    asked = len(machine.disks) + len(machine.volumes) + len(machine.nics) + SPARE_PORTS
    return -(-asked // _FUNCTIONS) * _FUNCTIONS


def drives_at_start(machine: Machine) -> int:
    """CD drives: one an image and an empty one."""
    return min(MOST_DRIVES, len(machine.cdroms) + SPARE_DRIVES)


def wanted(machine: Machine) -> list[Wanted]:
    """What *machine* shall have plugged in."""
    return [
        *(Wanted(name=disk.name, part=Part.DISK, identity=disk.volume.id) for disk in machine.disks),
        *(Wanted(name=volume.device, part=Part.DISK, identity=volume.id) for volume in machine.volumes),
        *(Wanted(name=nic.name, part=Part.NIC, identity=nic.attachment.mac.lower()) for nic in machine.nics),
        *(Wanted(name=image.name, part=Part.CDROM, identity=str(image.path)) for image in machine.cdroms),
        *(Wanted(name=usb.name, part=Part.USB, identity=usb.device) for usb in machine.usb),
    ]


def part_of(driver: str) -> Part | None:
    """Which part a device with this driver is."""
    return Part.USB if driver.startswith("usb-") else _PARTS.get(driver)


def disk_device(hardware: Hardware, name: str, bus: str) -> Properties:
    device: Properties = {"driver": _DRIVERS[hardware][Part.DISK], "id": f"dev-{name}", "bus": bus}
    return device | {"drive": f"disk-{name}", "serial": serial(name)}


def nic_device(hardware: Hardware, name: str, bus: str, *, mac: str, mtu: int, bootable: bool) -> Properties:
    """The NIC. *bootable* gives it the ROM from which a BIOS starts over the network; it costs a second of each boot."""
    device: Properties = {"driver": _DRIVERS[hardware][Part.NIC], "id": f"dev-{name}", "bus": bus}
    device |= {"netdev": f"net-{name}", "mac": mac}
    if not bootable:
        device["romfile"] = ""
    if hardware is Hardware.VIRTIO:
        device["host_mtu"] = mtu
    return device


def volume_device(hardware: Hardware, volume: MountedVolume, bus: str) -> Properties:
    """A volume: a failure of it stops the machine rather than telling the guest, where the device can (NVMe cannot)."""
    device = disk_device(hardware, volume.device, bus)
    if hardware is Hardware.VIRTIO:
        device |= {"werror": "stop", "rerror": "stop"}
    return device


def _usb_controller(hardware: Hardware) -> list[str]:
    if hardware is Hardware.VIRTIO:
        return ["-device", "qemu-xhci,id=usb,bus=pcie.0,addr=0x1c"]
    # EHCI with its companions for slow devices is what systems without an xHCI driver know.
    companions = [
        f"ich9-usb-uhci{number},id=usb-{number},masterbus=usb.0,firstport={2 * (number - 1)},bus=pcie.0,addr=0x1d.{number - 1}"
        for number in (1, 2, 3)
    ]
    controllers = [
        "ich9-usb-ehci1,id=usb,bus=pcie.0,addr=0x1d.7",
        *(f"{companion}{',multifunction=on' if number == 0 else ''}" for number, companion in enumerate(companions)),
    ]
    return [word for controller in controllers for word in ("-device", controller)]
