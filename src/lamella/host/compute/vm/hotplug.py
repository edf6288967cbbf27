"""Devices that come and go while a machine runs: what is plugged in is read from QEMU, and made to be what is asked.

QEMU lives in a room where it can open nothing: disks, images, TAPs and USB devices are opened here and given to it.
"""

import asyncio
import contextlib
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from lamella.host.compute.driver import DataDisk, Machine, MountedVolume, NamedNic
from lamella.host.compute.qemu import disks, layers, served
from lamella.host.compute.qemu.monitor import Events, Monitor, Refused
from lamella.host.compute.vm import devices, usb
from lamella.host.compute.vm.devices import Part, Properties
from lamella.host.compute.vm.order import boot_order
from lamella.host.compute.vm.wiring import (
    Clear,
    Device,
    Eject,
    Insert,
    Medium,
    Order,
    Plug,
    Plugged,
    Step,
    Unplug,
    plan,
)
from lamella.model.errors import Conflict, LamellaError, NotFound, Unavailable, Unsupported
from lamella.model.storage import VolumeForm

__all__ = ["cold_arguments", "plugged", "rewire"]

OpenTap = Callable[[str], Awaitable[int]]
FindUsb = Callable[[str], usb.HostDevice]
# Whether the running machine can use the volume's socket.
Reaches = Callable[[MountedVolume], bool]

# How long a guest may take to let go, and after how long it is asked again (one that boots does not hear it).
PATIENCE = 30.0
_AGAIN = 5.0
_GLANCE = 0.5

cold_arguments = devices.cold_arguments

_NODE = re.compile(r"^disk-([a-z][a-z0-9-]*)$")
_NETDEV = re.compile(r"^(?: \\ )?net-([a-z][a-z0-9-]*): ", re.MULTILINE)


Value = TypeVar("Value")


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Item = TypeVar("Item", bound=_Named)


class _Property(msgspec.Struct):
    name: str
    type: str


class _Inserted(msgspec.Struct):
    node: str = msgspec.field(name="node-name", default="")


class _Block(msgspec.Struct):
    qdev: str = ""
    inserted: _Inserted | None = None


class _File(msgspec.Struct):
    opaque: str = ""


class _FdSet(msgspec.Struct):
    fdset: int = msgspec.field(name="fdset-id")
    fds: list[_File] = []


async def rewire(
    monitor: Monitor,
    machine: Machine,
    open_tap: OpenTap,
    *,
    patience: float = PATIENCE,
    find_usb: FindUsb = usb.find,
    reaches: Reaches = lambda _: False,
) -> None:
    """Make what is plugged in be the disks, volumes, CD images, NICs and USB devices of *machine*, in its boot order; see
    ``TakesDevices``. A volume's socket is used when *reaches* says that it can be, its file otherwise.

    What the guest does not let go of within *patience* seconds stays, and all else is done before that is raised.

    :raise Conflict: when the guest does not let go, or is paused and cannot.
    :raise Unsupported: when there is no place left, or this host has no such USB device.
    :raise Unavailable: when QEMU is gone.
    """
    found = await look(monitor)
    steps = plan(found, devices.wanted(machine), boot_order(machine))
    await _Work(monitor, machine, open_tap, patience, find_usb, reaches).carry_out(steps)


async def put(
    monitor: Monitor, machine: Machine, steps: Iterable[Step], open_tap: OpenTap, *, reaches: Reaches = lambda _: False
) -> None:
    """Plug in what *steps* say, where they say: for a machine that has not run yet and shall be like another one."""
    await _Work(monitor, machine, open_tap, PATIENCE, usb.find, reaches).carry_out(steps)


async def plugged(monitor: Monitor) -> list[str]:
    """Names of what is plugged in, sorted: for ``Observed.devices``."""
    return (await look(monitor)).names


async def look(monitor: Monitor) -> Plugged:
    """What QEMU has, whoever plugged it in."""
    peripherals = await monitor.ask(list[_Property], "qom-list", {"path": "/machine/peripheral"})
    kinds = {item.name: item.type.removeprefix("child<").removesuffix(">") for item in peripherals}
    blocks = await monitor.ask(list[_Block], "query-block")
    nodes = await disks.node_names(monitor)
    identities = {name: identity for _, name, identity in await _files(monitor)}
    netdevs = _NETDEV.findall(await monitor.ask(str, "human-monitor-command", {"command-line": "info network"}))
    present: dict[str, Device] = {}
    boot: dict[str, int] = {}
    for id, driver in kinds.items():
        part = devices.part_of(driver)
        if id.startswith("dev-") and part is not None:
            present[id[4:]] = await _device(monitor, id, part, identities.get(id[4:], ""))
        if part in (Part.DISK, Part.NIC) or driver in devices.BOOTABLE:
            with contextlib.suppress(Refused):
                boot[id] = await _property(monitor, int, id, "bootindex")
    drives: dict[str, Medium | None] = {id: None for id in kinds if re.fullmatch(r"drive-\d+", id)}
    for block in blocks:
        name = _NODE.match(block.inserted.node) if block.inserted else None
        if block.qdev in drives and name is not None:
            drives[block.qdev] = Medium(name=name[1], identity=identities.get(name[1], ""))
    here = {*present, *(medium.name for medium in drives.values() if medium is not None)}
    names = {match[1] for node in nodes if (match := _NODE.match(node))} | set(netdevs) | set(identities)
    return Plugged(
        devices=present,
        drives=drives,
        ports=sorted((id for id in kinds if re.fullmatch(r"port-\d+", id)), key=lambda id: int(id[5:])),
        leftovers=frozenset(names - here),
        boot=boot,
    )


