"""The process ``doors``, and one more for each machine: over every volume's NBD client a stack of LUKS and limits, and the ways in to it.

The client waits when ``disks`` is gone and sends again what was not answered, so whoever writes sees a pause. Each volume has a thread
of its own (``iothread``): a write to a FUSE export holds up its thread until it is done, and no other volume shall wait for it, nor QMP.

A machine's process serves its volumes to it over NBD. An NBD server shows all that its process serves to whoever connects, so it has the
volumes of one machine only. Its exports are in the main thread: in another one, QEMU 7.2 aborts when a client goes (blockdev-nbd.c,
``nbd_blockdev_client_closed``).
"""

import asyncio
import errno
import os
from contextlib import suppress
from functools import partial

import msgspec

from lamella.host.compute.qemu.monitor import Monitor, Refused
from lamella.host.storage.process import counting, fuse, nodes
from lamella.host.storage.process.disks import (
    SOCKET,
    drop_nodes,
    node_names,
    query_exports,
    remove_exports,
    translated,
)
from lamella.host.storage.process.qsd import TOP, Qsd
from lamella.host.storage.process.records import Door, Opened, Places
from lamella.model.errors import Unavailable
from lamella.model.storage import IoLimits

# Seconds for which a volume's client waits for ``disks``: it is started again at once, so this is for ever.
_RECONNECT = 7 * 24 * 3600
_TRIES = 50
# What is held passes one request of 4 KiB a second.
_HELD = {"iops-total": 1, "iops-size": 4096}
# What a job that does not catch up leaves to whoever outruns it, one after the other: requests of 64 KiB a second.
PRESSES = (100, 10, 1)


class _Image(msgspec.Struct):
    size: int = msgspec.field(name="virtual-size")


class _Node(msgspec.Struct):
    name: str = msgspec.field(name="node-name")
    image: _Image


