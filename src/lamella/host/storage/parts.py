"""What every kind of storage work is given: the pools, the storage process, the keys, and what is open."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.linux.blocking import blocking
from lamella.host.storage.blocks import BlockDaemon
from lamella.host.storage.opened import OpenTable
from lamella.host.storage.pools import Pools
from lamella.host.storage.records import Records
from lamella.host.storage.requests import Requests
from lamella.host.storage.stacks import Stacks
from lamella.host.storage.stalls import Stalls
from lamella.host.storage.wing import Heard, Writers
from lamella.model.errors import Conflict, Internal, LamellaError
from lamella.model.instance import Phase
from lamella.model.storage import Volume, VolumeForm

# In these nothing of an instance has a disk open.
AT_REST = frozenset({Phase.PENDING, Phase.STOPPED, Phase.FAILED, Phase.SUSPENDED})


class Locks:
    """One thing at a time for each volume."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, volume_ids: Iterable[str]) -> AsyncGenerator[None]:
        """Hold the locks of all these, taken in one order, so that no two wait for each other."""
        taken: list[str] = []
        try:
            for id in sorted(set(volume_ids)):
                lock, count = self._held.get(id, (asyncio.Lock(), 0))
                self._held[id] = (lock, count + 1)
                try:
                    await lock.acquire()
                except BaseException:
                    self._leave(id)
                    raise
                taken.append(id)
            yield
        finally:
            for id in reversed(taken):
                self._held[id][0].release()
                self._leave(id)

    def held(self, id: str) -> bool:
        """Whether somebody has it, or waits for it."""
        return id in self._held

    def _leave(self, id: str) -> None:
        lock, count = self._held[id]
        if count == 1:
            del self._held[id]
        else:
            self._held[id] = (lock, count - 1)


@dataclass
class Parts:
    """``Volumes.parts``. Work on one volume holds ``locks.of([id])``; ``tell`` is what the person should hear."""

    home: Home
    pools: Pools
    daemon: BlockDaemon
    stacks: Stacks
    records: Records
    opened: OpenTable
    requests: Requests
    locks: Locks = field(default_factory=Locks)
    writers: Writers | None = None
    heard: Heard | None = None
    # What is being closed: nobody holds it up.
    closing: set[str] = field(default_factory=set[str])
    # How many read a closed volume as it lies, by its id.
    readers: Counter[str] = field(default_factory=Counter[str])
    # Asked before a volume is opened for an instance; they raise Conflict when it may not be.
    may_open: list[Callable[[Volume], None]] = field(default_factory=list[Callable[[Volume], None]])
    # Asked for the snapshots of a volume (an id) that this host keeps for itself, and no row names.
    kept: list[Callable[[str], Iterable[str]]] = field(default_factory=list[Callable[[str], Iterable[str]]])
    # Asked for what a former daemon opened in the storage process that stands in no table, and is to stay.
    shown: list[Callable[[], Iterable[str]]] = field(default_factory=list[Callable[[], Iterable[str]]])
    stalls: Stalls = field(init=False)

    def __post_init__(self) -> None:
        self.stalls = Stalls(self.pools, self.tell)
        self.requests.bind(self.stalls.answer)

    async def add(self, volume: Volume, *, passphrase: str = "", machine: str = "") -> None:
        """Open a block volume in the storage process, for *machine* alone if one is named; the same again is fine. One whose key was being
        changed when a daemon ended opens with either key."""
        stack = msgspec.structs.replace(await self.stacks.of(volume, passphrase=passphrase), machine=machine)
        try:
            await self.daemon.add(stack)
        except LamellaError:
            made = self.stacks.made(volume.id)
            if not made.next_key:
                raise
            key = await self.stacks.keys.unwrap(volume.id, made.next_key, passphrase)
            await self.daemon.add(msgspec.structs.replace(stack, key=key))
            made.key, made.next_key = made.next_key, ""
            await blocking(self.records.made.write, volume.id, made)

    async def paired(self, id: str) -> bool:
        """Whether the volume is open, and everything that is written to it is written to a replica as well."""
        return id in await self.daemon.inventory() and (await self.daemon.node(id))["driver"] == "quorum"

    @asynccontextmanager
    async def still(self, volume: Volume) -> AsyncGenerator[None]:
        """The files of an open volume are closed for as long as the context lasts, and its writers wait; then it goes on, as it lies in
        its pool by then."""
        try:
            await self.daemon.park(volume.id)
            yield
        finally:
            await asyncio.shield(self.add(volume))

    @asynccontextmanager
    async def disk(self, volume: Volume, *, passphrase: str = "") -> AsyncGenerator[Path]:
        """The file of a block volume that nobody has open, for as long as the context lasts.

        :raise Conflict: when nobody may open it: it is a replica, or half restored.
        """
        for check in self.may_open:
            await blocking(check, volume)
        await self.add(volume, passphrase=passphrase)
        try:
            ways = await self.daemon.export(volume.id)
            if ways.file is None:
                raise Internal(f"the storage process gives no file for volume {volume.id}")
            yield ways.file
        finally:
            await asyncio.shield(self.daemon.remove(volume.id))

    async def runs(self, volume: Volume) -> str:
        """The id of the instance that has its own block volume open itself, now; empty when none does."""
        owner = volume.spec.owner
        if owner is None or self.writers is None or volume.spec.form is not VolumeForm.BLOCK:
            return ""
        return "" if await self.writers.phase(owner) in AT_REST else owner

    async def require_closed(self, volume: Volume, to: str) -> None:
        """:raise Conflict: when somebody has it open, or reads it; *to* is what cannot be done then."""
        self.require_unread(volume, to)
        await self.require_unwritten(volume, to)

    def require_unread(self, volume: Volume, to: str) -> None:
        """:raise Conflict: when it is read as it lies."""
        if self.readers[volume.id]:
            raise Conflict(
                f"volume {volume.name} cannot be {to}: it is being exported",
                hint="wait until that is done, or end it; snapshots are exported beside everything else",
            )

    async def require_unwritten(self, volume: Volume, to: str) -> None:
        """:raise Conflict: when somebody has it open."""
        self.opened.require_closed(volume, to)
        if await self.runs(volume):
            raise Conflict(
                f"volume {volume.name} cannot be {to} while its instance runs", hint="stop the instance first"
            )

    async def size(self, volume: Volume) -> int:
        """Bytes, for whoever uses it."""
        if volume.spec.form is VolumeForm.BLOCK and volume.id in self.opened:
            return await self.daemon.size(volume.id)
        handle = await self.pools.get(volume.spec.pool).handle(volume.id)
        return max(0, handle.size - self.stacks.overhead(volume))

    def tell(self, event: str, subject: str, message: str) -> None:
        if self.heard is not None:
            self.heard(event, subject, message)
