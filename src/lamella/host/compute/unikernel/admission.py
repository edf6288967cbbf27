"""What of a request a unikernel can have. Pure."""

from pathlib import Path

from lamella.host.compute.driver import Machine, Rootfs
from lamella.host.storage.driver import VolumeHandle
from lamella.model.board import Firmware, Watchdog
from lamella.model.errors import Unsupported
from lamella.model.image import ArtifactKind
from lamella.model.storage import VolumeForm


def check(machine: Machine) -> None:
    """:raise Unsupported: when something is asked that a unikernel has not; the sentence says what."""
    board = machine.board
    asked = {
        "a firmware of its own": board.firmware is not Firmware.BIOS or board.secure_boot,
        "a TPM": board.tpm,
        "a screen": board.spice,
        "a watchdog": board.watchdog is not Watchdog.NONE,
        "a CD drive": bool(machine.cdroms),
        "USB": bool(machine.usb),
        "directories of the host": bool(machine.directories),
        "encrypted memory": board.confidential is not None,
    }
    missing = [what for what, wanted in asked.items() if wanted]
    if missing:
        raise Unsupported(
            f"a unikernel has no {' and no '.join(missing)}",
            hint="leave it out, or run the image with --isolation vm",
            field="spec.isolation",
        )
    volumes = [*([machine.disk] if machine.disk else []), *(disk.volume for disk in machine.disks)]
    for volume in volumes:
        _check_volume(volume)


def files_of(rootfs: Rootfs) -> tuple[Path, Path | None]:
    """Kernel and initrd of an image.

    :raise Unsupported: when it has no kernel, or several.
    """
    kernels = [item for item in rootfs.artifacts if item.kind is ArtifactKind.KERNEL]
    initrds = [item for item in rootfs.artifacts if item.kind is ArtifactKind.INITRD]
    if not kernels:
        raise Unsupported(
            "the image holds no kernel, which is all that a unikernel is",
            hint="import one: lamella image import kernel.elf --name NAME",
            field="spec.image",
        )
    if len(kernels) > 1 or len(initrds) > 1:
        raise Unsupported(
            "the image holds several kernels or initrds, and a machine starts one", hint="import them one by one"
        )
    return kernels[0].path, initrds[0].path if initrds else None


def _check_volume(volume: VolumeHandle) -> None:
    if volume.form is not VolumeForm.BLOCK or volume.base is not None:
        raise Unsupported(
            f"volume {volume.id} is no disk of its own",
            hint="a unikernel is given disks of the form block, without a base image",
        )
