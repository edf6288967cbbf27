"""Volumes that the storage process serves to a machine over NBD, by Unix sockets that its room shows, rather than as files.

The disk is QEMU's own all the same: serial number, failures that stop the machine, a node that can be taken for another. Requests may be
under way together; while nobody answers they wait, and QEMU connects again by itself and sends them anew (QEMU 7.2, ``block/nbd.c``,
``reconnect-delay``). All sockets of a machine lie in one directory. Only a machine that began with such a volume shows it: to another one,
a volume that comes later is a file.
"""

import contextlib
import os
from pathlib import Path

from lamella.host.compute.driver import Machine, MountedVolume
from lamella.host.compute.qemu import layers
from lamella.host.compute.qemu.layers import ColdDisk, Properties

DRIVER = "nbd"
_INSIDE = Path("/volumes")
# Seconds for which requests wait: who serves is started again at once, so this is for ever.
_RECONNECT = 7 * 24 * 3600
_OPEN = 10


def sockets(machine: Machine) -> dict[Path, Path]:
    """The directory with its sockets, and where the machine's room shows it; nothing without any."""
    return {one.socket.parent: _INSIDE for one in machine.volumes if one.socket is not None}


def reaches(pid: int, volume: MountedVolume) -> bool:
    """Whether the machine whose QEMU is *pid* can use the volume's socket."""
    if volume.socket is None:
        return False
    shown = Path(f"/proc/{pid}/root") / _INSIDE.relative_to("/")
    with contextlib.suppress(OSError):
        return os.path.samestat(shown.stat(), volume.socket.parent.stat())
    return False


def node(volume: MountedVolume, name: str = "") -> Properties:
    """The block node of its socket: ``disk-DEVICE``, where no other name is given."""
    assert volume.socket is not None
    return {
        "driver": DRIVER,
        "node-name": name or f"disk-{volume.device}",
        "server": {"type": "unix", "path": str(_INSIDE / volume.socket.name)},
        "export": volume.id,
        "reconnect-delay": _RECONNECT,
        "open-timeout": _OPEN,
        "read-only": volume.read_only,
        "auto-read-only": False,
        "discard": "unmap",
    }


def cold(volume: MountedVolume, first: int) -> ColdDisk:
    """A volume that is there from the start; descriptors *first* and the next, where it is a file.

    :raise NotFound: when its file is not there.
    """
    if volume.socket is not None:
        return ColdDisk(node=node(volume), files=[])
    return layers.cold_volume(volume, first)
