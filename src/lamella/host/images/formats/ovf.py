"""What an OVF descriptor says of a machine (DMTF DSP0243 1.1.1 and 2.1): its disks and files, processors, memory, NICs, firmware.

A pure function from its bytes. Names of files lead nowhere but to what lies beside the descriptor.
"""

import re

import msgspec

from lamella.host.images.formats import xml
from lamella.host.images.formats.disk import LARGEST_DISK
from lamella.host.images.formats.xml import Element
from lamella.model.board import Firmware, Hardware
from lamella.model.errors import Corrupt, Invalid, Unsupported
from lamella.model.image import Appliance

# CIM_ResourceAllocationSettingData.ResourceType
_PROCESSOR, _MEMORY, _CD, _DVD, _DISK = "3", "4", "15", "16", "17"
_ETHERNET = "10"
_CONTROLLERS = ("5", "6", "20")
_MOST_DISKS = 32
_MOST_PROCESSORS = 4096
_LARGEST_MEMORY = 64 << 40
_WORDS = {
    "byte": 0,
    "kilobyte": 10,
    "megabyte": 20,
    "gigabyte": 30,
    "terabyte": 40,
    "kb": 10,
    "mb": 20,
    "gb": 30,
    "tb": 40,
}


class OvfFile(msgspec.Struct, kw_only=True, frozen=True):
    """A file beside the descriptor. ``size`` is what the descriptor says, if it does."""

    name: str
    size: int | None
    gzip: bool


class OvfDisk(msgspec.Struct, kw_only=True, frozen=True):
    """A disk (or a CD's image) of the machine; one without ``file`` is empty, of ``capacity`` bytes."""

    file: OvfFile | None
    capacity: int | None = None
    cdrom: bool = False


class Ovf(msgspec.Struct, kw_only=True, frozen=True):
    """``disks`` are in the order in which the machine has them, disks first, then CDs."""

    disks: list[OvfDisk]
    appliance: Appliance


def read(data: bytes, name: str) -> Ovf:
    """The machine that the descriptor *name* describes.

    :raise Corrupt: when it is not well-formed, has a document type, contradicts itself or names what is not beside it.
    :raise Invalid: when it describes several machines.
    :raise Unsupported: when a disk is the child of another, or comes in pieces.
    """
    root = xml.parse(data, name)
    if root.name != "Envelope":
        raise Corrupt(f"{name} is not an OVF descriptor but <{root.name}>", hint="an OVF descriptor is an Envelope")
    machines = list(root.every("VirtualSystem"))
    if len(machines) != 1:
        raise Invalid(
            f"{name} describes {len(machines)} machines", hint="export the one you want by itself", field="source"
        )
    hardware = machines[0].first("VirtualHardwareSection")
    if hardware is None:
        raise Corrupt(f"{name} says nothing of the machine's hardware", hint="export the machine again")
    files = _files(root, name)
    disks = _disks(root, files, name)
    items = _items(root, hardware)
    chosen = _drives(items, disks, files, name)
    return Ovf(disks=chosen, appliance=_appliance(machines[0], hardware, items, name))


def check_name(href: str, name: str) -> str:
    """*href* when it names a file in the descriptor's own directory.

    :raise Corrupt: when it leads anywhere else.
    """
    if not href or "/" in href or "\\" in href or ":" in href or "\0" in href or href in (".", ".."):
        raise Corrupt(
            f"{name} names the file {href!r}, which does not lie beside it",
            hint="only files in the same archive or directory are read",
        )
    return href


def _files(root: Element, name: str) -> dict[str, OvfFile]:
    found: dict[str, OvfFile] = {}
    for section in root.all("References"):
        for file in section.all("File"):
            compression = file.attributes.get("compression", "").lower()
            if compression not in ("", "identity", "gzip"):
                raise Unsupported(
                    f"{name} has a file compressed by {compression!r}", hint="export it with gzip or without"
                )
            if file.attributes.get("chunkSize"):
                raise Unsupported(f"{name} has a file in pieces", hint="export it without splitting")
            size = file.attributes.get("size")
            found[file.attributes.get("id", "")] = OvfFile(
                name=check_name(file.attributes.get("href", ""), name),
                size=_number(size, name) if size else None,
                gzip=compression == "gzip",
            )
    return found


def _disks(root: Element, files: dict[str, OvfFile], name: str) -> dict[str, OvfDisk]:
    found: dict[str, OvfDisk] = {}
    for section in root.all("DiskSection"):
        for disk in section.all("Disk"):
            if disk.attributes.get("parentRef"):
                raise Unsupported(f"{name} has a disk that is the child of another", hint="export it without snapshots")
            reference = disk.attributes.get("fileRef")
            if reference is not None and reference not in files:
                raise Corrupt(
                    f"{name} has a disk in the file {reference!r}, which it does not list", hint="export it again"
                )
            capacity = disk.attributes.get("capacity", "")
            unit = _unit(disk.attributes.get("capacityAllocationUnits", "byte"), name)
            # What a capacity may be besides a number is ${property}: only an empty disk has to know.
            bytes_ = _number(capacity, name) * unit if capacity.isdecimal() else None
            if reference is None and (bytes_ is None or not 0 < bytes_ <= LARGEST_DISK):
                raise Corrupt(f"{name} has an empty disk of {capacity!r}", hint="give it a capacity, or leave it out")
            found[disk.attributes.get("diskId", "")] = OvfDisk(
                file=files[reference] if reference is not None else None, capacity=bytes_
            )
    return found


