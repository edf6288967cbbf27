"""The command line of one QEMU, from values alone. Everything that it opens was opened for it: descriptors, and two files of its room."""

import msgspec

from lamella.host.compute.qemu import memory_file, pages
from lamella.host.compute.qemu.launch import FIRMWARE, QEMU, SANDBOX
from lamella.host.compute.qemu.layers import ColdDisk, serial
from lamella.host.compute.qemu.size import MIB, TRANSLATED, Size, balloon

# Where things lie inside the room.
KERNEL = "/boot/kernel"
INITRAMFS = "/boot/initramfs"

# Descriptors that QEMU inherits. The console of the guest's kernel goes to its standard output (CONSOLE).
MONITOR, AGENT, ROOT, DATA, TAP = 3, 4, 5, 6, 7
LAYERS = 32  # the first of those of the writable disk's other files, and after them of the volumes'
MOST_VOLUMES = 12

AGENT_PORT = "org.lamella.agent"
ROOT_SERIAL = "lamella-root"
DATA_SERIAL = "lamella-data"
DATA_DEVICE = "data-disk"


class VolumeDisk(msgspec.Struct, kw_only=True, frozen=True):
    """A volume as a further disk, by the device's name."""

    device: str
    disk: ColdDisk


class Hardware(msgspec.Struct, kw_only=True, frozen=True):
    """One microVM as QEMU is to make it.

    ``machine`` is ``microvm`` or ``q35``; ``tsc_khz`` the host's time stamp counter, needed for TCG; ``mac`` is set when
    descriptor ``TAP`` is there. ``data`` is the writable disk (a raw file, descriptor ``DATA``, where nothing is said). ``huge_pages`` is
    the size in bytes of the pages that its memory is made of. With ``gives_memory`` what it does not need is taken from it, and a guest
    that comes short takes it back itself.

    ``empty_root`` has the first disk be that many bytes of zeros. ``file`` says what becomes of a memory that is a file (descriptor
    ``MEMORY``); with ``incoming`` the machine does not boot, but takes over the state of another one and waits to be told to run.
    """

    name: str
    size: Size
    accelerator: str
    machine: str = "microvm"
    tsc_khz: int = 0
    mac: str | None = None
    data: ColdDisk | None = None
    volumes: list[VolumeDisk] = []
    huge_pages: int | None = None
    gives_memory: bool = False
    file: memory_file.Use | None = None
    empty_root: int | None = None
    incoming: bool = False


def arguments(hardware: Hardware) -> list[str]:
    """The argument vector, the program first."""
    return [
        QEMU,
        *("-name", hardware.name),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-sandbox", SANDBOX),
        *("-L", FIRMWARE),
        *_board(hardware),
        *("-kernel", KERNEL, "-initrd", INITRAMFS, "-append", kernel_line(hardware)),
        *_channels(hardware),
        *_root(hardware),
        *_data(hardware),
        *(word for volume in hardware.volumes for word in _volume(hardware, volume)),
        *("-device", f"{_device(hardware, 'virtio-rng')}"),
        *("-device", f"{_device(hardware, 'virtio-balloon')},{balloon(gives_memory=hardware.gives_memory)}"),
        *_nic(hardware),
        *(("-incoming", "defer", "-S") if hardware.incoming else ()),
    ]


def kernel_line(hardware: Hardware) -> str:
    """What the guest's kernel is told.

    Under TCG it cannot calibrate its clock on a busy host and would hang, so it is told; it need not defend itself against
    speculation that an emulated processor does not do either.
    """
    words = ["console=ttyS0", "quiet", "reboot=t", "panic=-1", "random.trust_cpu=on"]
    if hardware.accelerator == "tcg":
        words += [
            f"tsc_early_khz={hardware.tsc_khz}",
            "no_timer_check",
            "tsc=reliable",
            "mitigations=off",
            "cryptomgr.notests=1",
        ]
    return " ".join(words)


