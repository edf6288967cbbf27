"""Starting one machine: what QEMU shall be is planned from values, then everything it needs is opened, and it is put into its room."""

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Limits, Machine
from lamella.host.compute.qemu import launch, memory_file, pages, served
from lamella.host.compute.qemu.memory_file import Use
from lamella.host.compute.qemu.places import Places, ProcessRecord
from lamella.host.compute.qemu.size import MIB, Size
from lamella.host.compute.vm import arguments, certificates, desktop, firmware, hotplug, seed, sizing, tpm
from lamella.host.compute.vm.host import HostParts
from lamella.host.compute.vm.layout import Layout
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
# The directory in the machine's state with the certificate of its screen.
SCREEN = "screen"
SEED = "seed.img"
# On which sockets QEMU listens, by the descriptor that it has each as.
SOCKETS = {
    arguments.MONITOR: "monitor",
    arguments.AGENT: "agent",
    arguments.QGA: "qga",
    arguments.CONSOLE: "console",
}
_ADDRESS = uuid.UUID("0f6a3b7e-6a42-4a0b-8d0e-5c3f2b1f9d10")


class Plan(msgspec.Struct, kw_only=True, frozen=True):
    """What one machine will be: its QEMU, and the limits of the group around it.

    ``argv`` is the argument vector where it is not that of ``vm``; ``shown`` and ``devices`` are what the room has for it (launch.Plan)."""

    vm: arguments.Vm
    size: Size
    largest: Size
    group: Limits
    argv: list[str] = []
    shown: dict[Path, Path] = {}
    devices: list[Path] = []


