"""The QEMU that takes over a machine and never runs: the same devices, behind which there is nothing."""

import asyncio
import contextlib
import os
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Machine
from lamella.host.compute.qemu import launch
from lamella.host.compute.qemu.memory_file import Use
from lamella.host.compute.qemu.monitor import Monitor
from lamella.host.compute.qemu.places import Places
from lamella.host.compute.vm import arguments, devices, launching, tpm
from lamella.host.compute.vm.devices import Part
from lamella.host.compute.vm.host import HostParts
from lamella.host.compute.vm.layout import Device, Layout, spare_disk, spare_root
from lamella.host.linux.cgroup import Cgroup
from lamella.host.linux.spare_tap import spare_tap
from lamella.model.board import Firmware

_SPICE = ["-spice", "port=0,disable-ticketing=off"]


def plan(host: HostParts, machine: Machine, layout: Layout) -> launching.Plan:
    """What takes over *machine*, which is laid out so."""
    made = launching.with_memory(launching.plan(host, machine, layout), Use.WRITTEN)
    variables = None
    if machine.board.firmware is Firmware.UEFI and host.ovmf is not None:
        variables = _variables(host, machine)
    vm = msgspec.structs.replace(
        made.vm,
        root=None if layout.root is None else spare_root(layout.root),
        screens=_SPICE if machine.board.spice else [],
        spare_variables=variables,
    )
    return msgspec.structs.replace(made, vm=vm, shown={})


async def start(
    host: HostParts,
    plan: launching.Plan,
    places: Places,
    machine: Machine,
    origin: Places,
    files: dict[int, int],
    *,
    user: int,
    group: Cgroup,
    mark: str,
) -> int:
    """Start it at *places*; *origin* are those of the machine itself. Returns its pid.

    :raise Unavailable: when it does not start; its words are in the error.
    """
    with contextlib.ExitStack() as stack:

        def own(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        opened = dict(files)
        for number, name in launching.SOCKETS.items():
            opened[number] = stack.enter_context(launch.listening(places.run / name)).fileno()
        read = launching.what_is_read(host, machine)
        if plan.vm.seed:
            read[arguments.SEED] = origin.state / launching.SEED
        opened |= {number: own(launching.open_file(path)) for number, path in read.items()}
        if machine.nic is not None:
            taps = [own(fd) for fd in await asyncio.to_thread(spare_tap)]
            opened[arguments.TAP] = taps[0]
        if plan.vm.tpm:
            control = await tpm.start(places, user=user, procs_files=group.procs_files(), mark=mark)
            opened[arguments.TPM] = stack.enter_context(control).fileno()
        return await launch.launch(
            launch.Plan(
                argv=arguments.arguments(plan.vm), qemu=host.qemu, accelerator=host.accelerator, memory_file=True
            ),
            places,
            user=user,
            procs_files=group.procs_files(),
            files=opened,
            console=own(launch.sealed("console", launch.CONSOLE_SIZE)),
            errors=own(launch.sealed("errors", launch.ERRORS_SIZE)),
            mark=mark,
        )


async def plug(monitor: Monitor, machine: Machine, layout: Layout) -> None:
    """Give it the devices that came to the machine after its start.

    :raise Unavailable: when QEMU is gone, or there can be no TAP.
    """
    for device in layout.devices:
        match device.part:
            case Part.CDROM:
                await _insert(monitor, device)
            case Part.NIC:
                await _plug_nic(monitor, machine, device)
            case _:
                await _plug_disk(monitor, machine, device)


async def _plug_disk(monitor: Monitor, machine: Machine, device: Device) -> None:
    node = spare_disk(f"disk-{device.name}", device.size, read_only=device.read_only)
    await monitor.execute("blockdev-add", node)
    hardware = machine.board.hardware
    volume = next((one for one in machine.volumes if one.device == device.name), None)
    if volume is None:
        await monitor.execute("device_add", devices.disk_device(hardware, device.name, device.port))
    else:
        await monitor.execute("device_add", devices.volume_device(hardware, volume, device.port))


async def _plug_nic(monitor: Monitor, machine: Machine, device: Device) -> None:
    nic = next(one.attachment for one in machine.nics if one.name == device.name)
    taps = await asyncio.to_thread(spare_tap)
    try:
        async with monitor.named_fd(taps[0]) as name:
            await monitor.execute("netdev_add", {"type": "tap", "id": f"net-{device.name}", "fd": name})
    finally:
        for fd in taps:
            os.close(fd)
    await monitor.execute(
        "device_add",
        devices.nic_device(
            machine.board.hardware,
            device.name,
            device.port,
            mac=nic.mac,
            mtu=nic.mtu,
            bootable=device.name in machine.board.boot,
        ),
    )


async def _insert(monitor: Monitor, device: Device) -> None:
    await monitor.execute("blockdev-add", spare_disk(f"disk-{device.name}", device.size, read_only=True))
    await monitor.execute("blockdev-open-tray", {"id": device.port})
    await monitor.execute("blockdev-insert-medium", {"id": device.port, "node-name": f"disk-{device.name}"})
    await monitor.execute("blockdev-close-tray", {"id": device.port})


def _variables(host: HostParts, machine: Machine) -> int:
    """How large the flash with UEFI's variables is: as the file that they begin as."""
    assert host.ovmf is not None
    path: Path = host.ovmf.secure_variables if machine.board.secure_boot else host.ovmf.variables
    return path.stat().st_size
