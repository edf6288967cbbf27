"""How a machine is laid out that runs: its size, and what is plugged in where. A memory of it goes on in a machine of the same layout."""

import hashlib
import re

import msgspec

from lamella.host.compute.driver import Machine
from lamella.host.compute.qemu.layers import ColdDisk, Properties
from lamella.host.compute.qemu.monitor import Monitor
from lamella.host.compute.qemu.places import ProcessRecord
from lamella.host.compute.qemu.size import Size
from lamella.host.compute.vm import devices, hotplug, sizing
from lamella.host.compute.vm.devices import Part
from lamella.host.compute.vm.wiring import Insert, Plug, Step
from lamella.model.board import Hardware
from lamella.model.errors import Unsupported

_RESTART = "restart it: it then starts with all that it was given"


class Device(msgspec.Struct, kw_only=True, frozen=True):
    """A device on root port ``port``, or the image in drive ``port``. A disk has ``size`` bytes."""

    name: str
    part: Part
    port: str
    size: int = 0
    read_only: bool = False


class Layout(msgspec.Struct, kw_only=True, frozen=True):
    """``ports`` counts the root ports, ``drives`` are the CD drives; ``root`` is the first disk's size in bytes (``None``: there is none),
    ``mac`` the first NIC's."""

    board_type: str
    size: Size
    largest: Size
    ports: int
    drives: list[str]
    root: int | None
    mac: str
    devices: list[Device]

    @property
    def steps(self) -> list[Step]:
        """How a machine comes to have its devices where they are here."""
        return [
            Insert(name=one.name, drive=one.port)
            if one.part is Part.CDROM
            else Plug(name=one.name, part=one.part, port=one.port)
            for one in self.devices
        ]

    @property
    def kinds(self) -> list[tuple[str, Part]]:
        return sorted((one.name, one.part) for one in self.devices)


class _Image(msgspec.Struct):
    size: int = msgspec.field(name="virtual-size", default=0)


class _Inserted(msgspec.Struct):
    read_only: bool = msgspec.field(name="ro", default=False)
    image: _Image = msgspec.field(default_factory=_Image)


class _Block(msgspec.Struct):
    qdev: str = ""
    inserted: _Inserted | None = None


async def look(monitor: Monitor, record: ProcessRecord, machine: Machine) -> Layout:
    """The layout of *machine* as it runs.

    :raise Unsupported: when no other could be laid out so; the sentence says why.
    """
    if why := why_not(machine):
        raise Unsupported(f"the memory of this machine cannot be kept: {why}")
    now = await sizing.look(monitor)
    if now.grown or now.vcpus != record.size.vcpus:
        raise Unsupported("the memory of this machine cannot be kept: it has grown while it ran", hint=_RESTART)
    plugged = await hotplug.look(monitor)
    disks = await _disks(monitor)
    found: list[Device] = []
    for name, device in sorted(plugged.devices.items()):
        disk = disks.get(f"dev-{name}", _Inserted())
        found.append(
            Device(name=name, part=device.part, port=device.port, size=disk.image.size, read_only=disk.read_only)
        )
    for drive, medium in sorted(plugged.drives.items()):
        if medium is not None:
            found.append(Device(name=medium.name, part=Part.CDROM, port=drive, size=disks[drive].image.size))
    return Layout(
        board_type=record.board_type,
        size=record.size,
        largest=record.largest or record.size,
        ports=len(plugged.ports),
        drives=sorted(plugged.drives),
        root=disks["root"].image.size if "root" in disks else None,
        mac=machine.nic.mac if machine.nic else "",
        devices=found,
    )


def why_not(machine: Machine) -> str:
    """Why no memory of *machine* can be kept, or nothing."""
    if machine.huge_pages is not None:
        return "it is made of huge pages, which no other machine can share"
    if machine.usb:
        return "a USB device of the host is plugged in, which cannot be copied"
    if machine.board.hardware is Hardware.GENERIC and (machine.disks or machine.volumes):
        return "NVMe disks are plugged in, whose state QEMU cannot write down"
    return ""


def why_not_another(machine: Machine) -> str:
    """Why no other machine can begin with its memory, or nothing."""
    if machine.board.tpm:
        return "a TPM's keys are of one machine alone"
    if machine.nics:
        return "it has more than one NIC, and the guest's agent gives one a new address"
    return ""


def fits(layout: Layout, machine: Machine) -> str:
    """Why *machine* cannot go on in *layout*, or nothing."""
    limits, size = machine.limits, layout.size
    if limits.memory is not None and limits.memory > size.memory:
        return "it asks for more memory than that machine had"
    if limits.cpu is not None and limits.cpu > size.vcpus * 1000:
        return "it asks for more processors than that machine had"
    root = None if machine.disk is None else machine.disk.size
    if layout.root is not None and root and root < layout.root:
        return "its root disk is smaller than that machine's"
    return ""


def wanted(machine: Machine) -> list[tuple[str, Part]]:
    """What is to be plugged into *machine*, as :attr:`Layout.kinds` says it."""
    return sorted((one.name, one.part) for one in devices.wanted(machine))


def spare_disk(name: str, size: int, *, read_only: bool = False) -> Properties:
    """A block node of *size* bytes that reads as zeros and forgets what is written."""
    return {"driver": "null-co", "node-name": name, "size": size, "read-zeroes": True, "read-only": read_only}


def spare_root(size: int) -> ColdDisk:
    return ColdDisk(node=spare_disk("root", size), files=[])


def digest(words: list[str]) -> str:
    """Of a command line, where no word differs but by what is one machine's alone."""
    return hashlib.sha256("\0".join(re.sub(r",bootindex=\d+", "", word) for word in words).encode()).hexdigest()[:12]


async def _disks(monitor: Monitor) -> dict[str, _Inserted]:
    """What lies under each device with a disk in it, by the device's id."""
    found: dict[str, _Inserted] = {}
    for block in await monitor.ask(list[_Block], "query-block"):
        # A virtio disk tells the path of its inner half: /machine/peripheral/ID/virtio-backend.
        device = re.sub(r"^/machine/peripheral/([^/]+)(/.*)?$", r"\1", block.qdev)
        if device and block.inserted is not None:
            found[device] = block.inserted
    return found
