"""The process ``disks``: the drivers' nodes, each served to ``doors`` over NBD on a Unix socket that only root reaches.

A volume's uppermost node has no node above it here, only the NBD export, because QEMU 7.2 starts a mirror or an active commit on root
nodes alone; and no FUSE export stands on it, because that one wants to resize, which every such job forbids.
"""

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.compute.qemu.monitor import Monitor, Refused
from lamella.host.storage.driver import Node
from lamella.host.storage.process import nodes
from lamella.host.storage.process.qsd import TOP, Qsd
from lamella.model.errors import Conflict, Internal, NoRoom, Unavailable

SOCKET = "nbd"
_PATIENCE = 30.0


class BlockNode(msgspec.Struct):
    """What of ``query-named-block-nodes`` we need; bytes."""

    class Image(msgspec.Struct):
        size: int = msgspec.field(name="virtual-size", default=0)

    name: str = msgspec.field(name="node-name")
    image: Image
    file: str = ""


class Export(msgspec.Struct):
    id: str
    node: str = msgspec.field(name="node-name")
    kind: str = msgspec.field(name="type")


class Disks:
    """Verbs of one process. They raise :class:`Unavailable` while it does not run."""

    def __init__(self, top: Path, process: Qsd, spare: Qsd) -> None:
        self.spare = spare
        self._top = top
        self.process = process

    @property
    def monitor(self) -> Monitor:
        return self.process.monitor

    async def start(self) -> None:
        """Start the process, with its NBD server: the spare one, if there is one.

        A program that is started closes what its parent had open, and a descriptor of a volume's file closes only when ``disks``
        answers: with one open here, starting ``disks`` would wait for ``disks``. So another waits, started in good times.
        """
        (self._top / SOCKET).unlink(missing_ok=True)
        if self.spare.here:
            await self.process.take(self.spare)
        else:
            await self.process.start()
        await self._listen()

    async def _listen(self) -> None:
        address = {"type": "unix", "data": {"path": f"{TOP}/{SOCKET}"}}
        await self.monitor.execute("nbd-server-start", {"addr": address, "max-connections": 0})

    async def adopt(self) -> bool:
        """Take hold of the one that runs; ``False`` when none does. A daemon that was killed at the start of it may have left it without
        its server."""
        if not await self.process.adopt():
            return False
        with suppress(Refused):  # it has one
            await self._listen()
        return True

    async def end(self) -> None:
        """Let the process write everything out and end."""
        await self.spare.end()
        await self.process.end()
        (self._top / SOCKET).unlink(missing_ok=True)

    async def open(self, id: str, node: Node, *, read_only: bool) -> None:
        """Open *node* and serve it; what is open already stays.

        :raise Conflict: when another process has it open. :raise Unavailable: when it cannot be opened.
        """
        exports = await query_exports(self.monitor)
        if f"nbd-{nodes.tag(id)}" in exports:
            return
        name = nodes.layer_name(id, nodes.key_of(node))
        if name not in await node_names(self.monitor):
            await add_node(self.monitor, id, node, read_only=read_only)
        await self._serve(id, name, read_only=read_only)

    async def _serve(self, id: str, name: str, *, read_only: bool) -> None:
        await self.monitor.execute(
            "block-export-add",
            {
                "type": "nbd",
                "id": f"nbd-{nodes.tag(id)}",
                "node-name": name,
                "name": nodes.tag(id),
                "writable": not read_only,
            },
        )

    async def close(self, id: str) -> None:
        """Stop serving it and close all its nodes; what they had not written yet is written."""
        await remove_exports(self.monitor, {f"nbd-{nodes.tag(id)}"})
        await drop_nodes(self.monitor, nodes.tag(id))

    async def standing(self, id: str) -> str:
        """The name of the node that *id* stands on now.

        :raise Internal: when it is not open.
        """
        export = (await query_exports(self.monitor)).get(f"nbd-{nodes.tag(id)}")
        if export is None:
            raise Internal(f"volume {id} is not open in the storage process")
        return export.node

    async def served(self, node: str) -> str:
        """The id of the NBD export of *node*."""
        for id, export in (await query_exports(self.monitor)).items():
            if export.node == node:
                return id
        raise Internal(f"{node} is not served by the storage process")

    async def size(self, name: str) -> int:
        """Bytes of the node *name*; 0 when there is none."""
        found = await self.monitor.ask(list[BlockNode], "query-named-block-nodes", {"flat": True})
        return next((node.image.size for node in found if node.name == name), 0)

    async def resize(self, id: str, size: int, *, read_only: bool = False) -> None:
        """An NBD export forbids it, so it is taken away for a moment; ``doors`` waits and connects again."""
        name = await self.standing(id)
        if await self.size(name) == size:
            return
        await remove_exports(self.monitor, {f"nbd-{nodes.tag(id)}"})
        try:
            await self.monitor.execute("block_resize", {"node-name": name, "size": size})
        except Refused as error:
            raise translated(error, id) from error
        finally:
            await self._serve(id, name, read_only=read_only)


