"""Starting the QEMU of a unikernel: inside its group before it allocates anything."""

import asyncio
import contextlib
import os
import shutil
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

from lamella.host.compute.driver import Home, Machine
from lamella.host.compute.qemu import launch, layers
from lamella.host.compute.qemu.places import Places, ProcessRecord
from lamella.host.compute.qemu.size import Size, group_limits
from lamella.host.compute.unikernel import arguments, serial
from lamella.host.compute.unikernel.host import HostParts
from lamella.host.compute.unikernel.session import serial_file, status_file
from lamella.host.linux.cgroup import Cgroup
from lamella.host.linux.processes import start_time
from lamella.model import board as asked
from lamella.model.errors import Internal

OpenTap = Callable[[str], Awaitable[int]]


async def boot(
    home: Home,
    host: HostParts,
    places: Places,
    group: Cgroup,
    machine: Machine,
    *,
    size: Size,
    command_line: str,
    kernel: Path,
    initrd: Path | None,
    open_tap: OpenTap | None,
) -> ProcessRecord:
    """Start QEMU with processors that stand still; what is returned is not written down yet.

    :raise Unavailable: when it could not be started; QEMU's words are in the error.
    """
    with contextlib.ExitStack() as stack:

        def own(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        def prepare() -> tuple[Path, Path | None]:
            group.create(group_limits(machine.limits, size, host.accelerator.name))
            return (
                readable(kernel, places.run / "kernel", machine.id_base),
                readable(initrd, places.run / "initrd", machine.id_base) if initrd else None,
            )

        shown_kernel, shown_initrd = await asyncio.to_thread(prepare)
        errors = own(launch.sealed("errors", launch.ERRORS_SIZE))
        output = own(serial.pipe(serial.BOUND))
        fresh = os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC
        files = {
            arguments.INPUT: own(serial.pipe(serial.BOUND)),
            arguments.MONITOR: stack.enter_context(launch.listening(places.run / "monitor")).fileno(),
            arguments.SERIAL: own(os.open(serial_file(places), fresh, 0o600)),
        }
        drives: list[arguments.Drive] = []
        cards: list[arguments.Card] = []
        number = arguments.FIRST_DEVICE
        volumes = [
            *([("root", machine.disk)] if machine.disk else []),
            *((disk.name, disk.volume) for disk in machine.disks),
        ]
        for name, volume in volumes:
            drives.append(arguments.Drive(name=name, disk=layers.cold_disk(f"disk-{name}", volume, number)))
            number += 1 + len(layers.files_of(volume))
        for volume in machine.volumes:
            drives.append(arguments.Drive(name=volume.device, disk=layers.cold_volume(volume, number), waits=True))
            number += 2
        for drive in drives:
            files |= {given: own(fd) for given, fd in drive.disk.open().items()}
        nics = [*([("net", machine.nic)] if machine.nic else []), *((nic.name, nic.attachment) for nic in machine.nics)]
        for name, attachment in nics:
            if open_tap is None:
                raise Internal("nobody said where TAPs come from", hint="call use_taps before create")
            files[number] = own(await open_tap(attachment.port))
            cards.append(arguments.Card(name=name, fd=number, mac=attachment.mac))
            number += 1
        hardware = arguments.Hardware(
            name=machine.id,
            size=size,
            accelerator=host.accelerator.name,
            board=board_of(machine, host),
            command_line=command_line,
            initrd=initrd is not None,
            drives=drives,
            cards=cards,
        )
        shown = {shown_kernel: Path(arguments.KERNEL)}
        if shown_initrd is not None:
            shown[shown_initrd] = Path(arguments.INITRD)
        pid = await launch.launch(
            launch.Plan(argv=arguments.arguments(hardware), qemu=host.qemu, accelerator=host.accelerator, shown=shown),
            places,
            user=machine.id_base,
            procs_files=group.procs_files(),
            files=files,
            console=output,
            errors=errors,
            mark=home.mark,
            status=own(os.open(status_file(places), fresh, 0o600)),
        )
        return ProcessRecord(
            pid=pid,
            started=start_time(pid) or 0,
            boot=host.accelerator.boot,
            accelerator=host.accelerator.name,
            accelerator_reason=host.accelerator.reason,
            size=size,
            limits=machine.limits,
            ready=True,
            board_type=hardware.board,
        )


def board_of(machine: Machine, host: HostParts) -> str:
    """``microvm``, or for hardware that every kernel knows a PC with PCI: the one that it had at its first start."""
    if machine.board.hardware is asked.Hardware.VIRTIO:
        return "microvm"
    return machine.board_type if machine.board_type.startswith("pc-") else host.pci_board


def readable(path: Path, copy: Path, user: int) -> Path:
    """*path* if QEMU's user may read it, else a copy that is its own: QEMU's loader opens by name, and the library's files are root's."""
    if path.stat().st_mode & stat.S_IROTH:
        return path
    shutil.copyfile(path, copy)
    os.chown(copy, user, user)
    copy.chmod(0o400)
    return copy