def plan(host: HostParts, machine: Machine, layout: Layout | None = None) -> Plan:
    """Decide everything about it. With *layout* it is as large, and has as many places, as one that ran so.

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
    size = sizing.size_of(machine.limits) if layout is None else layout.size
    name = host.accelerator.name
    # QEMU 7.2 gives every emulating thread a part of its cache when the thread begins, and aborts when a busy guest has used all of it
    # (tcg/region.c: seen). One thread for all processors needs no second part. The firmware of Secure Boot takes part in plugging, in a
    # mode that hangs under emulation (OVMF 2022.11: seen).
    emulated = name == "tcg"
    threads = "single" if size.vcpus == 1 else "multi"
    plugs = not emulated or (threads == "single" and not board.secure_boot)
    # Pages that are set apart are counted at the start: it has no room for more.
    room = host.memory if machine.huge_pages is None else size.memory
    largest = sizing.largest_of(size, room, plugs_vcpus=plugs) if layout is None else layout.largest
    vm = arguments.Vm(
        name=machine.id,
        uuid=str(uuid.uuid5(_ADDRESS, machine.id)),
        board_type=host.board_type(machine.board_type or ("" if layout is None else layout.board_type)),
        accelerator=name,
        threads=threads,
        sizing=[*sizing.cold_arguments(size, largest), *pages.backend(size.memory, machine.huge_pages)],
        huge_pages=machine.huge_pages,
        plugs=hotplug.cold_arguments(machine, *((layout.ports, len(layout.drives)) if layout else ())),
        firmware=board.firmware,
        secure_boot=board.secure_boot,
        tpm=board.tpm,
        hardware=board.hardware,
        graphics=board.graphics,
        screens=desktop.cold_arguments(board),
        watchdog=board.watchdog,
        root=None if machine.disk is None else arguments.root_disk(machine.disk),
        seed=machine.seed.enabled,
        media=len(media(machine)),
        mac=machine.nic.mac if machine.nic else None,
        mtu=machine.nic.mtu if machine.nic else 1500,
        netboot=NIC in board.boot,
        order=boot_order(machine),
        gives_memory=machine.memory_guarantee is not None and machine.huge_pages is None,
    )
    around = Size(vcpus=largest.vcpus, memory=size.memory)
    group = with_the_rest(sizing.group_of(machine.limits, around, name), machine)
    return Plan(vm=vm, size=size, largest=largest, group=group, shown=served.sockets(machine))


def with_the_rest(group: Limits, machine: Machine) -> Limits:
    """What the group around *machine* is given beside its memory and processors: for its screen, its firmware, its TPM."""
    tpm_memory, tpm_processes = (tpm.MEMORY, tpm.PROCESSES) if machine.board.tpm else (0, 0)
    beside = _SCREEN[machine.board.graphics] + _FIRMWARE + tpm_memory
    return Limits(
        cpu=group.cpu,
        memory=None if group.memory is None else group.memory + beside,
        pids=None if group.pids is None else group.pids + tpm_processes,
    )


def with_memory(plan: Plan, use: Use) -> Plan:
    """*plan* for a machine whose memory is a file, and which takes over the state of another one."""
    vm = plan.vm
    sizing = [*vm.sizing, *memory_file.backend("q35", plan.size.memory, use)]
    return msgspec.structs.replace(plan, vm=msgspec.structs.replace(vm, sizing=sizing, file=use, incoming=True))


async def start(
    host: HostParts,
    plan: Plan,
    places: Places,
    machine: Machine,
    *,
    group: Cgroup,
    open_tap: OpenTap,
    mark: str,
    files: dict[int, int] | None = None,
    began: str = "",
) -> ProcessRecord:
    """Start QEMU with its processors standing still, inside its group before it allocates anything, and write it down. *files* are more
    of its descriptors (its: ours, which stay ours), *began* is the memory that they are.

    :raise NotFound: when a disk or an image is not where it should be.
    :raise Unavailable: when QEMU does not start; its words are in the error.
    """
    await asyncio.to_thread(pages.check, plan.size.memory, plan.vm.huge_pages)
    await asyncio.to_thread(group.create, plan.group)
    with contextlib.ExitStack() as stack:

        def own(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        def listen(name: str) -> int:
            return stack.enter_context(launch.listening(places.run / name)).fileno()

        files = {**(files or {}), **{number: listen(name) for number, name in SOCKETS.items()}}
        files |= {number: own(open_file(path)) for number, path in what_is_read(host, machine).items()}
        if machine.disk is not None:
            files |= {number: own(fd) for number, fd in arguments.root_disk(machine.disk).open().items()}
        if machine.nic is not None:
            files[arguments.TAP] = own(await open_tap(machine.nic.port))
        made = await _make(host, plan, places, machine, group, mark)
        if made.tpm is not None:
            files[arguments.TPM] = stack.enter_context(made.tpm).fileno()
        if made.variables is not None:
            files[arguments.VARIABLES] = own(open_file(made.variables, os.O_RDWR))
        if plan.vm.seed:
            files[arguments.SEED] = own(open_file(places.state / SEED))
        shown: dict[Path, Path] = {}
        if plan.vm.graphics is not Graphics.NONE:
            shown[places.state / SCREEN] = Path(desktop.CERTIFICATES)
        console = own(launch.sealed("console", launch.CONSOLE_SIZE))
        errors = own(launch.sealed("errors", launch.ERRORS_SIZE))
        pid = await launch.launch(
            launch.Plan(
                argv=plan.argv or arguments.arguments(plan.vm),
                qemu=host.qemu,
                accelerator=host.accelerator,
                shown=shown | plan.shown,
                devices=plan.devices,
                memory_file=plan.vm.file is not None,
            ),
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
            largest=plan.largest,
            limits=machine.limits,
            board_type=plan.vm.board_type,
            began=began,
            asleep=plan.vm.incoming,
        )
        await asyncio.to_thread(places.write, record)
        if not record.alive():
            raise Unavailable(f"QEMU did not start: {launch.tail(errors) or 'it said nothing'}")
        return record


def what_is_read(host: HostParts, machine: Machine) -> dict[int, Path]:
    """Files that QEMU reads and nobody makes for this machine: the firmware's code, the CDs of its image.

    :raise Unsupported: when this host has no such firmware.
    """
    found: dict[int, Path] = {}
    if machine.board.firmware is Firmware.UEFI:
        if host.ovmf is None:
            raise Unsupported(host.why_no_uefi, field="board.firmware")
        found[arguments.CODE] = firmware.code(machine.board, host.ovmf)
    discs = [artifact.path for artifact in machine.rootfs.artifacts if artifact.kind is ArtifactKind.CDROM]
    return found | dict(enumerate(discs, start=arguments.MEDIA))


class _Made(msgspec.Struct, kw_only=True, frozen=True):
    variables: Path | None
    tpm: socket.socket | None


async def _make(host: HostParts, plan: Plan, places: Places, machine: Machine, group: Cgroup, mark: str) -> _Made:
    """What has to be written or started first, all at once: the seed drive, the screen's certificate, UEFI's variables, the TPM."""

    async def variables() -> Path | None:
        if machine.board.firmware is not Firmware.UEFI or host.ovmf is None:
            return None
        return await asyncio.to_thread(firmware.variables, machine.board, host.ovmf, places.state)

    async def drive() -> None:
        if plan.vm.seed:
            await seed.make_seed(machine, places.state / SEED, environment(mark))

    async def certificate() -> None:
        if plan.vm.graphics is not Graphics.NONE:
            to = places.state / SCREEN
            await asyncio.to_thread(certificates.make_certificates, to, machine.hostname, machine.id_base)

    async def control() -> socket.socket | None:
        if not plan.vm.tpm:
            return None
        return await tpm.start(places, user=machine.id_base, procs_files=group.procs_files(), mark=mark)

    file, end, *rest = await asyncio.gather(variables(), control(), drive(), certificate(), return_exceptions=True)
    failed = next((one for one in (file, end, *rest) if isinstance(one, BaseException)), None)
    if failed is not None:
        if isinstance(end, socket.socket):
            end.close()
        raise failed
    assert not isinstance(file, BaseException) and not isinstance(end, BaseException)
    return _Made(variables=file, tpm=end)


def open_file(path: os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """:raise NotFound: when it cannot be opened."""
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"{os.fspath(path)} cannot be opened: {error.strerror}") from error
