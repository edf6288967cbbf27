"""What changes on which files an open volume stands, while it is written: new layers, layers merged, a move to another pool.

In each the record is changed at the one moment when both the old and the new node hold everything that was acknowledged: before the
switch (an empty layer changes nothing), and between the last byte of a job and its change of the graph, while writers wait.

Mirrors copy again what is written meanwhile (``copy-mode`` background), and their writers are slowed down when they outrun the mirror.
Writing to both at once (write-blocking) would need no such thing, but in QEMU 7.2 it loses writes: the job writes zeros all over the
target first and takes the marks of everything in flight away when those are written (block/mirror.c, ``mirror_iteration_done``), so that
it copies what a write in flight then is about to change, and puts the old data on the target after the new.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from lamella.host.compute.qemu.monitor import Monitor, Refused
from lamella.host.storage.blocks import Stack, Told
from lamella.host.storage.driver import Layer, Node
from lamella.host.storage.process import jobs, nodes
from lamella.host.storage.process.core import Core
from lamella.host.storage.process.disks import add_node, drop_nodes, node_names, translated
from lamella.host.storage.process.doors import PRESSES
from lamella.host.storage.process.records import Opened
from lamella.model.errors import Conflict, Invalid, LamellaError

log = logging.getLogger("lamella.host.storage")

Settle = Callable[[], Awaitable[None]]


class Chains:
    """Verbs on volumes that are open in *core*."""

    def __init__(self, core: Core) -> None:
        self._core = core

    @property
    def _monitor(self) -> Monitor:
        return self._core.disks.monitor

    async def switch(self, layers: dict[str, Layer]) -> float:
        async with self._core.turn(*layers):
            waiting: dict[str, str] = {}
            for id, layer in layers.items():
                opened, name = self._core.known(id), _name(id, layer)
                standing = await self._core.disks.standing(id)
                if standing != name:
                    waiting[id] = standing
                elif nodes.key_of(opened.node) != str(layer.path):
                    await self._core.write(msgspec.structs.replace(opened, node=nodes.over(opened.node, layer)))
            if not waiting:
                return 0.0
            return await self._switch({id: layers[id] for id in waiting}, waiting)

    async def _switch(self, layers: dict[str, Layer], standing: dict[str, str]) -> float:
        before = {id: self._core.known(id) for id in layers}
        there = await node_names(self._monitor)
        try:
            for id, layer in layers.items():
                if _name(id, layer) not in there:
                    await add_node(self._monitor, id, nodes.layer_node(layer, None), read_only=False)
                await self._core.write(msgspec.structs.replace(before[id], entering=layer))
            actions = [
                {"type": "blockdev-snapshot", "data": {"node": standing[id], "overlay": _name(id, layer)}}
                for id, layer in layers.items()
            ]
            began = time.perf_counter()
            await self._monitor.execute("transaction", {"actions": actions}, deadline=30)
            pause = time.perf_counter() - began
        except (Refused, Conflict) as error:
            for id in layers:
                await self._core.write(before[id])
                await self._prune(before[id])
            raise translated(error, ", ".join(layers)) if isinstance(error, Refused) else error from error
        for id, layer in layers.items():
            await self._core.write(msgspec.structs.replace(before[id], node=nodes.over(before[id].node, layer)))
        return pause

    async def merge(self, id: str, upper: Layer, lower: Layer, told: Told | None = None, *, speed: int = 0) -> None:
        async with self._core.long_turn(id):
            opened = self._core.known(id)
            there = nodes.paths(opened.node)
            if str(upper.path) not in there:
                return
            if str(lower.path) not in there:
                raise Invalid(f"layer {lower.path.name} is not in the chain of volume {id}")
            standing, top = await self._core.disks.standing(id), _name(id, upper)
            arguments: dict[str, object] = {
                "job-id": f"mrg-{nodes.tag(id)}",
                "device": standing,
                "top-node": top,
                "base-node": _name(id, lower),
            }
            if top != standing:
                arguments["backing-file"] = str(lower.path)
            after = nodes.without(opened.node, upper.path)

            async def down() -> None:
                # A flush of the volume reaches what is written, and that is the layer above (block/io.c, bdrv_co_flush).
                await asyncio.to_thread(_put_down, lower.path)

            await self._run("block-commit", arguments, opened, after, told, speed, down)

    async def mirror(self, id: str, target: Stack, told: Told | None, speed: int, same: Settle | None) -> None:
        async with self._core.long_turn(id):
            opened = self._core.known(id)
            if bool(target.key) != opened.encrypted:
                raise Invalid(
                    f"volume {id} is {'' if opened.encrypted else 'not '}encrypted, and so has to be its target"
                )
            name = nodes.layer_name(id, nodes.key_of(target.node))
            standing = await self._core.disks.standing(id)
            if standing == name:
                return
            await self._prune(opened)
            await add_node(self._monitor, id, target.node, read_only=False)
            arguments: dict[str, object] = {
                "job-id": f"mir-{nodes.tag(id)}",
                "device": standing,
                "target": name,
                "sync": "full",
                "granularity": _granularity(await self._core.disks.size(standing)),
            }
            await self._run("blockdev-mirror", arguments, opened, target.node, told, speed, same)

    async def follow(self, id: str, target: Stack, told: Told | None, speed: int) -> None:
        async with self._core.long_turn(id):
            opened = self._core.known(id)
            job = f"fol-{nodes.tag(id)}"
            await drop_nodes(self._monitor, nodes.tag(target.id))
            await add_node(self._monitor, target.id, target.node, read_only=False)
            arguments: dict[str, object] = {
                "job-id": job,
                "device": await self._core.disks.standing(id),
                "target": nodes.layer_name(target.id, nodes.key_of(target.node)),
                "sync": "full",
            }
            self._core.jobs.add(job)
            try:
                async with self._pressing(id) as press:
                    await jobs.run(
                        self._monitor, "blockdev-mirror", arguments, told=told, speed=speed, late=press, stay=True
                    )
            except Refused as error:
                raise translated(error, opened.id) from error
            finally:
                self._core.jobs.discard(job)
                with suppress(LamellaError):
                    await asyncio.shield(drop_nodes(self._monitor, nodes.tag(target.id)))

    async def _run(
        self,
        command: str,
        arguments: dict[str, object],
        opened: Opened,
        after: Node,
        told: Told | None,
        speed: int,
        same: Settle | None = None,
    ) -> None:
        # Ways in cannot change meanwhile: it is this volume's turn. Limits can.
        job = str(arguments["job-id"])
        self._core.jobs.add(job)

        async def settle() -> None:
            if same is not None:
                await same()
            await self._core.change(opened.id, node=after, job=job)

        try:
            async with self._pressing(opened.id) as press:
                await jobs.run(self._monitor, command, arguments, told=told, speed=speed, settle=settle, late=press)
        except Refused as error:
            await self._undo(opened)
            raise translated(error, opened.id) from error
        except BaseException:
            await asyncio.shield(self._undo(opened))
            raise
        finally:
            self._core.jobs.discard(job)
        await self._prune(await self._core.change(opened.id, node=after, job=""))

    @asynccontextmanager
    async def _pressing(self, id: str) -> AsyncGenerator[Callable[[], None]]:
        """While a job runs: what this gives slows the users of *id* down until the job is over."""
        tasks: list[asyncio.Task[None]] = []

        def press() -> None:
            # Nobody waits for it: what is under way is done first, and that may have to wait for the job.
            if len(tasks) < len(PRESSES):
                tasks.append(asyncio.create_task(self._core.regroup(id, pressed=len(tasks) + 1), name=f"press {id}"))

        try:
            yield press
        finally:
            if tasks:
                await asyncio.shield(self._let_go(id, tasks))

    async def _let_go(self, id: str, pressing: list[asyncio.Task[None]]) -> None:
        failed = [error for error in await asyncio.gather(*pressing, return_exceptions=True) if error is not None]
        if failed:
            log.warning("the users of volume %s could not be slowed down: %s", id, failed[0])
        if self._core.closed:
            return
        try:
            await self._core.regroup(id, pressed=0)
        except LamellaError as error:
            log.warning("the users of volume %s stay slowed down: %s", id, error)

    async def _undo(self, opened: Opened) -> None:
        """The job did not change the graph, or the process is gone: then what is written down is what is right."""
        with suppress(LamellaError):
            if await self._core.disks.standing(opened.id) == nodes.layer_name(opened.id, nodes.key_of(opened.node)):
                await self._prune(await self._core.change(opened.id, node=opened.node, job=opened.job))

    async def _prune(self, opened: Opened) -> None:
        """Close what the volume does not stand on."""
        kept = nodes.names(opened.id, opened.node)
        mark = nodes.tag(opened.id)
        with suppress(LamellaError):
            for name in sorted(await node_names(self._monitor)):
                if mark in name and name not in kept and name.startswith("fmt-"):
                    with suppress(Refused):
                        await self._monitor.execute("blockdev-del", {"node-name": name})


def _put_down(path: Path) -> None:
    """What was written to it by whomever is on the disk. Blocks."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _granularity(size: int) -> int:
    """Bytes: few, so that a small write is a small copy; more where the bitmap of *size* bytes would take more than 32 MiB."""
    return max(4096, 1 << max(0, (size - 1).bit_length() - 28))


def _name(id: str, layer: Layer) -> str:
    return nodes.layer_name(id, str(layer.path))
