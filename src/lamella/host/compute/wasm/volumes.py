"""Volumes of a module: directories that it finds open, beside those of the host that it was given.

A volume's root belongs to 0, and the worker is shown its owner's files as its own (native/wasm/confine.c): what a module makes belongs to 0
on the volume, as what a container's root makes does. Files of other owners are others' to it, as they are to anybody.
"""

from lamella.host.compute.driver import Machine
from lamella.model.board import Directory
from lamella.model.errors import Invalid, Unsupported

MOST = 32  # MOST_DIRECTORIES of native/wasm/lamella-wasm.h


def directories(machine: Machine) -> list[Directory]:
    """All that a module finds open. Pure.

    :raise Unsupported: when a volume is a bare disk, or there are too many. :raise Invalid: when two have the same target.
    """
    found = list(machine.directories)
    for volume in machine.volumes:
        if not volume.target:
            raise Unsupported(
                f"a WebAssembly module has no disks: volume {volume.name} needs a place to be found at",
                hint=f"--volume {volume.name}:/{volume.name}",
                field="volumes",
            )
        found.append(Directory(source=str(volume.path), target=volume.target, read_only=volume.read_only))
    targets = [one.target for one in found]
    if len(set(targets)) != len(targets):
        raise Invalid("two directories have the same target", field="directories")
    if len(found) > MOST:
        raise Unsupported(f"a WebAssembly module is given {MOST} directories and volumes at most", field="directories")
    return found
