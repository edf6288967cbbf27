"""Starting one machine: what QEMU shall be is planned from values, then everything it needs is opened, and it is put into its room."""

import asyncio
import contextlib
import os
import stat
import uuid
from collections.abc import Awaitable, Callable

import msgspec

from lamella.host.compute.driver import Limits, Machine
from lamella.host.compute.qemu import launch
from lamella.host.compute.qemu.places import Places, ProcessRecord
from lamella.host.compute.qemu.size import MIB, Size, group_limits
from lamella.host.compute.vm import arguments, firmware, hotplug, seed, tpm
from lamella.host.compute.vm.host import HostParts
from lamella.host.compute.vm.order import NIC, boot_order, media
from lamella.host.linux.cgroup import Cgroup
from lamella.host.linux.processes import environment, start_time
from lamella.model.board import Firmware, Graphics
from lamella.model.errors import Invalid, NotFound, Unavailable, Unsupported
from lamella.model.image import ArtifactKind

OpenTap = Callable[[str], Awaitable[int]]

# What a screen takes of QEMU's memory beside the guest's: its video memory and what was drawn of it.
_SCREEN = {Graphics.NONE: 0, Graphics.VGA: 64 * MIB, Graphics.VIRTIO: 64 * MIB, Graphics.QXL: 192 * MIB}
_FIRMWARE = 16 * MIB
_ADDRESS = uuid.UUID("0f6a3b7e-6a42-4a0b-8d0e-5c3f2b1f9d10")


class Plan(msgspec.Struct, kw_only=True, frozen=True):
    """What one machine will be: its QEMU, and the limits of the group around it."""

    vm: arguments.Vm
    size: Size
    group: Limits


