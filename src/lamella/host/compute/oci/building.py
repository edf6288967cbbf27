"""A container's bundle: everything that the runtime is given, made before it is started."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Machine
from lamella.host.compute.oci import bundle, identity, record, rootfs, volumes
from lamella.host.compute.oci.layout import LOG_BOUND, Place
from lamella.host.compute.oci.spec import Seccomp
from lamella.host.linux.cgroup import Cgroup

# Keeps a pair of namespaces for a range of ids at two paths, and returns a descriptor of the user namespace.
Pin = Callable[[int, Path, Path], int]


def build(place: Place, machine: Machine, group: Cgroup, seccomp: Seccomp, pin: Pin) -> None:
    """The bundle: namespaces, root, generated files, group, configuration. Blocks for some milliseconds."""
    place.bundle.mkdir(exist_ok=True)
    # The runtime steps into it as the container's root. No other user of the host may: the container can make what it
    # has in there setuid.
    os.chown(place.bundle, 0, machine.id_base)
    place.bundle.chmod(0o710)
    record.write(place.machine, machine)
    _trim_log(place)
    userns = pin(machine.id_base, place.user_namespace, place.net_namespace)
    try:
        rootfs.assemble(
            machine.rootfs.layers,
            machine.volume.path,
            userns,
            machine.id_base,
            lowers=place.lowers,
            target=place.rootfs,
        )
        volumes.show(machine, place, userns)
    finally:
        os.close(userns)
    place.etc.mkdir(exist_ok=True)
    for name, text in bundle.generated(machine).items():
        path = place.etc / name
        path.write_text(text)
        path.chmod(0o644)
        os.chown(path, machine.id_base, machine.id_base)
    root = os.open(place.rootfs, os.O_PATH | os.O_DIRECTORY)
    try:
        who = identity.look_up(root, machine.user)
        with suppress(OSError):
            rootfs.make_directory(root, machine.working_directory, machine.id_base)
    finally:
        os.close(root)
    group.create(machine.limits)
    spec = bundle.bundle(machine, who, place, cgroup=group.name, seccomp=seccomp)
    record.write_private(place.config, msgspec.json.encode(spec))


def _trim_log(place: Place) -> None:
    """A restarted instance goes on in its log, unless that is over half of the bound already: conmon keeps the other half."""
    with suppress(OSError):
        if place.log.stat().st_size > LOG_BOUND // 2:
            place.log.unlink()