class Doors:
    """Verbs of one process. They raise :class:`Unavailable` while it does not run. *machine* is whose it is, if it is one machine's."""

    def __init__(self, places: Places, process: Qsd, machine: str = "") -> None:
        self._places = places
        self.process = process
        self._machine = machine
        # One is made at a time, so that it is known which one it is.
        self._threads = asyncio.Lock()

    @property
    def monitor(self) -> Monitor:
        return self.process.monitor

    async def start(self) -> None:
        await self.process.start()

    # --- stacks

    async def open(self, opened: Opened, key: bytes) -> None:
        """Build the stack; what is there already stays. ``disks`` serves the volume by now.

        :raise Unavailable: when it cannot be built, or the key does not open it.
        """
        mark = nodes.tag(opened.id)
        there = await node_names(self.monitor)
        if not self._machine:
            await self._start_thread(opened.id)
        await self._make({"qom-type": "throttle-group", "id": f"hld-{mark}", "limits": _HELD})
        try:
            below = f"nbd-{mark}"
            if below not in there:
                await self.monitor.execute("blockdev-add", self._client(mark, below, read_only=opened.read_only))
            if opened.encrypted:
                if f"lks-{mark}" not in there:
                    await self._unlock(mark, below, key, read_only=opened.read_only)
                below = f"lks-{mark}"
            if f"top-{mark}" not in there:
                await self.limit(opened.id, opened.limits, opened.group)
                await self._press(opened)
                await self.monitor.execute("blockdev-add", _top(mark, below, _group(opened), opened))
        except Refused as error:
            await self.close(opened.id)
            raise translated(error, opened.id) from error

    def _client(self, mark: str, name: str, *, read_only: bool) -> dict[str, object]:
        return {
            "driver": "nbd",
            "node-name": name,
            "server": {"type": "unix", "path": f"{TOP}/{SOCKET}"},
            "export": mark,
            "reconnect-delay": _RECONNECT,
            "open-timeout": 10,
            "read-only": read_only,
            "auto-read-only": False,
            "discard": "unmap",
        }

    async def _unlock(self, mark: str, below: str, key: bytes, *, read_only: bool) -> None:
        secret = f"key-{mark}"
        await self._make(nodes.secret(secret, key))
        try:
            await self.monitor.execute(
                "blockdev-add",
                {
                    "driver": "luks",
                    "node-name": f"lks-{mark}",
                    "key-secret": secret,
                    "file": below,
                    "read-only": read_only,
                    "auto-read-only": False,
                    "discard": "unmap",
                },
            )
        finally:
            await self._unmake(secret)

    async def bare(self, id: str, key: bytes, *, read_only: bool) -> str:
        """The name of a node with the plain text of what ``disks`` serves as *id*, without limits or ways in."""
        mark = nodes.tag(id)
        await self.monitor.execute("blockdev-add", self._client(mark, f"nbd-{mark}", read_only=read_only))
        if not key:
            return f"nbd-{mark}"
        try:
            await self._unlock(mark, f"nbd-{mark}", key, read_only=read_only)
        except Refused as error:
            raise translated(error, id) from error
        return f"lks-{mark}"

    async def close(self, id: str) -> None:
        """Close all ways in and the stack, everything written out."""
        mark = nodes.tag(id)
        await self.shut(id)
        await drop_nodes(self.monitor, mark)
        for kind in ("iot", "hld", "prs", "grp", "key"):
            await self._unmake(f"{kind}-{mark}")

    # --- limits

    async def limit(self, id: str, limits: IoLimits, group: str) -> None:
        """Set the limits of its group; :meth:`reopen` lets it go over to another."""
        await self._set_group(group_name(id, group), throttle(limits))

    async def _press(self, opened: Opened) -> None:
        if opened.pressed:
            await self._set_group(f"prs-{nodes.tag(opened.id)}", pressed(opened))

    async def _set_group(self, name: str, limits: dict[str, int]) -> None:
        if not await self._make({"qom-type": "throttle-group", "id": name, "limits": limits}):
            await self.monitor.execute("qom-set", {"path": f"/objects/{name}", "property": "limits", "value": limits})

    async def reopen(self, opened: Opened) -> None:
        """Put the volume into the group that it belongs to now. All that is under way is done first, and written out."""
        mark = nodes.tag(opened.id)
        await self._press(opened)
        below = f"lks-{mark}" if opened.encrypted else f"nbd-{mark}"
        await self.monitor.execute("blockdev-reopen", {"options": [_top(mark, below, _group(opened), opened)]})

    # --- ways in

    async def export(self, opened: Opened, door: Door) -> None:
        """Open a way in; one that is there stays."""
        mark = nodes.tag(opened.id)
        there = await query_exports(self.monitor)
        try:
            if door.owner is None:
                await self._export_file(opened, door, f"fus-{mark}" in there)
            elif f"srv-{mark}" not in there:
                await self._export_socket(opened, door.owner, writable=door.writable)
        except Refused as error:
            raise Unavailable(f"volume {opened.id} cannot be served: {error.reason}") from error

    async def _export_file(self, opened: Opened, door: Door, there: bool) -> None:
        mark, file = nodes.tag(opened.id), self._places.file(opened.id)
        if there and await asyncio.to_thread(fuse.mounted, file):
            return
        await remove_exports(self.monitor, {f"fus-{mark}"})
        await asyncio.to_thread(fuse.prepare, file)
        await self.monitor.execute(
            "block-export-add",
            {
                "type": "fuse",
                "id": f"fus-{mark}",
                "node-name": await self._seen_as(opened, mark),
                "mountpoint": str(file),
                "writable": door.writable and not opened.read_only,
                "growable": False,
                # So that it can be given to the user of a locked-up converter; only root reaches the directory, and the mode is 0600.
                "allow-other": "on",
                "iothread": f"iot-{mark}",
                # Else the node goes back to the main thread as soon as anything lets go of it, and its handler stays here.
                "fixed-iothread": True,
            },
        )
        try:
            await asyncio.to_thread(fuse.make_safe, file)
        except Unavailable:
            await remove_exports(self.monitor, {f"fus-{mark}"})
            raise

    async def _seen_as(self, opened: Opened, mark: str) -> str:
        """The node of a file: one that refuses discards, unless the volume is plain, raw, and no file that may get a layer above it.

        QEMU 7.2 makes a discard of a hole that is punched into the file, and says that it is done: through LUKS nothing is, and in a
        qcow2 only what fills its clusters, so what has to be zeros would be what was there before, or noise. Whoever is refused with this
        error writes zeros instead (file-posix.c, ``translate_err``; blkdev_issue_zeroout of Linux).
        """
        if not opened.encrypted and nodes.stays_raw(opened.node):
            return f"top-{mark}"
        name = f"hol-{mark}"
        if name not in await node_names(self.monitor):
            refusal = {"event": "none", "iotype": "discard", "errno": errno.ENODEV, "immediately": True}
            await self.monitor.execute(
                "blockdev-add",
                {
                    "driver": "blkdebug",
                    "node-name": name,
                    "image": f"top-{mark}",
                    "discard": "unmap",
                    "inject-error": [refusal],
                },
            )
        return name

    async def _export_socket(self, opened: Opened, owner: int, *, writable: bool) -> None:
        mark, socket = nodes.tag(opened.id), self._places.socket(opened.machine)
        await self._listen()
        await self.monitor.execute(
            "block-export-add",
            {
                "type": "nbd",
                "id": f"srv-{mark}",
                "node-name": f"top-{mark}",
                "name": opened.id,
                "writable": writable and not opened.read_only,
            },
        )
        os.chmod(socket, 0o600)  # noqa: PTH101
        os.chown(socket, owner, owner)

    async def _listen(self) -> None:
        """Have the machine's server; it may have been started without one, by a daemon that was killed just then."""
        socket = self._places.socket(self._machine)
        socket.parent.mkdir(mode=0o711, exist_ok=True)
        address = {"type": "unix", "data": {"path": f"{TOP}/{socket.relative_to(self._places.top)}"}}
        try:
            await self.monitor.execute("nbd-server-start", {"addr": address, "max-connections": 0})
        except Refused as error:
            if "already running" not in error.reason:
                raise

    async def shut(self, id: str) -> None:
        """Close all ways in."""
        mark = nodes.tag(id)
        await remove_exports(self.monitor, {f"fus-{mark}", f"srv-{mark}"})
        if not self._machine:
            await asyncio.to_thread(_clear_file, self._places, id)

    async def size(self, id: str) -> int:
        """:raise Unavailable: when it is not open."""
        name = f"top-{nodes.tag(id)}"
        for node in await self.monitor.ask(list[_Node], "query-named-block-nodes", {"flat": True}):
            if node.name == name:
                return node.image.size
        raise Unavailable(f"volume {id} is not open")

    async def _start_thread(self, id: str) -> None:
        """One that is there stays; a new one is written down for :mod:`.counting`."""
        mark, place = nodes.tag(id), self._places.thread(id)
        async with self._threads:
            process = self.process.pid
            make = partial(self._make, {"qom-type": "iothread", "id": f"iot-{mark}"})
            served = await counting.born(process, make) if process else None
            if served is not None:
                await asyncio.to_thread(counting.write, place, served)

    async def resized(self, opened: Opened, size: int, key: bytes) -> None:
        """``disks`` made it *size* bytes (what is seen on top): see that too, on every way in. What a machine is served over NBD is opened
        anew, while it waits: that is when sizes are learnt."""
        mark = nodes.tag(opened.id)
        if self._machine:
            await self.close(opened.id)
            await self.open(opened, key)
            for door in opened.doors:
                await self.export(opened, door)
            return
        shown = f"fus-{mark}" in await query_exports(self.monitor)
        file = self._places.file(opened.id)
        if not shown:
            await self._export_file(opened, Door(), there=False)
        # A filter that is made larger makes what it stands on larger.
        seen = (await query_exports(self.monitor))[f"fus-{mark}"].node
        try:
            for left in reversed(range(_TRIES)):
                # A request that has to go down: a client that was cut off connects again for it, and learns the size.
                await asyncio.to_thread(fuse.touch, file)
                try:
                    await self.monitor.execute("block_resize", {"node-name": seen, "size": size})
                    break
                except Refused as error:
                    if not left:
                        raise Unavailable(f"the users of volume {opened.id} do not see its size: {error}") from error
                await asyncio.sleep(0.02)
        finally:
            if not shown:
                await remove_exports(self.monitor, {f"fus-{mark}"})
                await asyncio.to_thread(_clear_file, self._places, opened.id)

    # --- objects

    async def _make(self, options: dict[str, object]) -> bool:
        """``False`` when there is one already."""
        try:
            await self.monitor.execute("object-add", options)
        except Refused as error:
            if "duplicate" in error.reason:
                return False
            raise
        return True

    async def _unmake(self, id: str) -> None:
        with suppress(Refused):
            await self.monitor.execute("object-del", {"id": id})


