"""The storage process as the rest of storage knows it (:class:`lamella.host.storage.blocks.BlockDaemon`).

What is open is written down before it is opened and forgotten after it is closed. When one of the two processes ends unasked, it is
started again and made to be what is written down, with the same ways in; verbs wait for that.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.compute.qemu.places import boot_id
from lamella.host.linux import binaries
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.storage.blocks import Stack, Ways
from lamella.host.storage.process import nodes
from lamella.host.storage.process.disks import Disks
from lamella.host.storage.process.doors import Doors
from lamella.host.storage.process.qsd import GROUP, Qsd
from lamella.host.storage.process.records import Door, Opened, Places
from lamella.model.errors import Invalid, LamellaError, NotFound, Unavailable
from lamella.model.storage import IoLimits

log = logging.getLogger("lamella.host.storage")

Heard = Callable[[str, str, str], None]
Keys = Callable[[str], Awaitable[bytes]]
# Seconds after which starting a process that did not start is tried again.
_AGAIN = 1.0


class QemuStorageDaemon:
    """One a layer. *keys* is asked for a volume's key when it has to be opened again by a daemon that was not given it."""

    def __init__(self, home: Home, keys: Keys | None = None) -> None:
        self.home = home
        self.places = Places(home)
        self.disks = Disks(self.places.top, self._process("disks", ["dac_override"]))
        self.doors = Doors(self.places, self._process("doors", ["sys_admin"]))
        self.opened: dict[str, Opened] = {}
        self._keys = keys
        self._given: dict[str, bytes] = {}
        self._heard: list[Heard] = []
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._starting = asyncio.Lock()
        self._revival: asyncio.Task[None] | None = None
        self._closed = False

    def _process(self, role: str, capabilities: list[str]) -> Qsd:
        return Qsd(self.home, self.home.run / "storage", role, capabilities, lambda: self._gone(role))

    # --- its life

    async def open(self) -> str:
        self._closed = False
        try:
            binaries.tool("qemu-storage-daemon")
            binaries.tool("setpriv")
        except Unavailable as error:
            return str(error)
        await asyncio.to_thread(self.places.prepare)
        self.opened = await asyncio.to_thread(self.places.read_all)
        disks, doors = await self.disks.process.adopt(), await self.doors.process.adopt()
        if self.opened or disks or doors:
            await self._restore()
        return ""

    async def close(self) -> None:
        self._closed = True
        if self._revival is not None:
            self._revival.cancel()
            with suppress(asyncio.CancelledError):
                await self._revival
        await self.doors.process.close()
        await self.disks.process.close()

    async def end(self) -> None:
        """End both processes, everything written out and nothing left; for a layer that is removed, and for tests."""
        for id in list(self.opened):
            await self.remove(id)
        self._closed = True
        await self.doors.process.end()
        await self.disks.end()
        group = Cgroups(ROOT, self.home.mark).group(GROUP)
        await asyncio.to_thread(group.remove)

    def on_event(self, heard: Heard) -> None:
        self._heard.append(heard)

    def tell(self, kind: str, id: str, sentence: str) -> None:
        for heard in self._heard:
            heard(kind, id, sentence)

    # --- when a process is gone

    def _gone(self, role: str) -> None:
        if self._closed or (not self.opened and role):
            return
        self.tell("storage.restarted", "", f"the storage process ({role}) ended; it is started again")
        if self._revival is None or self._revival.done():
            self._revival = asyncio.create_task(self._revive(), name="storage revival")

    async def _revive(self) -> None:
        while True:
            try:
                await self._restore()
                return
            except LamellaError as error:
                log.error("the storage process cannot be brought back yet: %s", error)
                await asyncio.sleep(_AGAIN)

    async def _restore(self) -> None:
        """Start what does not run, and make it be what is written down."""
        async with self._starting:
            await self._start()
            for id in list(self.opened):
                try:
                    await self._settle(id)
                    await self._reopen(self.opened[id])
                except LamellaError as error:
                    if not (self.disks.process.here and self.doors.process.here):
                        raise
                    log.error("volume %s cannot be opened again: %s", id, error)
                    self.tell("volume.error", id, f"volume {id} cannot be opened again: {error}")

    async def _start(self) -> None:
        if not self.disks.process.here:
            await self.disks.start()
        if not self.doors.process.here:
            await self.doors.start()

    async def _settle(self, id: str) -> None:
        """A switch was under way when we or ``disks`` ended: find out what became of it."""
        opened = self.opened[id]
        if opened.entering is None:
            return
        entered = nodes.over(opened.node, opened.entering)
        try:
            done = await self.disks.standing(id) == nodes.layer_name(id, nodes.key_of(entered))
        except LamellaError:
            # Whether it was written to, nobody can tell any more; an empty layer on top changes nothing.
            done = opened.entering.path.exists()
        await self.write(msgspec.structs.replace(opened, node=entered if done else opened.node, entering=None))

    async def _reopen(self, opened: Opened) -> None:
        await self.disks.open(opened.id, opened.node, read_only=opened.read_only)
        await self.doors.open(opened, await self._key(opened))
        for door in opened.doors:
            await self.doors.export(opened, door)

    async def _key(self, opened: Opened) -> bytes:
        if not opened.encrypted or opened.id in self._given:
            return self._given.get(opened.id, b"")
        return await self._keys(opened.id) if self._keys is not None else b""

    # --- for the verbs

    async def ready(self) -> None:
        """Both processes run.

        :raise Unavailable: when they cannot be started.
        """
        async with self._starting:
            await self._start()

    @asynccontextmanager
    async def turn(self, *ids: str) -> AsyncGenerator[None, None]:
        """One verb at a time for each volume."""
        held: list[asyncio.Lock] = []
        try:
            for id in sorted(set(ids)):
                await self._turns[id].acquire()
                held.append(self._turns[id])
            await self.ready()
            yield
        finally:
            for lock in held:
                lock.release()

    def known(self, id: str) -> Opened:
        """:raise NotFound: when it is not open."""
        if id not in self.opened:
            raise NotFound(f"volume {id} is not open in the storage process")
        return self.opened[id]

    async def write(self, opened: Opened) -> None:
        """Note it, durably."""
        await asyncio.to_thread(self.places.write, opened)
        self.opened[opened.id] = opened

    # --- verbs

    async def inventory(self) -> set[str]:
        return set(self.opened)

    async def add(self, stack: Stack) -> None:
        async with self.turn(stack.id):
            if stack.key:
                self._given[stack.id] = stack.key
            opened = self.opened.get(stack.id)
            if opened is None:
                opened = Opened(
                    id=stack.id,
                    boot=boot_id(),
                    node=stack.node,
                    encrypted=bool(stack.key),
                    limits=stack.limits,
                    group=stack.group,
                    read_only=stack.read_only,
                )
                await self.write(opened)
                try:
                    await self._reopen(opened)
                except BaseException:
                    await asyncio.shield(self._abandon(stack.id))
                    raise
            else:
                await self._reopen(opened)

    async def _abandon(self, id: str) -> None:
        with suppress(LamellaError):
            await self.doors.close(id)
        with suppress(LamellaError):
            await self.disks.close(id)
        self.opened.pop(id, None)
        self._given.pop(id, None)
        await asyncio.to_thread(self.places.forget, id)

    async def remove(self, id: str) -> None:
        async with self.turn(id):
            if id not in self.opened:
                return
            await self.doors.close(id)
            await self.disks.close(id)
            del self.opened[id]
            self._given.pop(id, None)
            await asyncio.to_thread(self.places.forget, id)

    async def export(self, id: str, *, socket_owner: int | None = None, writable: bool = True) -> Ways:
        async with self.turn(id):
            opened = self.known(id)
            door = Door(owner=socket_owner, writable=writable)
            if door not in opened.doors:
                if any((other.owner is None) == (socket_owner is None) for other in opened.doors):
                    raise Invalid(f"volume {id} is served otherwise already", hint="close its ways in first")
                opened = msgspec.structs.replace(opened, doors=[*opened.doors, door])
                await self.write(opened)
            await self.doors.export(opened, door)
            if socket_owner is None:
                return Ways(file=self.places.file(id))
            return Ways(socket=self.places.socket(id))

    async def unexport(self, id: str) -> None:
        async with self.turn(id):
            await self.doors.shut(id)
            await self.write(msgspec.structs.replace(self.known(id), doors=[]))

    async def size(self, id: str) -> int:
        self.known(id)
        await self.ready()
        return await self.doors.size(id)

    async def resize(self, id: str, size: int) -> None:
        async with self.turn(id):
            opened = self.known(id)
            if size <= 0 or size % 512:
                raise Invalid(f"a disk cannot have {size} bytes", hint="use a multiple of 512", field="size")
            await self.disks.resize(id, size + (luks_overhead if opened.encrypted else 0), read_only=opened.read_only)
            await self.doors.resized(opened, size)

    async def limit(self, id: str, limits: IoLimits, group: str = "") -> None:
        async with self.turn(id):
            opened = self.known(id)
            moved = opened.group != group
            opened = msgspec.structs.replace(opened, limits=limits, group=group)
            await self.write(opened)
            await self.doors.limit(id, limits, group)
            if moved:
                await self.doors.reopen(opened)

    async def flush(self, ids: list[str]) -> None:
        await self.ready()
        for id in ids:
            await self.doors.reopen(self.known(id))

    async def hold(self, ids: list[str]) -> None:
        """Writers of these open volumes wait: one request of 4 KiB a second passes. Reads wait as well."""
        await self._held(ids, held=True)

    async def release(self, ids: list[str]) -> None:
        await self._held([id for id in ids if id in self.opened], held=False)

    async def _held(self, ids: list[str], *, held: bool) -> None:
        for id in ids:
            async with self.turn(id):
                opened = self.known(id)
                if opened.held != held:
                    opened = msgspec.structs.replace(opened, held=held)
                    await self.write(opened)
                await self.doors.reopen(opened)


# By how many bytes a volume's node is larger than what is seen when it is encrypted: the header that QEMU writes for aes-256-xts.
luks_overhead = 2068480
