"""Copies of whole volumes and of parts, and the map of what holds data. What is not open is opened for this alone.

Two stacks with the same key (or none) are copied as they lie, ciphertext and header, so that holes stay holes; others from plain text to
plain text, over ``doors``, where holes of what is encrypted are noise, which is copied.

QEMU's backup writes a hole as zeros that take room in a raw file, its mirror lets go of them. So a whole volume is mirrored, but for a
source that is written and has to be copied as it is at one instant, and a target that is open. Such a copy takes its whole size in a raw
file. A part is a slice (``raw`` with an offset), and of a slice QEMU 7.2 sees the uppermost layer alone as allocated
(block/io.c, ``bdrv_co_block_status`` with ``BDRV_BLOCK_RAW``): a mirror would write zeros where a layer below has data. So parts are
backed up, which reads what it does not know to be zeros, and what reads as zeros is let go of at the target (``detect-zeroes``).
"""

import asyncio
import itertools
import json
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import msgspec

from lamella.host.compute.qemu.monitor import Monitor, Refused
from lamella.host.linux import binaries
from lamella.host.linux.processes import environment, read_all, spawn
from lamella.host.storage.blocks import OVERHEAD, Stack, Told
from lamella.host.storage.driver import Extent
from lamella.host.storage.process import jobs, nodes
from lamella.host.storage.process.core import Core
from lamella.host.storage.process.disks import SOCKET, add_node, drop_nodes, node_names
from lamella.host.storage.process.doors import Doors
from lamella.host.storage.process.qsd import TOP
from lamella.model.errors import NoRoom, Unavailable, Unsupported

_numbers = itertools.count(1)


class _Mapped(msgspec.Struct):
    """One line of ``qemu-img map --output=json``."""

    start: int
    length: int
    zero: bool


class _Node(msgspec.Struct):
    class Image(msgspec.Struct):
        size: int = msgspec.field(name="virtual-size")

    name: str = msgspec.field(name="node-name")
    image: Image


class _Pieces:
    """Pieces of the node *origin* copied to the same places of *aim*, both open in the process of *monitor*."""

    def __init__(self, core: Core, monitor: Monitor, origin: str, aim: str, speed: int, *, backup: bool) -> None:
        self._core = core
        self._monitor = monitor
        self._origin = origin
        self._aim = aim
        self._speed = speed
        self._backup = backup

    async def sizes(self) -> tuple[int, int]:
        return await _size(self._monitor, self._origin), await _size(self._monitor, self._aim)

    async def copy(self, offset: int, length: int, told: Told) -> None:
        """:raise Unavailable: when it cannot be copied. :raise NoRoom: when the target is full."""
        name = f"{os.getpid()}-{next(_numbers)}"
        job, made = f"cpy-{name}", list[str]()
        self._core.jobs.add(job)
        try:
            size, room = await self.sizes()
            source, target = self._origin, self._aim
            backup = self._backup or length != size
            if length != size:
                source = f"cut-{name}-s"
                await _slice(self._monitor, source, self._origin, offset, length, read_only=True)
                made.append(source)
            if length != room:
                target = f"cut-{name}-t"
                await _slice(self._monitor, target, self._aim, offset, length)
                made.append(target)
            await jobs.run(
                self._monitor,
                "blockdev-backup" if backup else "blockdev-mirror",
                {"job-id": job, "device": source, "target": target, "sync": "full"},
                told=told,
                speed=self._speed or None,
                stay=not backup,
            )
        except Refused as error:
            raise Unavailable(f"the copy cannot be made: {error.reason}") from error
        finally:
            self._core.jobs.discard(job)
            for node in made:
                with suppress(Refused, Unavailable):
                    await asyncio.shield(self._monitor.execute("blockdev-del", {"node-name": node}))