def _clear_file(places: Places, id: str) -> None:
    fuse.release(places.file(id))
    places.file(id).unlink(missing_ok=True)


def group_name(id: str, group: str) -> str:
    """The object that holds the limits: a volume's own, or one that is shared."""
    return f"shr-{nodes.digest(group, 16)}" if group else f"grp-{nodes.tag(id)}"


def _group(opened: Opened) -> str:
    if opened.held or opened.pressed:
        return f"{'hld' if opened.held else 'prs'}-{nodes.tag(opened.id)}"
    return group_name(opened.id, opened.group)


def pressed(opened: Opened) -> dict[str, int]:
    """What is left of its limits while a job catches up."""
    allowed = PRESSES[opened.pressed - 1]
    limits = IoLimits(iops=min(allowed, opened.limits.iops or allowed), bandwidth=opened.limits.bandwidth)
    return throttle(limits) | {"iops-size": 64 << 10}


def _top(mark: str, below: str, group: str, opened: Opened) -> dict[str, object]:
    return {
        "driver": "throttle",
        "node-name": f"top-{mark}",
        "throttle-group": group,
        "file": below,
        "read-only": opened.read_only,
        "auto-read-only": False,
        "discard": "unmap",
    }


def throttle(limits: IoLimits) -> dict[str, int]:
    """*limits* as a throttle-group has them (qapi/block-core.json, ThrottleLimits)."""
    made: dict[str, int] = {}
    for name, rate, burst in (
        ("iops-total", limits.iops, limits.iops_burst),
        ("bps-total", limits.bandwidth, limits.bandwidth_burst),
    ):
        made[name] = rate or 0
        made[f"{name}-max"] = burst if rate and burst and burst > rate else 0
        made[f"{name}-max-length"] = limits.burst_seconds if made[f"{name}-max"] else 1
    return made
