"""The command line of one QEMU, from values alone. Everything that it opens was opened for it: descriptors, by number.

What may come and go while the machine runs is not here: it is plugged in before the processors run (hotplug.py). What is
here has a fixed place on the PCI bus, so that a guest finds its NIC under the same name whatever else it is given.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec

from lamella.host.compute.qemu import layers, memory_file, pages
from lamella.host.compute.qemu.launch import FIRMWARE, QEMU, SANDBOX
from lamella.host.compute.qemu.layers import ColdDisk
from lamella.host.compute.qemu.size import MIB, TRANSLATED, balloon
from lamella.host.storage.driver import VolumeHandle
from lamella.model.board import Firmware, Graphics, Hardware, Watchdog

# Descriptors that QEMU inherits; 9 is the jailer's (launch.OUTPUT), 10 and 11 are a memory's (memory_file.py).
MONITOR, AGENT, QGA, CONSOLE = 3, 4, 5, 6
CODE, VARIABLES, TPM, TAP = 7, 8, 20, 21
ROOT, BASE, SEED, MEDIA = 12, 13, 14, 16  # MEDIA is the first of at most MOST_MEDIA
MOST_MEDIA = 4
LAYERS = 32  # the first of those of the root disk's other files

AGENT_PORT = "org.lamella.agent"
QGA_PORT = "org.qemu.guest_agent.0"

# Device numbers on the root complex; those from 0x10 on are free for the ports that things are plugged into.
_SCREEN, _NIC, _ROOT, _SERIAL, _ENTROPY, _BALLOON, _WATCHDOG, _SEED = range(1, 9)

_CARDS = {Graphics.VGA: "VGA", Graphics.VIRTIO: "virtio-vga", Graphics.QXL: "qxl-vga"}


class Vm(msgspec.Struct, kw_only=True, frozen=True):
    """One machine as QEMU is to make it.

    ``board_type`` is a versioned machine type (``pc-q35-7.2``); ``sizing``, ``plugs`` and ``screens`` are the arguments of sizing.py,
    hotplug.py and desktop.py; ``root`` is the first disk; ``media``
    counts the CDs of the image; ``mac`` is set when descriptor ``TAP`` is there, and ``netboot`` when a BIOS shall be able to start from
    it (which costs a second of each boot); ``order`` is the boot order (order.py); ``huge_pages`` is the size in bytes of those that its
    memory is made of (``sizing`` has the memory then).
    With ``gives_memory`` what it does not need is taken from it (size.balloon).

    ``file`` says what becomes of a memory that is a file (``sizing`` has it then); with ``incoming`` the machine takes over the state of
    another one. ``spare_variables`` has UEFI's variables be that many bytes of zeros.
    """

    name: str
    uuid: str
    board_type: str
    accelerator: str
    sizing: list[str]
    threads: str = "multi"
    plugs: list[str] = []
    firmware: Firmware = Firmware.BIOS
    secure_boot: bool = False
    tpm: bool = False
    hardware: Hardware = Hardware.VIRTIO
    graphics: Graphics = Graphics.VGA
    screens: list[str] = []
    watchdog: Watchdog = Watchdog.NONE
    root: ColdDisk | None = None
    seed: bool = False
    media: int = 0
    mac: str | None = None
    mtu: int = 1500
    netboot: bool = False
    order: dict[str, int] = {}
    huge_pages: int | None = None
    gives_memory: bool = False
    file: memory_file.Use | None = None
    incoming: bool = False
    spare_variables: int | None = None


def arguments(vm: Vm) -> list[str]:
    """The argument vector, the program first."""
    return [
        QEMU,
        *("-name", vm.name, "-uuid", vm.uuid),
        *("-nodefaults", "-no-user-config", "-display", "none", "-S"),
        *("-sandbox", SANDBOX),
        *("-L", FIRMWARE),
        *_board(vm),
        *vm.sizing,
        *_actions(vm),
        *_firmware(vm),
        *_channels(),
        *_screen(vm),
        *_tpm(vm),
        *_root(vm),
        *_media(vm),
        *_seed(vm),
        *_nic(vm),
        *("-device", f"virtio-rng-pci,id=entropy,{_at(_ENTROPY)}"),
        *("-device", f"virtio-balloon-pci,{balloon(gives_memory=vm.gives_memory)},{_at(_BALLOON)}"),
        *("-device", f"vmgenid,id=generation,guid={vm.uuid}"),
        *vm.plugs,
        *(("-incoming", "defer") if vm.incoming else ()),
    ]


def _at(slot: int) -> str:
    return f"bus=pcie.0,addr={slot:#x}"


def _boots(vm: Vm, name: str) -> str:
    return f",bootindex={vm.order[name]}" if name in vm.order else ""


def _board(vm: Vm) -> list[str]:
    accelerators = {"kvm": "kvm", "tcg": f"tcg,thread={vm.threads},tb-size={TRANSLATED // MIB}"}
    board = f"{vm.board_type},vmport=off,smm={'on' if vm.secure_boot else 'off'}"
    if vm.graphics is Graphics.NONE:
        board += ",graphics=off"  # SeaBIOS speaks on the serial line then
    if vm.firmware is Firmware.UEFI:
        board += ",pflash0=code,pflash1=variables"
    if vm.file is None:
        board += pages.board(vm.huge_pages)
    else:
        board += f"{pages.OWN_PAGES},memory-backend={memory_file.NAMES['q35']}"
    return [
        *("-machine", board, "-accel", accelerators[vm.accelerator], "-cpu", "max"),
        *("-rtc", "base=utc,driftfix=slew", "-boot", "strict=on"),
        # A guest that sleeps could not be told from one that hangs, and Secure Boot does not outlive it (OvmfPkg/README).
        *("-global", "ICH9-LPC.disable_s3=1", "-global", "ICH9-LPC.disable_s4=1"),
    ]


def _actions(vm: Vm) -> list[str]:
    """Whatever ends or stops the guest leaves QEMU standing, with a run state that says what it was: nobody waits for its exit code."""
    watchdog = "reset" if vm.watchdog is Watchdog.RESET else "pause"
    arguments = ["-action", f"reboot=reset,shutdown=pause,panic=pause,watchdog={watchdog}", "-device", "pvpanic"]
    if vm.watchdog is not Watchdog.NONE:
        arguments += ["-device", f"i6300esb,id=watchdog,{_at(_WATCHDOG)}"]
    return arguments


def _firmware(vm: Vm) -> list[str]:
    if vm.firmware is Firmware.BIOS:
        return []
    return [
        *_file("code", CODE, read_only=True),
        *_variables(vm),
        *(("-global", "driver=cfi.pflash01,property=secure,value=on") if vm.secure_boot else ()),
    ]


def _variables(vm: Vm) -> list[str]:
    if vm.spare_variables is None:
        return _file("variables", VARIABLES, read_only=False)
    return ["-blockdev", f"driver=null-co,node-name=variables,size={vm.spare_variables},read-zeroes=on"]


def _channels() -> list[str]:
    return [
        *("-chardev", f"socket,id=monitor,fd={MONITOR},server=on,wait=off", "-mon", "chardev=monitor,mode=control"),
        *("-chardev", f"socket,id=console,fd={CONSOLE},server=on,wait=off", "-serial", "chardev:console"),
        *("-device", f"virtio-serial-pci,id=serial,{_at(_SERIAL)}"),
        *("-chardev", f"socket,id=agent,fd={AGENT},server=on,wait=off"),
        *("-device", f"virtserialport,id=agent-port,bus=serial.0,nr=1,chardev=agent,name={AGENT_PORT}"),
        *("-chardev", f"socket,id=qga,fd={QGA},server=on,wait=off"),
        *("-device", f"virtserialport,id=qga-port,bus=serial.0,nr=2,chardev=qga,name={QGA_PORT}"),
    ]


def _screen(vm: Vm) -> list[str]:
    if vm.graphics is Graphics.NONE:
        return []
    return ["-device", f"{_CARDS[vm.graphics]},id=screen,{_at(_SCREEN)}", *vm.screens]


def _tpm(vm: Vm) -> list[str]:
    if not vm.tpm:
        return []
    return [
        *("-chardev", f"socket,id=tpm,fd={TPM}", "-tpmdev", "emulator,id=tpm,chardev=tpm"),
        *("-device", "tpm-crb,tpmdev=tpm"),
    ]


def _root(vm: Vm) -> list[str]:
    if vm.root is None:
        return []
    where = "ide-hd,bus=ide.0" if vm.hardware is Hardware.GENERIC else f"virtio-blk-pci,{_at(_ROOT)}"
    device = f"{where},id=root,drive=root,serial=lamella-root{_boots(vm, 'root')}"
    return [*vm.root.arguments, "-device", device]


def root_disk(volume: VolumeHandle, driver: Callable[[Path], str] = layers.driver_of) -> ColdDisk:
    """The first disk, whose file is descriptor ``ROOT`` (and ``BASE`` its image's); *driver* says what opens a path (layers.driver_of)."""
    return layers.cold_disk("root", volume, LAYERS, fd=ROOT, base=BASE, driver=driver)


def _seed(vm: Vm) -> list[str]:
    if not vm.seed:
        return []
    file = _file("seed", SEED, read_only=True)
    if vm.hardware is Hardware.GENERIC:
        # There is no SATA disk that may not be written.
        return [*file, "-device", "ide-cd,id=seed,bus=ide.1,drive=seed"]
    return [*file, "-device", f"virtio-blk-pci,id=seed,{_at(_SEED)},drive=seed,serial=lamella-seed"]


def _media(vm: Vm) -> list[str]:
    """The image's own CDs, on the SATA ports after the disks': what an installer of any operating system can read."""
    found: list[str] = []
    for number in range(vm.media):
        name = f"media-{number}"
        found += _file(name, MEDIA + number, read_only=True)
        found += ["-device", f"ide-cd,id={name},bus=ide.{2 + number},drive={name}{_boots(vm, name)}"]
    return found


def _nic(vm: Vm) -> list[str]:
    if vm.mac is None:
        return []
    card = "e1000" if vm.hardware is Hardware.GENERIC else f"virtio-net-pci,host_mtu={vm.mtu}"
    rom = "" if vm.netboot else ",romfile="
    device = f"{card},id=nic,{_at(_NIC)},netdev=nic,mac={vm.mac}{rom}{_boots(vm, 'nic')}"
    return ["-netdev", f"tap,id=nic,fd={TAP}", "-device", device]


def _open(node: str, fd: int, *, read_only: bool) -> list[str]:
    access = "on" if read_only else "off"
    return [
        *("-add-fd", f"fd={fd},set={fd}"),
        *("-blockdev", f"driver=file,node-name={node},filename=/dev/fdset/{fd},read-only={access},discard=unmap"),
    ]


def _file(name: str, fd: int, *, read_only: bool) -> list[str]:
    """A raw file as the block node *name*."""
    access = "on" if read_only else "off"
    return [
        *_open(f"{name}-file", fd, read_only=read_only),
        *("-blockdev", f"driver=raw,node-name={name},file={name}-file,read-only={access}"),
    ]
