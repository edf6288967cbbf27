"""Can this host run containers? Found out by doing: a namespace pair, an id-mapped layer, an overlay, a cgroup."""

import os
import platform
import shutil
from pathlib import Path

from lamella.host.compute.driver import Home, Limits
from lamella.host.compute.oci import rootfs
from lamella.host.compute.oci.namespaces import Pair
from lamella.host.compute.oci.seccomp import profile
from lamella.host.linux import mounts
from lamella.host.linux.cgroup import Cgroups
from lamella.model.errors import Unsupported

PROBE_BASE = 65536 * 1000


def check_home(home: Home) -> None:
    """:raise Unsupported: when the tools below cannot be told such a path."""
    if any(mark in str(home.path) for mark in ":\n"):
        raise Unsupported(
            f"LAMELLA_HOME {str(home.path)!r} has a colon or a line break in it",
            hint="conmon takes a colon for a separator: choose another directory",
        )


def check_path(place: Path) -> None:
    """runc enters the root of a container by its whole path, with the container's ids.

    :raise Unsupported: when a folder on the way lets nobody else through.
    """
    closed = [folder for folder in (place, *place.parents) if not folder.stat().st_mode & 0o001]
    if closed:
        raise Unsupported(
            f"runc cannot reach containers below {closed[-1]}, which only its owner may enter",
            hint=f"install crun, which can, or chmod o+x {closed[-1]}",
        )


def check_cgroups(cgroups: Cgroups) -> None:
    """:raise Unsupported: when a limit cannot be held here."""
    group = cgroups.group("probe")
    wanted = Limits(cpu=500, memory=64 << 20, pids=64)
    try:
        group.create(wanted)
        held = group.read_limits()
    except OSError as error:
        raise Unsupported(
            f"no control group can be made: {error}", hint="the layer needs to be root of its cgroup tree"
        ) from error
    finally:
        group.remove()
    if held != wanted:
        raise Unsupported(f"the kernel holds other limits than it was given: {held} instead of {wanted}")


def check_filesystem(pair: Pair, home: Home) -> None:
    """A root made of one empty layer. Blocks.

    :raise Unsupported: when ids cannot be mapped or the overlay is refused.
    """
    folder = home.run / "oci-probe"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    userns = -1
    try:
        for name in ("layer", "disk"):
            (folder / name).mkdir()
        (folder / "layer" / "file").touch()
        userns = pair.pin(PROBE_BASE, folder / "user", folder / "net")
        rootfs.assemble(
            [folder / "layer"], folder / "disk", userns, PROBE_BASE, lowers=folder / "lowers", target=folder / "root"
        )
        if (folder / "root" / "file").stat().st_uid != PROBE_BASE:
            raise Unsupported("the kernel does not show an id-mapped layer with the owners that were asked")
    except OSError as error:
        raise Unsupported(
            f"a container's namespaces cannot be made: {error}", hint="Lamella needs root and a kernel of 5.19 or later"
        ) from error
    finally:
        if userns >= 0:
            os.close(userns)
        mounts.release(folder)
        shutil.rmtree(folder, ignore_errors=True)


def machine() -> str:
    """This host's architecture, when there is a seccomp profile for it. :raise Unsupported: otherwise."""
    name = platform.machine()
    profile(name)
    return name


def in_room(path: Path) -> bool:
    """Whether mounts made at *path* stay with us: a mount that is shared with nobody."""
    best = max(
        (entry for entry in mounts.table() if path.is_relative_to(entry.point)),
        key=lambda entry: len(entry.point),
        default=None,
    )
    return best is not None and not any(field.startswith("shared:") for field in best.propagation)