def _items(root: Element, hardware: Element) -> list[Element]:
    """What the machine is made of in its default configuration."""
    options = [one for section in root.all("DeploymentOptionSection") for one in section.all("Configuration")]
    default = next(
        (one for one in options if one.attributes.get("default") in ("true", "1")), next(iter(options), None)
    )
    chosen = default.attributes.get("id", "") if default else ""
    plain: list[Element] = []
    for child in hardware.children:
        wanted = child.attributes.get("configuration", "")
        if child.name not in ("Item", "StorageItem", "EthernetPortItem") or child.attributes.get("bound"):
            continue
        if wanted and chosen not in wanted.split():
            continue
        plain.append(child)
    special = {item.value("InstanceID") for item in plain if item.attributes.get("configuration")}
    return [item for item in plain if item.attributes.get("configuration") or item.value("InstanceID") not in special]


def _drives(items: list[Element], disks: dict[str, OvfDisk], files: dict[str, OvfFile], name: str) -> list[OvfDisk]:
    """Disks by controller and place on it, then CDs. A descriptor that plugs nothing in has its disks as they are listed."""
    order = {item.value("InstanceID"): number for number, item in enumerate(items)}
    placed: list[tuple[bool, int, int, int, OvfDisk]] = []
    for number, item in enumerate(items):
        kind, resource = item.value("ResourceType"), item.value("HostResource")
        if kind not in (_DISK, _CD, _DVD) or not resource:
            continue
        match = re.fullmatch(r"(?:ovf:)?/?(disk|file)/(.+)", resource)
        if match is None:
            raise Corrupt(f"{name} has a drive of {resource!r}", hint="a drive holds ovf:/disk/ID or ovf:/file/ID")
        disk = disks.get(match[2]) if match[1] == "disk" else _of_file(files.get(match[2]))
        if disk is None:
            raise Corrupt(
                f"{name} has a drive of {resource!r}, which it does not list", hint="export the machine again"
            )
        cdrom = kind != _DISK
        place = item.value("AddressOnParent")
        at = int(place) if place.isdecimal() and len(place) < 6 else 0
        placed.append(
            (cdrom, order.get(item.value("Parent"), 0), at, number, msgspec.structs.replace(disk, cdrom=cdrom))
        )
    chosen = [one[4] for one in sorted(placed, key=lambda one: one[:4])] or list(disks.values())
    if len(chosen) > _MOST_DISKS:
        raise Unsupported(f"{name} has {len(chosen)} disks", hint=f"at most {_MOST_DISKS} are taken")
    return chosen


def _of_file(file: OvfFile | None) -> OvfDisk | None:
    return OvfDisk(file=file) if file else None


def _appliance(machine: Element, hardware: Element, items: list[Element], name: str) -> Appliance:
    kinds = [(item.value("ResourceType"), item) for item in items]
    processors = [_number(item.value("VirtualQuantity"), name) for kind, item in kinds if kind == _PROCESSOR]
    memory = [
        _number(item.value("VirtualQuantity"), name) * _unit(item.value("AllocationUnits") or "byte * 2^20", name)
        for kind, item in kinds
        if kind == _MEMORY
    ]
    if any(not 0 < count <= _MOST_PROCESSORS for count in processors) or any(
        not 1 << 20 <= size <= _LARGEST_MEMORY for size in memory
    ):
        raise Corrupt(f"{name} asks for a machine that nobody has", hint="look at its processors and its memory")
    settings = {
        one.attributes.get("key", ""): one.attributes.get("value", "")
        for one in hardware.children
        if one.name in ("Config", "ExtraConfig")
    }
    box = next((one.attributes.get("type", "") for one in machine.every("Firmware")), "")
    uefi = settings.get("firmware", "").lower() == "efi" or box.upper().startswith("EFI")
    secure = settings.get("bootOptions.efiSecureBootEnabled", "").lower() == "true"
    return Appliance(
        cpu=processors[0] * 1000 if processors else None,
        memory=sum(memory) or None,
        nics=min(sum(kind == _ETHERNET for kind, _ in kinds), 64),
        firmware=Firmware.UEFI if uefi else Firmware.BIOS,
        secure_boot=uefi and secure,
        hardware=_hardware(items),
    )


def _hardware(items: list[Element]) -> Hardware:
    """virtio only where the disks hang on virtio already: only then it is known that the guest has its drivers."""
    holders = {item.value("Parent") for item in items if item.value("ResourceType") == _DISK}
    controllers = [
        item.value("ResourceSubType").lower()
        for item in items
        if item.value("ResourceType") in _CONTROLLERS and item.value("InstanceID") in holders
    ]
    virtio = bool(controllers) and all("virtio" in kind for kind in controllers)
    return Hardware.VIRTIO if virtio else Hardware.GENERIC


def _number(text: str, name: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise Corrupt(f"{name} has {text!r} where a number belongs", hint="export the machine again")
    return int(text)


def _unit(text: str, name: str) -> int:
    """Bytes in a programmatic unit (DSP0004, annex C): ``byte * 2^20``, or the words that older tools wrote."""
    word = text.strip().lower()
    if word.removesuffix("s") in _WORDS:
        return 1 << _WORDS[word.removesuffix("s")]
    match = re.fullmatch(r"byte\s*\*\s*(2|10)\s*\^\s*(\d{1,2})", word)
    if match is None or (match[1] == "2" and int(match[2]) > 50) or (match[1] == "10" and int(match[2]) > 15):
        raise Corrupt(f"{name} counts in {text!r}", hint="a unit of memory is like 'byte * 2^20'")
    return int(match[1]) ** int(match[2])