class Copies:
    """Verbs of *core* on stacks, open there or not."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def copy(
        self,
        source: Stack,
        target: Stack,
        told: Told | None = None,
        *,
        extents: list[Extent] | None = None,
        speed: int = 0,
    ) -> int:
        live = source.id in self._core.opened and not self._core.opened[source.id].read_only
        if extents is not None and live:
            raise Unsupported("parts of a volume that is written cannot be copied", hint="copy from a snapshot of it")
        plain = source.key != target.key
        async with self._core.turn(source.id, target.id):
            # Plain text of both has to be in one process: that of the one that is open, if one is.
            open = [self._core.opened[id] for id in (source.id, target.id) if id in self._core.opened]
            doors = self._core.doors_of(open[0]) if open else self._core.doors
            async with self._opened(source, doors, plain=plain, read_only=True) as (monitor, origin):
                async with self._opened(target, doors, plain=plain, read_only=False) as (_, aim):
                    backup = live or target.id in self._core.opened
                    pieces = _Pieces(self._core, monitor, origin, aim, speed, backup=backup)
                    return await self._copy(pieces, told, extents, plain=plain or not source.key)

    async def _copy(self, pieces: "_Pieces", told: Told | None, extents: list[Extent] | None, *, plain: bool) -> int:
        size, room = await pieces.sizes()
        if room < size:
            raise NoRoom(f"the target has {room} bytes, the source {size}", hint="make it larger")
        if extents is None:
            parts = [(0, size)]
        else:
            shift = 0 if plain else OVERHEAD
            # The header belongs to what is copied as it lies.
            parts = [] if plain else [(0, shift)]
            parts += [(extent.offset + shift, extent.length) for extent in extents]
        total, done = sum(length for _, length in parts), 0
        for offset, length in parts:

            def tell(now: int, _: int, before: int = done) -> None:
                if told is not None:
                    told(before + now, total)

            if (here := min(length, size - offset)) > 0:
                await pieces.copy(offset, here, tell)
            done += here
        return total

    # --- what is open for this alone

    @asynccontextmanager
    async def _opened(
        self, stack: Stack, doors: Doors, *, plain: bool, read_only: bool
    ) -> AsyncGenerator[tuple[Monitor, str], None]:
        """The node of *stack*: with *plain* under its limits in *doors*, else in ``disks``."""
        core = self._core
        known = core.opened.get(stack.id)
        if known is not None:
            if not plain:
                yield core.disks.monitor, await core.disks.standing(stack.id)
            else:
                kind = "lks" if known.encrypted else "nbd"
                yield doors.monitor, f"{kind}-{nodes.tag(stack.id)}"
            return
        id = f"{stack.id}#{os.getpid()}-{next(_numbers)}"
        try:
            if not plain and not read_only:
                # A mirror's target is written by nobody else, so it is not served.
                await add_node(core.disks.monitor, id, stack.node, read_only=False)
                yield core.disks.monitor, nodes.layer_name(id, nodes.key_of(stack.node))
                return
            await core.disks.open(id, stack.node, read_only=read_only)
            if not plain:
                yield core.disks.monitor, await core.disks.standing(id)
            else:
                yield doors.monitor, await doors.bare(id, stack.key, read_only=read_only)
        finally:
            await asyncio.shield(self._close(id, doors))

    async def _close(self, id: str, doors: Doors) -> None:
        with suppress(Unavailable):
            if any(nodes.tag(id) in name for name in await node_names(doors.monitor)):
                await drop_nodes(doors.monitor, nodes.tag(id))
        with suppress(Unavailable):
            await self._core.disks.close(id)

    # --- the map

    async def map(self, stack: Stack) -> list[Extent]:
        core = self._core
        async with core.turn(stack.id), self._opened(stack, core.doors, plain=False, read_only=True) as (monitor, node):
            name = (await core.disks.served(node)).removeprefix("nbd-")
            del monitor
            found = await self._map(name)
        shift = OVERHEAD if stack.key else 0
        made: list[Extent] = []
        for part in found:
            begin, end = max(part.start - shift, 0), part.start + part.length - shift
            if end > begin:
                if made and made[-1].zero == part.zero and made[-1].offset + made[-1].length == begin:
                    last = made.pop()
                    begin = last.offset
                made.append(Extent(offset=begin, length=end - begin, zero=part.zero))
        return made

    async def _map(self, name: str) -> list[_Mapped]:
        top = os.open(self._core.places.top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        out, theirs = os.pipe()
        errors, their_errors = os.pipe()
        path = f"{TOP}/{SOCKET}"
        node = {"driver": "nbd", "server": {"type": "unix", "path": path}, "export": name}
        argv = [
            str(binaries.tool("qemu-img")),
            "map",
            "--output=json",
            "json:" + json.dumps({"driver": "raw", "file": node}),
        ]
        try:
            child = spawn(
                argv, environment=environment(self._core.home.mark), files={1: theirs, 2: their_errors, 9: top}
            )
        finally:
            for fd in (top, theirs, their_errors):
                os.close(fd)
        try:
            text, said = await asyncio.gather(read_all(out, 1 << 30), read_all(errors))
            if await child.wait() != 0:
                raise Unavailable(f"the map cannot be read: {said.decode(errors='replace').strip()[-200:]}")
            return msgspec.json.decode(text, type=list[_Mapped])
        finally:
            await child.end()


async def _size(monitor: Monitor, name: str) -> int:
    for node in await monitor.ask(list[_Node], "query-named-block-nodes", {"flat": True}):
        if node.name == name:
            return node.image.size
    raise Unavailable(f"{name} is not open in the storage process")


async def _slice(monitor: Monitor, name: str, of: str, offset: int, length: int, *, read_only: bool = False) -> None:
    await monitor.execute(
        "blockdev-add",
        {
            "driver": "raw",
            "node-name": name,
            "file": of,
            "offset": offset,
            "size": length,
            "read-only": read_only,
            "discard": "unmap",
            "detect-zeroes": "off" if read_only else "unmap",
        },
    )