async def add_node(monitor: Monitor, id: str, node: Node, *, read_only: bool) -> None:
    """``blockdev-add`` of *node*, as fast as its filesystem allows.

    :raise Conflict: when another process has it open. :raise Unavailable: when it cannot be opened.
    """
    for secret in nodes.secret_files(node):
        with suppress(Refused):  # there from another volume of its pool
            await monitor.execute("object-add", secret)
    failed: Refused | None = None
    for cache in nodes.CACHES:
        try:
            await monitor.execute("blockdev-add", nodes.named(id, node, cache, read_only=read_only))
            return
        except Refused as error:
            failed = error
            if not any(word in error.reason for word in ("O_DIRECT", "io_uring", "direct")):
                break
    assert failed is not None
    raise translated(failed, id) from failed


def translated(error: Refused, id: str) -> Exception:
    """What *error* means for a person."""
    if "Failed to get" in error.reason and "lock" in error.reason:
        return Conflict(f"volume {id} is open elsewhere: {error.reason}", hint="two cannot write to one volume")
    if "unlock any keyslot" in error.reason:
        return Unavailable(f"volume {id} does not open with this key", hint="is it the key of another volume?")
    if "No space left" in error.reason:
        return NoRoom(f"volume {id}: {error.reason}", hint="make room in its pool")
    return Unavailable(f"volume {id} cannot be opened: {error.reason}", hint="lamella fsck looks for what is broken")


async def query_exports(monitor: Monitor) -> dict[str, Export]:
    return {export.id: export for export in await monitor.ask(list[Export], "query-block-exports")}


async def node_names(monitor: Monitor) -> set[str]:
    return {node.name for node in await monitor.ask(list[BlockNode], "query-named-block-nodes", {"flat": True})}


async def remove_exports(monitor: Monitor, ids: set[str]) -> None:
    """Take away those of *ids* that are there, and wait until they are gone."""
    deadline = time.monotonic() + _PATIENCE
    asked: set[str] = set()
    while there := set(await query_exports(monitor)) & ids:
        for id in there - asked:
            with suppress(Refused):
                await monitor.execute("block-export-del", {"id": id, "mode": "hard"})
        asked |= there
        if time.monotonic() > deadline:
            raise Unavailable(f"the storage process does not let go of {', '.join(sorted(there))}")
        await asyncio.sleep(0.002)


async def drop_nodes(monitor: Monitor, mark: str) -> None:
    """Delete every node with *mark* in its name, those that stand on others first."""
    deadline = time.monotonic() + _PATIENCE
    refused: Refused | None = None
    while there := {name for name in await node_names(monitor) if mark in name}:
        for name in sorted(there, key=lambda name: (name[:3] != "hol", name[:3] != "top", name[:3] != "lks", name)):
            try:
                await monitor.execute("blockdev-del", {"node-name": name})
            except Refused as error:
                refused = error
        if time.monotonic() > deadline:
            raise Unavailable(f"the storage process does not close {', '.join(sorted(there))}: {refused}")
        await asyncio.sleep(0.002)
