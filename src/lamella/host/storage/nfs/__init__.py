"""The driver ``nfs``: a directory of an NFS export, mounted by the kernel. ``PoolSpec.path`` is ``server:/export``.

Version 4.2 is asked for: holes of files are kept over it (RFC 7862, SEEK and DEALLOCATE), and locks end with a client's lease. The
mount is hard: a server that is away makes writers wait and loses nothing. The export needs ``no_root_squash`` for the layer's
host, since containers' files have many owners. Source: nfs(5), exports(5).
"""

import contextlib
import subprocess
from asyncio import to_thread
from pathlib import Path

from lamella.host.linux import binaries
from lamella.host.storage import command
from lamella.host.storage.over import MountedDirectory
from lamella.model.errors import Unavailable, Unsupported

_DEADLINE = 90.0
_FILESYSTEMS = Path("/proc/filesystems")


class NfsDriver(MountedDirectory):
    """Options of its own: ``version`` (default 4.2) and ``options``, what else nfs(5) knows, separated by commas."""

    name = "nfs"
    kinds = frozenset({"nfs", "nfs4"})
    known = frozenset({"version", "options"})
    hint = "write it as server:/export"

    async def mount(self, server: str, what: str, point: Path) -> None:
        if reason := await to_thread(missing):
            raise Unsupported(reason, hint="use a kernel with CONFIG_NFS_V4, and apt install nfs-common")
        argv = [*mount_command(self.source, point, self.options)]
        said = await command.run(argv, timeout=_DEADLINE)
        if said.code:
            raise Unavailable(
                f"{self.source} cannot be mounted: {said.error.splitlines()[-1] if said.error else said.code}",
                hint="does the server export it to this host, for reading and writing, with no_root_squash?",
            )


def mount_command(source: str, point: Path, options: dict[str, str]) -> list[str]:
    chosen = ["hard", "nosuid", "nodev", f"vers={options.get('version', '4.2')}"]
    chosen += [word for word in options.get("options", "").split(",") if word]
    return [str(binaries.tool("mount.nfs")), source, str(point), "-o", ",".join(chosen)]


def missing() -> str:
    """Why this host cannot mount NFS, or nothing. Asks the kernel for its module."""
    if not _known():
        with contextlib.suppress(Unavailable, OSError, subprocess.TimeoutExpired):
            subprocess.run([str(binaries.tool("modprobe")), "-q", "nfsv4"], check=False, timeout=20)
    if not _known():
        return f"this kernel has no NFS client: {_FILESYSTEMS} names neither nfs nor nfs4"
    try:
        binaries.tool("mount.nfs")
    except Unavailable:
        return "mount.nfs is not installed"
    return ""


def _known() -> bool:
    return bool({"nfs", "nfs4"} & set(_FILESYSTEMS.read_text().split()))
