"""In which order the firmware looks for something to boot. Pure.

Devices are called by their names: ``root``, ``nic`` (the first NIC), ``media-0`` and on (the CDs of the image itself), and the
names that a person gave to those that come and go.
"""

from lamella.host.compute.driver import Machine
from lamella.model.image import ArtifactKind

ROOT = "root"
NIC = "nic"


def media(machine: Machine) -> list[str]:
    """Names of the drives that hold the CDs of the image itself, in its order."""
    count = sum(1 for artifact in machine.rootfs.artifacts if artifact.kind is ArtifactKind.CDROM)
    return [f"media-{number}" for number in range(count)]


def boot_order(machine: Machine) -> dict[str, int]:
    """QEMU's ``bootindex`` of every device that may be booted from, the first with 1.

    What a person said is all there is. Otherwise a root disk that began as an image's comes first; on one that began empty
    something must be installed first, so drives come before it. The image's own CDs come after the root disk in either case: the
    firmware passes over a disk that holds nothing, and does not begin the installation again when it holds something.
    """
    disks = [disk.name for disk in machine.disks]
    drives = [drive.name for drive in machine.cdroms]
    nics = ([NIC] if machine.nic is not None else []) + [nic.name for nic in machine.nics]
    if machine.board.boot:
        there = {ROOT, *media(machine), *disks, *drives, *nics}
        names = [name for name in machine.board.boot if name in there]
    elif machine.disk is not None and machine.disk.base is not None:
        names = [ROOT, *disks, *media(machine), *drives, *nics]
    else:
        names = [*drives, ROOT, *media(machine), *disks, *nics]
    return {name: index for index, name in enumerate(dict.fromkeys(names), start=1)}
