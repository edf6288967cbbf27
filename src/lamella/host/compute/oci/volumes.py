"""Volumes of a container: directories of the host, shown inside with the container's own ids, for as long as it lives and no longer.

Each is cloned as an id-mapped mount (mount_setattr(2), as image layers are) below the bundle, which the runtime binds at its place inside
the container's own mount namespace; then the clones are taken away. What stays is the container's alone, and goes with its last process:
nothing of a container that ended keeps a volume busy. Needs a filesystem that can be id-mapped (ext4, xfs, btrfs, tmpfs from Linux 6.3 on;
overlayfs, NFS and FUSE cannot), and says so where it is none. Everything here blocks: call it in a thread.
"""

import os
from pathlib import Path

from lamella.host.compute.driver import Machine, MountedVolume
from lamella.host.compute.oci.layout import Place
from lamella.host.compute.oci.spec import Mount
from lamella.host.linux import mounts, syscalls
from lamella.host.linux.mounts import MountEntry
from lamella.model.contract import Mechanism
from lamella.model.errors import Invalid, NotFound, Unsupported

# What the runtime makes of its own; a volume over it would take a wall away.
_TAKEN = ("/proc", "/sys", "/dev")


def check(machine: Machine) -> None:
    """:raise Invalid: when a volume cannot lie where it is asked. :raise Unsupported: when it is a bare disk."""
    targets: set[str] = set()
    for volume in machine.volumes:
        target = os.path.normpath(volume.target) if volume.target else ""
        if not target:
            raise Unsupported(
                f"a container has no disks: volume {volume.name} needs a place to be mounted at",
                hint=f"--volume {volume.name}:/srv/{volume.name}",
                field="volumes",
            )
        if target in ("/", "//") or any(target == taken or target.startswith(f"{taken}/") for taken in _TAKEN):
            raise Invalid(f"no volume can be mounted at {target}", hint="choose another place", field="volumes")
        if target in targets:
            raise Invalid(f"two volumes are to be mounted at {target}", field="volumes")
        targets.add(target)


def show(machine: Machine, place: Place, userns: int) -> None:
    """Clone each below the bundle, owned as *userns* maps owners.

    :raise NotFound: when a volume is not there. :raise Unsupported: when its filesystem shows no other owners.
    """
    place.volumes.mkdir(mode=0o711, exist_ok=True)
    for number, volume in enumerate(machine.volumes):
        target = place.volumes / str(number)
        target.mkdir(exist_ok=True)
        _clone(volume, target, userns)


def hide(place: Place) -> None:
    """Take the clones away: the container has its own."""
    mounts.release(place.volumes)


def bound(machine: Machine, place: Place) -> list[Mount]:
    """For the runtime's configuration, the outer before the inner. The runtime makes each target inside the root, following no link out of
    it. Pure."""
    ordered = sorted(enumerate(machine.volumes), key=lambda item: os.path.normpath(item[1].target).count("/"))
    return [
        Mount(
            destination=os.path.normpath(volume.target),
            type="bind",
            source=str(place.volumes / str(number)),
            options=["bind", "ro" if volume.read_only else "rw", "nosuid", "nodev"],
        )
        for number, volume in ordered
    ]


def mechanisms(pid: int, volumes: list[MountedVolume]) -> list[Mechanism]:
    """What the running container has of them, read from its mount table."""
    points = {entry.point: entry for entry in mounts.table(pid)}
    return [_evidence(pid, volume, points.get(os.path.normpath(volume.target))) for volume in volumes]


def _evidence(pid: int, volume: MountedVolume, entry: MountEntry | None) -> Mechanism:
    name, evidence = f"volume {volume.name}", f"/proc/{pid}/mountinfo {volume.target}"
    if entry is None:
        return Mechanism(name=name, value=f"nothing at {volume.target}", evidence=evidence, in_force=False)
    access = "read-only" if "ro" in entry.options else "read and write"
    mapped = "its own ids" if "idmapped" in entry.options else "the host's ids"
    right = "nodev" in entry.options and "idmapped" in entry.options and ("ro" in entry.options) == volume.read_only
    value = f"{entry.kind} at {volume.target}, {access}, no devices, {mapped}"
    return Mechanism(name=name, value=value, evidence=evidence, in_force=right)


def _clone(volume: MountedVolume, target: Path, userns: int) -> None:
    try:
        clone = syscalls.clone_mount(str(volume.path))
    except OSError as error:
        raise NotFound(
            f"volume {volume.name} is not where it should be: {error.strerror}", hint="see whether its pool is there"
        ) from error
    try:
        syscalls.map_mount_ids(clone, userns, read_only=volume.read_only, more=syscalls.MOUNT_ATTR_NODEV)
        syscalls.attach_mount(clone, str(target))
    except OSError as error:
        raise Unsupported(
            f"the filesystem of volume {volume.name} cannot be shown with the container's owners: {error.strerror}",
            hint="keep its pool on ext4, xfs or btrfs, or give the volume a disk of its own (form block)",
        ) from error
    finally:
        os.close(clone)
