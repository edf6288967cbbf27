"""The driver ``gluster``: a directory of a GlusterFS volume, through FUSE. ``PoolSpec.path`` is ``server:/volume``.

Through FUSE and not libgfapi, because ``qemu-img create`` over ``gluster://`` took 20 seconds where a file took 60 ms (GlusterFS 10.3,
QEMU 7.2). Copies are GlusterFS's own: a volume of replicas, or a dispersed one, goes on when a brick ends.
Source: glusterfs(8), https://docs.gluster.org/en/latest/Administrator-Guide/Setting-Up-Clients/.
"""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

from lamella.host.linux import binaries, syscalls
from lamella.host.linux.processes import MARK
from lamella.host.storage import command
from lamella.host.storage.over import MountedDirectory
from lamella.model.errors import Unavailable
from lamella.model.storage import Feature

_DEADLINE = 60.0


class GlusterDriver(MountedDirectory):
    """Options of its own: ``servers``, more of the cluster's, separated by commas, for when the first is down at the mount."""

    name = "gluster"
    kinds = frozenset({"fuse.glusterfs"})
    known = frozenset({"servers"})
    hint = "write it as server:/volume"

    async def mount(self, server: str, what: str, point: Path) -> None:
        try:
            tool = binaries.tool("glusterfs")
        except Unavailable as error:
            raise Unavailable("glusterfs is not installed", hint="apt install glusterfs-client") from error
        servers = [server, *(name for name in self.options.get("servers", "").split(",") if name)]
        log = point.parent / "gluster.log"
        # Its log begins anew with each mount, and tells of errors alone.
        await asyncio.to_thread(log.unlink, missing_ok=True)
        argv = [
            str(tool),
            *(f"--volfile-server={name}" for name in servers),
            *(f"--volfile-id={what}", f"--log-file={log}", "--log-level=ERROR", "--process-name=fuse", str(point)),
        ]
        # The client outlives the daemon, as what is open in it does.
        said = await command.run(argv, timeout=_DEADLINE, environment={MARK: self.mark} if self.mark else None)
        if said.code or not await asyncio.to_thread(os.path.ismount, point):
            text = (await asyncio.to_thread(_last_error, log)) or said.error or f"exit code {said.code}"
            # A client that gives up may have mounted before.
            with suppress(OSError):
                await asyncio.to_thread(syscalls.umount, str(point))
            raise Unavailable(
                f"GlusterFS volume {self.source} cannot be mounted: {text[-300:]}",
                hint="is the volume started, and does the server answer on port 24007?",
            )

    async def strengths(self, point: Path) -> frozenset[Feature]:
        """The client's graph tells whether there are copies (the virtual directory ``.meta``)."""
        graph = await asyncio.to_thread(_graph, point)
        copies = any("-replicate-" in name or "-disperse-" in name for name in graph)
        return frozenset({Feature.REDUNDANT}) if copies else frozenset()


def _graph(point: Path) -> list[str]:
    try:
        return [path.name for path in (point / ".meta/graphs/active").iterdir()]
    except OSError:
        return []


def _last_error(log: Path) -> str:
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if "] E [" in line]
    except OSError:
        return ""
    return lines[-1].rpartition(": ")[2] if lines else ""
