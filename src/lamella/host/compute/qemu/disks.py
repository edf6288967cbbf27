"""What is done to the disks of a running QEMU: go over to new layers, take a file that was opened anew, see that a disk has grown.

Sources: QMP reference manual of 7.2 (``transaction``, ``blockdev-snapshot``, ``block_resize``), and what was seen here: ``blockdev-reopen``
flushes the old file first and so fails over one that is dead, while ``qom-set`` of a device's ``drive`` does not.
"""

import asyncio
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Machine, MountedVolume
from lamella.host.compute.qemu import layers, served
from lamella.host.compute.qemu.layers import Properties
from lamella.host.compute.qemu.monitor import Monitor, Refused
from lamella.host.storage.driver import Layer
from lamella.model.errors import Unavailable, Unsupported

_MOMENT = 0.05
_MOMENTS = 100
_IO_ERROR = "io-error"


class _Inserted(msgspec.Struct):
    node: str = msgspec.field(name="node-name", default="")


class _Block(msgspec.Struct):
    qdev: str = ""
    inserted: _Inserted | None = None


class _Node(msgspec.Struct):
    driver: str = msgspec.field(name="drv", default="")
    node: str = msgspec.field(name="node-name", default="")


class OwnDisk(msgspec.Struct, kw_only=True, frozen=True):
    """A disk that QEMU has open by itself. ``device`` is its name (empty: the first disk), ``qdev`` QEMU's id of the device."""

    device: str
    qdev: str
    volume: str
    path: Path

    @property
    def opaque(self) -> str:
        """What its descriptor sets are called."""
        return f"device {self.device} {self.volume}" if self.device else f"root {self.volume}"


async def switch(monitor: Monitor, disks: Mapping[str, OwnDisk], wanted: Mapping[str, Layer]) -> None:
    """From one instant on, write each volume into its new layer; the old ones are opened again read-only. All of them, or none.

    What is not yet on the host's disk is put there first, so that the guest waits for little.

    :raise Unsupported: when there is no such disk. :raise NotFound: when a layer is not there. :raise Unavailable: when QEMU is gone.
    """
    if missing := sorted(set(wanted) - set(disks)):
        raise Unsupported(f"the running machine has no disk {', '.join(missing)} of its own")
    tops = await top_nodes(monitor)
    made: list[tuple[str, int]] = []
    actions: list[Properties] = []
    try:
        for volume, layer in wanted.items():
            disk = disks[volume]
            name = layers.layer_name(disk.device, layer.path)
            if (old := tops.get(disk.qdev)) == name:
                continue  # it was told before
            if old is None:
                raise Unsupported(f"the running machine has no disk {volume} of its own")
            fdset = await give(monitor, layer.path, disk.opaque)
            made.append((name, fdset))
            file = layers.file_node(layers.driver_of(layer.path), fdset, read_only=False)
            await monitor.execute("blockdev-add", layers.layer_node(name, layer.format, file))
            actions.append({"type": "blockdev-snapshot", "data": {"node": old, "overlay": name}})
        if not actions:
            return
        await asyncio.gather(*(asyncio.to_thread(write_out, disks[volume].path) for volume in wanted))
        await monitor.execute("transaction", {"actions": actions}, deadline=30)
    except Refused as error:
        await _take_back(monitor, made)
        raise Unavailable(f"QEMU did not go over to new layers: {error.reason}") from error
    except Unavailable:
        raise  # QEMU may have done it all the same
    except BaseException:
        await asyncio.shield(_take_back(monitor, made))
        raise


async def _take_back(monitor: Monitor, made: list[tuple[str, int]]) -> None:
    for name, fdset in made:
        with suppress(Refused):
            await monitor.execute("blockdev-del", {"node-name": name})
        await monitor.remove_fdset(fdset)


async def give(monitor: Monitor, path: Path, opaque: str, *, read_only: bool = False) -> int:
    """Open *path* for QEMU; the number of its descriptor set, in which a file that may be written stands twice.

    :raise NotFound: when it cannot be opened.
    """
    fd = layers.open_file(path, os.O_RDONLY if read_only else os.O_RDWR)
    try:
        fdset = await monitor.add_fd(fd, opaque)
    finally:
        os.close(fd)
    if read_only:
        return fdset
    again = layers.open_file(path, os.O_RDONLY)
    try:
        await monitor.execute("add-fd", {"fdset-id": fdset, "opaque": opaque}, fd=again)
    finally:
        os.close(again)
    return fdset


async def top_nodes(monitor: Monitor) -> dict[str, str]:
    """The block node that each device writes to, by the device's id."""
    found: dict[str, str] = {}
    for block in await monitor.ask(list[_Block], "query-block"):
        # A virtio disk tells the path of its inner half: /machine/peripheral/ID/virtio-backend.
        device = re.sub(r"^/machine/peripheral/([^/]+)(/.*)?$", r"\1", block.qdev)
        if device and block.inserted is not None:
            found[device] = block.inserted.node
    return found


async def node_names(monitor: Monitor) -> set[str]:
    return set(await drivers(monitor))


async def drivers(monitor: Monitor) -> dict[str, str]:
    """Which of QEMU's drivers each block node is of, by its name."""
    nodes = await monitor.ask(list[_Node], "query-named-block-nodes", {"flat": True})
    return {node.node: node.driver for node in nodes}


