"""Starting the QEMU of one microVM: what it opens is opened for it, by the numbers of arguments.py."""

import contextlib
import os
from pathlib import Path

from lamella.host.compute.microvm import arguments
from lamella.host.compute.microvm.arguments import Hardware
from lamella.host.compute.microvm.host import HostParts
from lamella.host.compute.qemu import launch, memory_file
from lamella.host.compute.qemu.places import Places
from lamella.host.linux.cgroup import Cgroup


async def start(
    host: HostParts,
    places: Places,
    hardware: Hardware,
    files: dict[int, int],
    *,
    user: int,
    group: Cgroup,
    mark: str,
    shown: dict[Path, Path] | None = None,
) -> int:
    """Start it in *group*, with *files* (its descriptors: ours, which stay ours) beside its monitor and its agent's channel, and the disks
    that *hardware* names by path. Returns its pid; it is nobody's child and outlives us.

    :raise NotFound: when a disk is not where it should be. :raise Unavailable: when QEMU cannot be started; its words are in the error.
    """
    with contextlib.ExitStack() as stack:

        def own(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        opened = {
            arguments.MONITOR: stack.enter_context(launch.listening(places.run / "monitor")).fileno(),
            arguments.AGENT: stack.enter_context(launch.listening(places.run / "agent")).fileno(),
            **files,
        }
        disks = [volume.disk for volume in hardware.volumes]
        for disk in disks if hardware.data is None else [hardware.data, *disks]:
            opened |= {number: own(fd) for number, fd in disk.open().items()}
        return await launch.launch(
            launch.Plan(
                argv=arguments.arguments(hardware),
                qemu=host.qemu,
                accelerator=host.accelerator,
                shown={
                    host.boot.kernel: Path(arguments.KERNEL),
                    host.boot.initramfs: Path(arguments.INITRAMFS),
                    **(shown or {}),
                },
                memory_file=hardware.file is not None,
            ),
            places,
            user=user,
            procs_files=group.procs_files(),
            files=opened,
            console=own(launch.sealed("console", launch.CONSOLE_SIZE)),
            errors=own(launch.sealed("errors", launch.ERRORS_SIZE)),
            mark=mark,
        )


def memory_files(memory: int, state: int) -> dict[int, int]:
    """Descriptors of a QEMU that begins with the sealed files *memory* and *state*; the caller closes the second."""
    return {memory_file.MEMORY: memory, memory_file.STATE: memory_file.again(state)}
