"""The virtual hardware of a full machine, as a person asks for it: firmware, disks, drives, the seed of its first boot.

Containers have none of it; a microVM and a unikernel have little. ``control/admission.py`` says which level takes what.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

DeviceName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,30}$(?!\n)")]
ImageReference = Annotated[str, Meta(min_length=1, max_length=512)]


class Firmware(StrEnum):
    """``bios`` is SeaBIOS, ``uefi`` OVMF."""

    BIOS = "bios"
    UEFI = "uefi"


class Hardware(StrEnum):
    """``virtio`` wants a guest with its drivers; ``generic`` is what every operating system knows: SATA, e1000, VGA, PS/2."""

    VIRTIO = "virtio"
    GENERIC = "generic"


class Graphics(StrEnum):
    """``vga`` every guest can draw on; ``virtio`` is faster with a driver; ``qxl`` goes with SPICE."""

    NONE = "none"
    VGA = "vga"
    VIRTIO = "virtio"
    QXL = "qxl"


class Watchdog(StrEnum):
    """What happens when a guest that began to feed its watchdog stops doing so."""

    NONE = "none"
    RESET = "reset"
    POWEROFF = "poweroff"
    PAUSE = "pause"
    DUMP = "dump"


class OnCrash(StrEnum):
    """What happens when the guest's kernel panics and tells (pvpanic). ``dump`` writes its memory first, then ends the run."""

    STOP = "stop"
    DUMP = "dump"


class Confidential(StrEnum):
    """Which technology keeps the guest's memory from the host."""

    SEV_SNP = "sev-snp"
    TDX = "tdx"


class Board(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``certificates`` are PEM texts enrolled for Secure Boot beside the distribution's keys. ``boot`` is the order in which the firmware
    looks, by device name (``root``, a disk's, a cdrom's, ``nic`` for the first NIC). Empty is the root disk first when it comes from an
    image, drives first when it is empty.

    ``command_line`` goes to the kernel of a unikernel.
    """

    firmware: Firmware = Firmware.BIOS
    secure_boot: bool = False
    certificates: Annotated[list[Annotated[str, Meta(max_length=65536)]], Meta(max_length=16)] = []
    tpm: bool = False
    hardware: Hardware = Hardware.VIRTIO
    graphics: Graphics = Graphics.VGA
    spice: bool = False
    watchdog: Watchdog = Watchdog.NONE
    on_crash: OnCrash = OnCrash.STOP
    boot: Annotated[list[DeviceName], Meta(max_length=16)] = []
    command_line: Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00]*$")] = ""
    confidential: Confidential | None = None


class Disk(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A disk beside the root disk: empty, *size* bytes, and the instance's own: it goes with it, or when it is taken out."""

    name: DeviceName
    size: Annotated[int, Meta(ge=1 << 20, le=1 << 56)]


class Cdrom(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A drive with the image of a CD or DVD in it, read only."""

    name: DeviceName
    image: ImageReference


class Usb(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A USB device of the host, by its numbers (``1d6b:0002``, as lsusb prints them)."""

    name: DeviceName
    device: Annotated[str, Meta(pattern=r"^[0-9a-f]{4}:[0-9a-f]{4}$(?!\n)")]


class Seed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What cloud-init is told (NoCloud). ``user_data`` is passed on as it is; ``ssh_keys`` are authorized_keys lines.

    ``enabled`` false gives the guest no seed: then nothing tells it its address either.
    """

    enabled: bool = True
    user_data: Annotated[str, Meta(max_length=1 << 20, pattern=r"^[^\x00]*$")] = ""
    ssh_keys: Annotated[list[Annotated[str, Meta(max_length=16384, pattern=r"^[^\x00\n]*$")]], Meta(max_length=64)] = []


class Directory(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A directory of the host at *target* inside."""

    source: Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^/[^\x00]*$")]
    target: Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^/[^\x00]*$")]
    read_only: bool = False


class Pointer(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The pointer is put at (*x*, *y*), each 0 to 1 of the screen; *buttons* (``left``, ``middle``, ``right``) are clicked there."""

    x: Annotated[float, Meta(ge=0, le=1)]
    y: Annotated[float, Meta(ge=0, le=1)]
    buttons: list[Annotated[str, Meta(pattern=r"^(left|middle|right)$(?!\n)")]] = []


class Input(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What hands do at a machine, in this order: *text* typed on a US keyboard, *keys* pressed together one list after another
    (QEMU's names: ``ctrl``, ``alt``, ``delete``, ``ret``), *pointer* moved."""

    text: Annotated[str, Meta(max_length=65536)] = ""
    keys: Annotated[
        list[Annotated[list[Annotated[str, Meta(pattern=r"^[a-z0-9_]{1,24}$(?!\n)")]], Meta(max_length=8)]],
        Meta(max_length=256),
    ] = []
    pointer: Annotated[list[Pointer], Meta(max_length=256)] = []


class DesktopTicket(msgspec.Struct, kw_only=True):
    """Lets one viewer in, once, until ``expires``. ``kind`` is ``vnc`` or ``spice``.

    The viewer speaks TLS with the machine's own screen (VNC: VeNCrypt X509Vnc) and must be shown ``password``; ``certificate``
    is the PEM of the authority that its certificate is from.
    """

    kind: str
    password: str
    certificate: str
    expires: str