def _board(hardware: Hardware) -> list[str]:
    accelerators = {"kvm": "kvm", "tcg": f"tcg,thread=multi,tb-size={TRANSLATED // MIB}"}
    boards = {"microvm": "microvm,rtc=on", "q35": "q35,vmport=off,smm=off"}
    return [
        *(
            "-machine",
            boards[hardware.machine] + _memory(hardware),
            "-accel",
            accelerators[hardware.accelerator],
            "-cpu",
            "max",
        ),
        *("-smp", str(hardware.size.vcpus), "-m", f"{hardware.size.memory // MIB}M"),
        *(
            pages.backend(hardware.size.memory, hardware.huge_pages)
            if hardware.file is None
            else memory_file.backend(hardware.machine, hardware.size.memory, hardware.file)
        ),
        *(("-global", "virtio-mmio.force-legacy=false") if hardware.machine == "microvm" else ()),
    ]


def _memory(hardware: Hardware) -> str:
    if hardware.file is None:
        return pages.board(hardware.huge_pages)
    return f"{pages.OWN_PAGES},memory-backend={memory_file.NAMES[hardware.machine]}"


def _channels(hardware: Hardware) -> list[str]:
    return [
        *("-chardev", f"socket,id=monitor,fd={MONITOR},server=on,wait=off", "-mon", "chardev=monitor,mode=control"),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-device", f"{_device(hardware, 'virtio-serial')},id=serial"),
        *("-chardev", f"socket,id=agent,fd={AGENT},server=on,wait=off"),
        *("-device", f"virtserialport,bus=serial.0,chardev=agent,name={AGENT_PORT}"),
    ]


def _root(hardware: Hardware) -> list[str]:
    if hardware.empty_root is None:
        return _disk(hardware, "root", ROOT, ROOT_SERIAL, read_only=True)
    node = f"driver=null-co,node-name=root,size={hardware.empty_root},read-zeroes=on,read-only=on"
    return [
        "-blockdev",
        node,
        "-device",
        f"{_device(hardware, 'virtio-blk')},id=root-disk,drive=root,serial={ROOT_SERIAL}",
    ]


def _disk(hardware: Hardware, name: str, fd: int, serial: str, *, read_only: bool) -> list[str]:
    access = f"read-only={'on' if read_only else 'off'}"
    return [
        *("-add-fd", f"fd={fd},set={fd}"),
        *("-blockdev", f"driver=file,node-name={name}-file,filename=/dev/fdset/{fd},{access},discard=unmap"),
        *("-blockdev", f"driver=raw,node-name={name},file={name}-file,{access},discard=unmap"),
        *("-device", f"{_device(hardware, 'virtio-blk')},id={name}-disk,drive={name},serial={serial}"),
    ]


def _data(hardware: Hardware) -> list[str]:
    if hardware.data is None:
        return _disk(hardware, "data", DATA, DATA_SERIAL, read_only=False)
    device = f"{_device(hardware, 'virtio-blk')},id={DATA_DEVICE},drive=data,serial={DATA_SERIAL}"
    return [*hardware.data.arguments, "-device", device]


def _volume(hardware: Hardware, volume: VolumeDisk) -> list[str]:
    """A failure of its file stops the machine rather than telling the guest."""
    name = volume.device
    device = f"{_device(hardware, 'virtio-blk')},id=dev-{name},drive=disk-{name},serial={serial(name)}"
    return [*volume.disk.arguments, "-device", f"{device},werror=stop,rerror=stop"]


def _nic(hardware: Hardware) -> list[str]:
    if hardware.mac is None:
        return []
    device = f"{_device(hardware, 'virtio-net')},netdev=net,mac={hardware.mac}"
    if hardware.machine == "q35":
        device += ",romfile="
    return ["-netdev", f"tap,id=net,fd={TAP}", "-device", device]


def _device(hardware: Hardware, kind: str) -> str:
    return f"{kind}-{'device' if hardware.machine == 'microvm' else 'pci'}"
