"""Volumes of a microVM: further disks from its start to its end, mounted by the agent before the command runs.

The board has no place that something could be plugged into later.
"""

from lamella.host.compute.driver import Machine, MountedVolume
from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.microvm.arguments import DATA, LAYERS, MOST_VOLUMES, VolumeDisk
from lamella.host.compute.qemu import layers, served
from lamella.host.compute.qemu.layers import ColdDisk, described, serial
from lamella.model.contract import Mechanism
from lamella.model.errors import Unsupported

_MOUNTS = "/proc/self/mounts"


def check(machine: Machine) -> None:
    """:raise Unsupported: when there are more than the board has places for."""
    if len(machine.volumes) > MOST_VOLUMES:
        raise Unsupported(f"a microVM has places for {MOST_VOLUMES} volumes", hint="run it as a vm", field="volumes")


def disks(machine: Machine) -> tuple[ColdDisk, list[VolumeDisk]]:
    """The writable disk, and the volumes.

    :raise NotFound: when a file is not there.
    """
    data = layers.cold_disk("data", machine.volume, LAYERS, fd=DATA)
    number = 1 + max(fd for file in data.files for fd in (file.fd, file.again))
    found: list[VolumeDisk] = []
    for volume in machine.volumes:
        found.append(VolumeDisk(device=volume.device, disk=served.cold(volume, number)))
        number += 2
    return data, found


async def mount(guest: GuestClient, machine: Machine) -> None:
    """:raise Invalid: when the guest cannot mount one."""
    for volume in machine.volumes:
        await mount_one(guest, volume)


async def mount_one(guest: GuestClient, volume: MountedVolume) -> None:
    if volume.target and volume.filesystem:
        await guest.mount(serial(volume.device), volume.target, volume.filesystem, read_only=volume.read_only)


async def mounts(guest: GuestClient) -> dict[str, tuple[str, str]]:
    """What the guest's kernel has mounted: file system and options by place."""
    text = b"".join([piece async for piece in guest.read_file(_MOUNTS)]).decode(errors="replace")
    rows = (line.split() for line in text.splitlines())
    return {row[1]: (row[2], row[3]) for row in rows if len(row) > 3}


def of_guest(machine: Machine | None, mounted: dict[str, tuple[str, str]]) -> list[Mechanism]:
    """What the guest has of its volumes."""
    return [_of(volume, mounted) for volume in (machine.volumes if machine else [])]


def _of(volume: MountedVolume, mounted: dict[str, tuple[str, str]]) -> Mechanism:
    name = f"volume {volume.name}"
    if not (volume.target and volume.filesystem):
        value = f"a bare disk with the serial number {serial(volume.device)}, as it was asked for"
        return Mechanism(name=name, value=value, evidence=described(volume))
    kind, options = mounted.get(volume.target, ("", ""))
    access = "read-only" if "ro" in options.split(",") else "read and write"
    value = f"{kind} at {volume.target}, {access}" if kind else f"nothing at {volume.target}"
    right = kind == volume.filesystem and ("ro" in options.split(",")) == volume.read_only
    return Mechanism(name=name, value=value, evidence=f"{_MOUNTS} in the guest; {described(volume)}", in_force=right)