def plan(host: HostParts, machine: Machine) -> Plan:
    """Decide everything that needs no look at the disk.

    :raise Unsupported: when this host cannot make such a machine.
    :raise Invalid: when it contradicts itself.
    """
    board = machine.board
    if why := firmware.why_invalid(board):
        raise Invalid(why, hint="ask for --firmware uefi as well", field="board.secure_boot")
    for asked, why_not, field in (
        (board.firmware is Firmware.UEFI, host.why_no_uefi, "board.firmware"),
        (board.tpm, host.why_no_tpm, "board.tpm"),
        (board.spice, host.why_no_spice, "board.spice"),
    ):
        if asked and why_not:
            raise Unsupported(why_not, field=field)
    if len(media(machine)) > arguments.MOST_MEDIA:
        raise Unsupported(f"a machine has drives for {arguments.MOST_MEDIA} CDs of its image", field="image")
    size = Size(vcpus=-(-(machine.limits.cpu or 1000) // 1000), memory=(machine.limits.memory or 1 << 30) // MIB * MIB)
    name = host.accelerator.name
    vm = arguments.Vm(
        name=machine.id,
        uuid=str(uuid.uuid5(_ADDRESS, machine.id)),
        board_type=host.board_type(machine.board_type),
        accelerator=name,
        sizing=["-smp", str(size.vcpus), "-m", f"{size.memory // MIB}M"],
        plugs=hotplug.cold_arguments(machine),
        firmware=board.firmware,
        secure_boot=board.secure_boot,
        tpm=board.tpm,
        hardware=board.hardware,
        graphics=board.graphics,
        screens=["-vnc", "none", *(("-spice", "port=0") if board.spice else ())],
        watchdog=board.watchdog,
        root=None if machine.disk is None else arguments.root_node(machine.disk, _driver(machine)),
        seed=machine.seed.enabled,
        media=len(media(machine)),
        mac=machine.nic.mac if machine.nic else None,
        mtu=machine.nic.mtu if machine.nic else 1500,
        netboot=NIC in board.boot,
        order=boot_order(machine),
    )
    group = group_limits(machine.limits, size, name)
    beside = _SCREEN[board.graphics] + _FIRMWARE + (tpm.MEMORY if board.tpm else 0)
    pids = (group.pids or 0) + (tpm.PROCESSES if board.tpm else 0)
    return Plan(vm=vm, size=size, group=Limits(cpu=group.cpu, memory=(group.memory or 0) + beside, pids=pids))


async def start(
    host: HostParts, plan: Plan, places: Places, machine: Machine, *, group: Cgroup, open_tap: OpenTap, mark: str
) -> ProcessRecord:
    """Start QEMU with its processors standing still, inside its group before it allocates anything, and write it down.

    :raise NotFound: when a disk or an image is not where it should be.
    :raise Unavailable: when QEMU does not start; its words are in the error.
    """
    await asyncio.to_thread(group.create, plan.group)
    with contextlib.ExitStack() as stack:

        def own(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        def listen(name: str) -> int:
            return stack.enter_context(launch.listening(places.run / name)).fileno()

        def read(path: os.PathLike[str]) -> int:
            return own(_open(path, os.O_RDONLY))

        files = {
            arguments.MONITOR: listen("monitor"),
            arguments.AGENT: listen("agent"),
            arguments.QGA: listen("qga"),
            arguments.CONSOLE: listen("console"),
        }
        if machine.board.firmware is Firmware.UEFI:
            if host.ovmf is None:
                raise Unsupported(host.why_no_uefi, field="board.firmware")
            variables = await asyncio.to_thread(firmware.variables, machine.board, host.ovmf, places.state)
            files[arguments.CODE] = read(firmware.code(machine.board, host.ovmf))
            files[arguments.VARIABLES] = own(_open(variables, os.O_RDWR))
        if machine.disk is not None:
            files[arguments.ROOT] = own(_open(machine.disk.path, os.O_RDWR))
            if machine.disk.base is not None:
                files[arguments.BASE] = read(machine.disk.base.path)
        discs = [artifact for artifact in machine.rootfs.artifacts if artifact.kind is ArtifactKind.CDROM]
        for number, disc in enumerate(discs):
            files[arguments.MEDIA + number] = read(disc.path)
        if plan.vm.seed:
            drive = places.state / "seed.img"
            await seed.make_seed(machine, drive, environment(mark))
            files[arguments.SEED] = read(drive)
        if machine.nic is not None:
            files[arguments.TAP] = own(await open_tap(machine.nic.port))
        if plan.vm.tpm:
            control = await tpm.start(places, user=machine.id_base, procs_files=group.procs_files(), mark=mark)
            files[arguments.TPM] = stack.enter_context(control).fileno()
        console = own(launch.sealed("console", launch.CONSOLE_SIZE))
        errors = own(launch.sealed("errors", launch.ERRORS_SIZE))
        pid = await launch.launch(
            launch.Plan(argv=arguments.arguments(plan.vm), qemu=host.qemu, accelerator=host.accelerator),
            places,
            user=machine.id_base,
            procs_files=group.procs_files(),
            files=files,
            console=console,
            errors=errors,
            mark=mark,
        )
        record = ProcessRecord(
            pid=pid,
            started=start_time(pid) or 0,
            boot=host.accelerator.boot,
            accelerator=host.accelerator.name,
            accelerator_reason=host.accelerator.reason,
            size=plan.size,
            limits=machine.limits,
            board_type=plan.vm.board_type,
        )
        await asyncio.to_thread(places.write, record)
        if not record.alive():
            raise Unavailable(f"QEMU did not start: {launch.tail(errors) or 'it said nothing'}")
        return record


def _driver(machine: Machine) -> str:
    """Which of QEMU's drivers opens the first disk: a device of the host is not a file."""
    try:
        mode = machine.volume.path.stat().st_mode
    except OSError as error:
        raise NotFound(f"the disk of {machine.id} is not where it should be: {error.strerror}") from error
    return "host_device" if stat.S_ISBLK(mode) else "file"


def _open(path: os.PathLike[str], flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"{os.fspath(path)} cannot be opened: {error.strerror}") from error
