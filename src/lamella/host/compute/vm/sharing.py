"""Volumes that the storage process serves through a machine's memory (vhost-user-blk), rather than through a file.

Only a machine that began with such a volume has memory that another process may be let see, and a room that shows the socket's directory
(``/volumes/DEVICE``); a volume that comes later is a file. QEMU connects again by itself when the storage process is another one. Every
such disk tells the guest the same serial number (QEMU's ``block/export/vhost-user-blk-server.c``), so it is found by its place on the bus.
"""

import contextlib
import os
from pathlib import Path

from lamella.host.compute.driver import Machine, MountedVolume
from lamella.host.compute.qemu.layers import Properties
from lamella.host.compute.qemu.monitor import Monitor, Refused
from lamella.host.compute.vm.devices import SHARED_DISK, place_of_port


def sockets(machine: Machine) -> dict[Path, Path]:
    """Directories with sockets, and where the machine's room shows them."""
    return {one.socket.parent: _inside(one) for one in machine.volumes if one.socket is not None}


def reaches(pid: int, volume: MountedVolume) -> bool:
    """Whether the machine whose QEMU is *pid* can use the volume's socket."""
    if volume.socket is None or volume.read_only:
        return False
    shown = Path(f"/proc/{pid}/root") / _inside(volume).relative_to("/")
    with contextlib.suppress(OSError):
        return os.path.samestat(shown.stat(), volume.socket.parent.stat())
    return False


def chardev(volume: MountedVolume) -> Properties:
    """What the disk speaks over: while nobody answers, it is tried once a second."""
    assert volume.socket is not None
    address = {"type": "unix", "data": {"path": str(_inside(volume) / volume.socket.name)}}
    data: Properties = {"addr": address, "server": False, "reconnect": 1}
    return {"id": f"volume-{volume.device}", "backend": {"type": "socket", "data": data}}


def device(volume: MountedVolume, bus: str) -> Properties:
    return {"driver": SHARED_DISK, "id": f"dev-{volume.device}", "bus": bus, "chardev": f"volume-{volume.device}"}


async def place(monitor: Monitor, volume: MountedVolume) -> str:
    """Where the guest finds the disk on its bus (``0000:00:10.1``, its root port); empty when it has a serial number of its own."""
    path = f"/machine/peripheral/dev-{volume.device}"
    try:
        if await monitor.ask(str, "qom-get", {"path": path, "property": "type"}) != SHARED_DISK:
            return ""
        bus = await monitor.ask(str, "qom-get", {"path": path, "property": "parent_bus"})
    except Refused:
        return ""
    return place_of_port(bus.rsplit("/", 1)[-1])


def _inside(volume: MountedVolume) -> Path:
    return Path("/volumes") / volume.device
