"""The storage process as the rest of storage knows it (:class:`lamella.host.storage.blocks.BlockDaemon`)."""

import asyncio
from contextlib import suppress

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.compute.qemu.places import boot_id
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.storage.blocks import OVERHEAD, Counted, Stack, Told, Ways
from lamella.host.storage.driver import Extent, Layer, Node
from lamella.host.storage.process import counting, luks
from lamella.host.storage.process.chains import Chains, Settle
from lamella.host.storage.process.copies import Copies
from lamella.host.storage.process.core import Core, Keys
from lamella.host.storage.process.qsd import GROUP
from lamella.host.storage.process.records import Door, Opened
from lamella.model.errors import Conflict, Invalid, LamellaError, Unavailable
from lamella.model.storage import IoLimits


class QemuStorageDaemon(Core):
    """One a layer. *keys* is asked for a volume's key when it has to be opened again by a daemon that was not given it."""

    luks_overhead = OVERHEAD

    def __init__(self, home: Home, keys: Keys | None = None) -> None:
        super().__init__(home, keys)
        self._chains = Chains(self)
        self._copies = Copies(self)

    async def end(self) -> None:
        """End both processes, everything written out and nothing left; for a layer that is removed, and for tests."""
        for id in list(self.opened):
            await self.remove(id)
        await self.end_processes()
        group = Cgroups(ROOT, self.home.mark).group(GROUP)
        await asyncio.to_thread(group.remove)

    # --- verbs

    async def inventory(self) -> set[str]:
        return set(self.opened)

    async def add(self, stack: Stack) -> None:
        async with self.turn(stack.id):
            if stack.key:
                self.given[stack.id] = stack.key
            opened = self.opened.get(stack.id)
            if opened is None:
                opened = Opened(
                    id=stack.id,
                    boot=boot_id(),
                    node=stack.node,
                    encrypted=bool(stack.key),
                    limits=stack.limits,
                    group="" if stack.machine else stack.group,
                    machine=stack.machine,
                    read_only=stack.read_only,
                )
                await self.write(opened)
                try:
                    self.doors_of(opened)
                    await self.ready()
                    await self.reopen(opened)
                except BaseException:
                    await asyncio.shield(self._abandon(stack.id))
                    raise
            elif opened.parked:
                await self._unpark(opened, stack.node)
            else:
                await self.reopen(opened)

    async def park(self, id: str) -> None:
        async with self.turn(id):
            opened = self.known(id)
            await self.write(msgspec.structs.replace(opened, parked=True))
            await self.disks.close(id)

    async def _unpark(self, opened: Opened, node: Node) -> None:
        # First it is known what it stands on: from then on a process that ends is made to be that again.
        await self.write(msgspec.structs.replace(opened, node=node, parked=False))
        try:
            await self.reopen(self.opened[opened.id])
        except BaseException:
            await asyncio.shield(self.write(msgspec.structs.replace(opened, node=node, parked=True)))
            raise

    async def _abandon(self, id: str) -> None:
        with suppress(LamellaError):
            await self.doors_of(self.known(id)).close(id)
        with suppress(LamellaError):
            await self.disks.close(id)
        await self._forget(id)

    async def _forget(self, id: str) -> None:
        opened = self.opened.pop(id, None)
        self.given.pop(id, None)
        await asyncio.to_thread(self.places.forget, id)
        if opened is not None and opened.machine:
            await self.leave_machine(opened.machine)

    async def remove(self, id: str) -> None:
        async with self.turn(id):
            if id not in self.opened:
                return
            await self.doors_of(self.opened[id]).close(id)
            await self.disks.close(id)
            await self._forget(id)

    async def export(self, id: str, *, socket_owner: int | None = None, writable: bool = True) -> Ways:
        async with self.turn(id):
            opened = self.known(id)
            if (socket_owner is None) == bool(opened.machine):
                raise Invalid(f"volume {id} is open for another way in", hint="close it first")
            door = Door(owner=socket_owner, writable=writable)
            if door not in opened.doors:
                if any((other.owner is None) == (socket_owner is None) for other in opened.doors):
                    raise Invalid(f"volume {id} is served otherwise already", hint="close its ways in first")
                opened = msgspec.structs.replace(opened, doors=[*opened.doors, door])
                await self.write(opened)
            await self.doors_of(opened).export(opened, door)
            if socket_owner is None:
                return Ways(file=self.places.file(id))
            return Ways(socket=self.places.socket(opened.machine))

    async def unexport(self, id: str) -> None:
        async with self.turn(id):
            opened = self.known(id)
            await self.doors_of(opened).shut(id)
            await self.write(msgspec.structs.replace(opened, doors=[]))

    async def size(self, id: str) -> int:
        await self.ready()
        return await self.doors_of(self.known(id)).size(id)

    async def resize(self, id: str, size: int) -> None:
        async with self.turn(id):
            opened = self.known(id)
            if size <= 0 or size % 512:
                raise Invalid(f"a disk cannot have {size} bytes", hint="use a multiple of 512", field="size")
            key = await self.key(opened) if opened.machine else b""
            if opened.machine and opened.encrypted and not key:
                raise Unavailable(
                    f"volume {id} is opened anew when it has grown, and its key is locked away", hint="unlock it first"
                )
            await self.disks.resize(id, size + (OVERHEAD if opened.encrypted else 0), read_only=opened.read_only)
            await self.doors_of(opened).resized(opened, size, key)

    async def limit(self, id: str, limits: IoLimits, group: str = "") -> None:
        async with self.setting(id):
            if group and self.known(id).machine:
                raise Conflict(
                    f"volume {id} is served to its machine alone, where shared limits do not reach",
                    hint="detach it first: with a group it is attached in another way",
                )
            moved = self.known(id).group != group
            opened = await self.change(id, limits=limits, group=group)
            await self.doors_of(opened).limit(id, limits, group)
            if moved:
                await self.doors_of(opened).reopen(opened)

    async def flush(self, ids: list[str]) -> None:
        await self.ready()
        for id in ids:
            opened = self.known(id)
            await self.doors_of(opened).reopen(opened)

    async def hold(self, ids: list[str]) -> None:
        """Writers of these open volumes wait: one request of 4 KiB a second passes. Reads wait as well."""
        for id in ids:
            await self.regroup(id, held=True)

    async def release(self, ids: list[str]) -> None:
        for id in ids:
            if id in self.opened:
                await self.regroup(id, held=False)

    # --- chains, copies, keys

    async def switch(self, layers: dict[str, Layer]) -> float:
        return await self._chains.switch(layers)

    async def merge(self, id: str, upper: Layer, lower: Layer, told: Told | None = None, *, speed: int = 0) -> None:
        await self._chains.merge(id, upper, lower, told, speed=speed)

    async def mirror(
        self,
        id: str,
        target: Stack,
        told: Told | None = None,
        *,
        speed: int = 0,
        same: Settle | None = None,
    ) -> None:
        await self._chains.mirror(id, target, told, speed, same)

    async def follow(self, id: str, target: Stack, told: Told | None = None, *, speed: int = 0) -> None:
        await self._chains.follow(id, target, told, speed)

    async def node(self, id: str) -> Node:
        return self.known(id).node

    async def machine(self, id: str) -> str:
        return self.known(id).machine

    async def counted(self) -> dict[str, Counted]:
        """What went through the file of each open volume since it was opened, or the process started again."""
        found: dict[str, Counted] = {}
        for id in list(self.opened):
            seen = await asyncio.to_thread(counting.read, self.places.thread(id))
            if seen is not None:
                found[id] = seen
        return found

    async def copy(
        self,
        source: Stack,
        target: Stack,
        told: Told | None = None,
        *,
        extents: list[Extent] | None = None,
        speed: int = 0,
    ) -> int:
        return await self._copies.copy(source, target, told, extents=extents, speed=speed)

    async def map(self, stack: Stack) -> list[Extent]:
        return await self._copies.map(stack)

    async def make_luks(self, stack: Stack) -> None:
        await luks.make(self, stack)

    async def rekey(self, stack: Stack, key: bytes) -> None:
        await luks.rekey(self, stack, key)