async def delete_nodes(monitor: Monitor, names: set[str]) -> None:
    """Remove block nodes that may stand on each other. A device that has just gone holds its own for a moment longer.

    :raise Unavailable: when QEMU does not let go of one.
    """
    left = set(names)
    for _ in range(_MOMENTS):
        before = len(left)
        for name in sorted(left):
            try:
                await monitor.execute("blockdev-del", {"node-name": name})
            except Refused as error:
                if "in use" in error.reason:
                    continue
            left.discard(name)
        if not left:
            return
        if len(left) == before:
            await asyncio.sleep(_MOMENT)
    raise Unavailable(f"QEMU does not let go of {', '.join(sorted(left))}", hint="try again")


async def replace_file(
    monitor: Monitor, pid: int, qdev: str, device: str, volume: str, path: Path, *, read_only: bool = False
) -> bool:
    """Have the raw disk *qdev* stand on what is at *path* now, when that is another file than the one that QEMU has open; whether it was.

    Requests that failed on the old one and wait are done on the new one.

    :raise NotFound: when nothing is at *path*. :raise Unavailable: when QEMU refuses.
    """
    driver = layers.driver_of(path)
    if await asyncio.to_thread(_has_open, pid, path):
        return False
    old = (await top_nodes(monitor)).get(qdev)
    opaque = f"device {device} {volume}"
    stale = [one for one, owner in await fdsets(monitor) if owner == opaque]
    fdset = await give(monitor, path, opaque, read_only=read_only)
    name = layers.layer_name(device, Path(f"{path}#{fdset}"))
    try:
        node = layers.layer_node(name, "raw", layers.file_node(driver, fdset, read_only=read_only))
        await monitor.execute("blockdev-add", node | {"read-only": read_only})
        await monitor.execute("qom-set", {"path": f"/machine/peripheral/{qdev}", "property": "drive", "value": name})
    except Refused as error:
        await _take_back(monitor, [(name, fdset)])
        raise Unavailable(f"QEMU does not take the file of {device} anew: {error.reason}") from error
    if old:
        await delete_nodes(monitor, {old})
    for number in stale:
        await monitor.remove_fdset(number)
    return True


async def connect_anew(monitor: Monitor, qdev: str, volume: MountedVolume, size: int) -> None:
    """Have the disk *qdev*, which is served over NBD, know that it has *size* bytes: a client learns that when it connects. Requests that
    wait for the old connection are done first.

    :raise Unavailable: when QEMU refuses.
    """
    old = (await top_nodes(monitor))[qdev]
    name = layers.layer_name(volume.device, Path(f"{volume.socket}#{size}"))
    if old == name:
        return
    try:
        await monitor.execute("blockdev-add", served.node(volume, name))
        await monitor.execute("qom-set", {"path": f"/machine/peripheral/{qdev}", "property": "drive", "value": name})
    except Refused as error:
        with suppress(Refused):
            await monitor.execute("blockdev-del", {"node-name": name})
        raise Unavailable(f"QEMU does not connect to volume {volume.name} anew: {error.reason}") from error
    await delete_nodes(monitor, {old})


async def failed(monitor: Monitor) -> bool:
    """Whether the machine stands still because a disk failed or was full."""
    return await monitor.status() == _IO_ERROR


async def resize(monitor: Monitor, qdev: str, size: int) -> None:
    """Have the guest see that its disk has *size* bytes.

    :raise Unsupported: when there is no such disk. :raise Unavailable: when QEMU refuses.
    """
    node = (await top_nodes(monitor)).get(qdev)
    if node is None:
        raise Unsupported(f"the running machine has no disk {qdev}")
    try:
        await monitor.execute("block_resize", {"node-name": node, "size": size})
    except Refused as error:
        raise Unavailable(f"QEMU did not resize {qdev}: {error.reason}") from error


class _File(msgspec.Struct):
    opaque: str = ""


class _FdSet(msgspec.Struct):
    fdset: int = msgspec.field(name="fdset-id")
    fds: list[_File] = []


async def fdsets(monitor: Monitor) -> list[tuple[int, str]]:
    """Descriptor sets with what was said of them."""
    sets = await monitor.ask(list[_FdSet], "query-fdsets")
    return [(item.fdset, opaque) for item in sets for opaque in {file.opaque for file in item.fds}]


def own_disks(machine: Machine, root: str) -> dict[str, OwnDisk]:
    """By volume; *root* is QEMU's id of the first disk's device."""
    found: dict[str, OwnDisk] = {}
    if machine.disk is not None:
        found[machine.disk.id] = OwnDisk(device="", qdev=root, volume=machine.disk.id, path=machine.disk.path)
    for disk in machine.disks:
        one = OwnDisk(device=disk.name, qdev=f"dev-{disk.name}", volume=disk.volume.id, path=disk.volume.path)
        found[disk.volume.id] = one
    return found


def switched(machine: Machine, wanted: Mapping[str, Layer]) -> Machine:
    """What is written down of *machine* once its disks have gone over to these layers."""
    disk = machine.disk
    if disk is not None and disk.id in wanted:
        disk = layers.laid_over(disk, wanted[disk.id])
    disks = [
        msgspec.structs.replace(item, volume=layers.laid_over(item.volume, wanted[item.volume.id]))
        if item.volume.id in wanted
        else item
        for item in machine.disks
    ]
    return msgspec.structs.replace(machine, disk=disk, disks=disks)


def write_out(path: Path) -> None:
    """Have the host write what it holds of a file."""
    fd = layers.open_file(path, os.O_RDONLY)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _has_open(pid: int, path: Path) -> bool:
    """Whether *pid* has this very file open: one of the same name may be another since."""
    wanted = path.stat()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            facts = entry.stat()
            if (facts.st_dev, facts.st_ino, facts.st_rdev) == (wanted.st_dev, wanted.st_ino, wanted.st_rdev):
                return True
    return False