async def _device(monitor: Monitor, id: str, part: Part, identity: str) -> Device:
    if part is Part.USB:
        return Device(part=part, identity=identity)
    bus = await _property(monitor, str, id, "parent_bus")
    if part is Part.NIC:
        identity = (await _property(monitor, str, id, "mac")).lower()
    return Device(part=part, port=bus.rsplit("/", 1)[-1], identity=identity)


async def _property(monitor: Monitor, kind: type[Value], id: str, name: str) -> Value:
    return await monitor.ask(kind, "qom-get", {"path": f"/machine/peripheral/{id}", "property": name})


async def _files(monitor: Monitor) -> list[tuple[int, str, str]]:
    """Descriptor sets that were given for a device: number, device's name, identity."""
    sets = await monitor.ask(list[_FdSet], "query-fdsets")
    found: list[tuple[int, str, str]] = []
    for item in sets:
        for file in item.fds:
            mark, _, rest = file.opaque.partition(" ")
            name, _, identity = rest.partition(" ")
            if mark == "device" and name:
                found.append((item.fdset, name, identity))
    return found


class _Work:
    """Carries out one plan; a step whose device would not go is not followed by others of its name."""

    def __init__(
        self,
        monitor: Monitor,
        machine: Machine,
        open_tap: OpenTap,
        patience: float,
        find_usb: FindUsb,
        reaches: Reaches,
    ) -> None:
        self._monitor = monitor
        self._machine = machine
        self._open_tap = open_tap
        self._patience = patience
        self._find_usb = find_usb
        self._reaches = reaches

    async def carry_out(self, steps: Iterable[Step]) -> None:
        failed: dict[str, LamellaError] = {}
        for step in steps:
            if step.name in failed:
                continue
            try:
                await self._do(step)
            except Unavailable:
                raise
            except LamellaError as error:
                failed[step.name] = error
        for error in failed.values():
            raise error

    async def _do(self, step: Step) -> None:
        match step:
            case Unplug():
                await self._unplug(step)
            case Eject():
                await self._eject(step)
            case Clear(name=name):
                await self._clear(name)
            case Plug():
                try:
                    await self._plug(step)
                except BaseException:
                    await asyncio.shield(self._clear(step.name))
                    raise
            case Insert():
                try:
                    await self._insert(step)
                except BaseException:
                    await asyncio.shield(self._clear(step.name))
                    raise
            case Order(device=device, index=index):
                path = f"/machine/peripheral/{device}"
                with contextlib.suppress(Refused):  # gone meanwhile, or of a kind that nothing boots from
                    await self._monitor.execute("qom-set", {"path": path, "property": "bootindex", "value": index})

    # --- what goes

    async def _unplug(self, step: Unplug) -> None:
        id = f"dev-{step.name}"
        with self._monitor.events(["DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"]) as events:
            if step.part is not Part.USB:
                await self._must_run(step.part, step.name)
            try:
                async with asyncio.timeout(self._patience):
                    while await self._is_there(id):
                        with contextlib.suppress(Refused):  # gone meanwhile, or the guest has been asked already
                            await self._monitor.execute("device_del", {"id": id})
                        await self._gone(events, id)
            except TimeoutError:
                raise self._held(step.part, step.name) from None

    async def _gone(self, events: Events, id: str) -> None:
        """Return when the device is gone, or when the guest should be asked again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AGAIN):
                while await self._is_there(id):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_GLANCE):
                            await events.next()

    async def _is_there(self, id: str) -> bool:
        items = await self._monitor.ask(list[_Property], "qom-list", {"path": "/machine/peripheral"})
        return any(item.name == id for item in items)

    async def _eject(self, step: Eject) -> None:
        try:
            async with asyncio.timeout(self._patience):
                while True:
                    try:
                        await self._monitor.execute("blockdev-open-tray", {"id": step.drive})
                        await self._monitor.execute("blockdev-remove-medium", {"id": step.drive})
                        break
                    except Refused:
                        # The guest has locked the drive: it is asked, and somebody inside must unmount first.
                        await self._must_run(Part.CDROM, step.name)
                        await asyncio.sleep(_GLANCE)
        except TimeoutError:
            raise self._held(Part.CDROM, step.name) from None
        await self._monitor.execute("blockdev-close-tray", {"id": step.drive})

    async def _must_run(self, part: Part, name: str) -> None:
        if await self._monitor.status() != "running":
            raise Conflict(f"the guest does not run and cannot let go of {part} {name}", hint="resume it and try again")

    def _held(self, part: Part, name: str) -> Conflict:
        return Conflict(
            f"the guest did not let go of {part} {name} within {self._patience:g} s",
            hint="see that nothing inside uses it and try again; a system that knows no hot-plug lets go when it is stopped",
        )

    async def _clear(self, name: str) -> None:
        there = await disks.node_names(self._monitor)
        prefix = layers.layer_prefix(name)
        await disks.delete_nodes(
            self._monitor, {node for node in there if node == f"disk-{name}" or node.startswith(prefix)}
        )
        with contextlib.suppress(Refused):  # it has none
            await self._monitor.execute("netdev_del", {"id": f"net-{name}"})
        for fdset in {fdset for fdset, owner, _ in await _files(self._monitor) if owner == name}:
            await self._monitor.remove_fdset(fdset)

    # --- what comes

    async def _plug(self, step: Plug) -> None:
        match step.part:
            case Part.DISK:
                device = await self._disk_device(step)
            case Part.NIC:
                nic = _named(self._machine.nics, step.name)
                await self._add_netdev(nic)
                device = devices.nic_device(
                    self._machine.board.hardware,
                    step.name,
                    step.port,
                    mac=nic.attachment.mac,
                    mtu=nic.attachment.mtu,
                    bootable=step.name in self._machine.board.boot,
                )
            case _:
                device = await self._usb_device(step.name)
        try:
            await self._monitor.execute("device_add", device)
        except Refused as error:
            if step.part is not Part.USB:
                raise
            raise Unsupported(
                f"QEMU cannot use USB device {step.name}: {error.reason}",
                hint="see that the host does not use it itself",
            ) from error

    async def _disk_device(self, step: Plug) -> Properties:
        for volume in self._machine.volumes:
            if volume.device == step.name:
                return await self._volume_device(volume, step.port)
        await self._add_disk_node(_named(self._machine.disks, step.name))
        return devices.disk_device(self._machine.board.hardware, step.name, step.port)

    async def _volume_device(self, volume: MountedVolume, port: str) -> Properties:
        if self._reaches(volume):
            node = served.node(volume)
        else:
            file = await self._give_file(volume.path, volume.device, volume.id, read_only=volume.read_only)
            node = layers.layer_node(f"disk-{volume.device}", "raw", file) | {"read-only": volume.read_only}
        await self._monitor.execute("blockdev-add", node)
        return devices.volume_device(self._machine.board.hardware, volume, port)

    async def _add_disk_node(self, disk: DataDisk) -> None:
        volume = disk.volume
        if volume.form is not VolumeForm.BLOCK:
            raise Conflict(
                f"volume {volume.id} holds files and is no disk", hint="a disk is a volume of the form block"
            )
        files: list[Properties] = []
        for path in layers.files_of(volume):
            files.append(await self._give_file(path, disk.name, volume.id, read_only=bool(files)))
        await self._monitor.execute("blockdev-add", layers.chain_node(f"disk-{disk.name}", volume, files))

    async def _add_netdev(self, nic: NamedNic) -> None:
        fd = await self._open_tap(nic.attachment.port)
        try:
            async with self._monitor.named_fd(fd) as name:
                await self._monitor.execute("netdev_add", {"type": "tap", "id": f"net-{nic.name}", "fd": name})
        finally:
            os.close(fd)

    async def _usb_device(self, name: str) -> Properties:
        wish = next(item for item in self._machine.usb if item.name == name)
        found = self._find_usb(wish.device)
        fdset = await self._give_device(found.path, f"device {name} {wish.device}")
        return {**found.properties(fdset), "id": f"dev-{name}", "bus": "usb.0"}

    async def _give_device(self, path: Path, opaque: str) -> int:
        fd = layers.open_file(path, os.O_RDWR)
        try:
            return await self._monitor.add_fd(fd, opaque)
        finally:
            os.close(fd)

    async def _insert(self, step: Insert) -> None:
        image = _named(self._machine.cdroms, step.name)
        file = await self._give_file(image.path, step.name, str(image.path), read_only=True)
        node = f"disk-{step.name}"
        await self._monitor.execute(
            "blockdev-add", {"driver": "raw", "node-name": node, "read-only": True, "file": file}
        )
        drive = {"id": step.drive}
        await self._monitor.execute("blockdev-open-tray", drive)
        await self._monitor.execute("blockdev-insert-medium", {**drive, "node-name": node})
        await self._monitor.execute("blockdev-close-tray", drive)

    async def _give_file(self, path: Path, name: str, identity: str, *, read_only: bool) -> Properties:
        try:
            fdset = await disks.give(self._monitor, path, f"device {name} {identity}", read_only=read_only)
        except NotFound as error:
            raise NotFound(
                f"{path.name} of device {name} is not there", hint="see whether its volume or image is"
            ) from error
        return layers.file_node(layers.driver_of(path), fdset, read_only=read_only)


def _named(items: Iterable[Item], name: str) -> Item:
    return next(item for item in items if item.name == name)
