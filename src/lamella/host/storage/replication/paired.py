"""Synchronous replication of one volume: every write in two places before it is acknowledged, or written down that it was not.

What is written down, in this order:
 1. ``degraded_since`` is on the disk, and only then the sink answers in place of the replica;
 2. the replica answers again and gets every new write, then everything is copied to it, then it has synced, and only then
    ``degraded_since`` is cleared.
So whoever reads the journal after a crash at any line knows whether the replica may lack something that was acknowledged.

A pair that begins is one that is degraded: a source that is open gets the socket beside it, the sink behind that, in a moment in which its
files are closed and its writers wait (:meth:`Parts.still`); the rest is what brings any replica forward.
"""

import asyncio
import logging
from contextlib import suppress

from lamella.host.linux.blocking import blocking
from lamella.host.storage.blocks import Stack
from lamella.host.storage.driver import Node
from lamella.host.storage.parts import Parts
from lamella.host.storage.process import nodes
from lamella.host.storage.replication.journal import Journal, Journals
from lamella.host.storage.replication.server import Server, both, client, sink
from lamella.model.errors import Conflict, LamellaError, Unavailable
from lamella.model.resource import now
from lamella.model.storage import VolumeForm

log = logging.getLogger("lamella.host.storage")

REPLICA, SINK = "replica", "sink"
# Seconds: between two tries to have a lost replica back, and for how long a writer is kept waiting for one that died.
_AGAIN = 5.0
_WAIT = 5.0
# A replica's pool with less room than this is given up in time: a write that it refuses would fail in the guest.
_ROOM = 64 << 20


class Pair:
    """One synchronous replication; ``journal`` is what is on the disk."""

    def __init__(self, parts: Parts, journals: Journals, journal: Journal, server: Server) -> None:
        self._parts = parts
        self._journals = journals
        self.journal = journal
        self.server = server
        self.failing = ""
        self.hint = ""
        self.resyncing = False
        self._left = False
        self._turn = asyncio.Lock()

    @property
    def id(self) -> str:
        return self.journal.replication.id

    @property
    def _open(self) -> bool:
        return self.journal.source.id in self._parts.opened

    # --- made, while nobody has the source open

    async def seed(self) -> None:
        """The target becomes what the source is, unless somebody opened that by now. What it was is written over, and only once the
        source is known to be read: without that it is all there is."""
        journal, parts = self.journal, self._parts
        async with parts.locks.of([journal.source.id, journal.target.id]):
            if self._open or (journal.degraded_since is None and journal.seeded):
                return
            await parts.daemon.map(await self._plain())
            if journal.target.id in await parts.pools.get(journal.target.spec.pool).inventory():
                await self.level()
            else:
                await self._make()
            # From here on it is neither what it was nor what it is to be.
            journal.seeded = False
            await self._write()
            await parts.daemon.copy(await self._plain(), await self._goal())
            journal.seeded, journal.degraded_since, journal.degraded_why = True, None, ""
            await self._write()

    async def _make(self) -> None:
        """The target, empty, as large as the source."""
        target = self.journal.target
        await self._parts.pools.get(target.spec.pool).create(target.id, VolumeForm.BLOCK, await self._size())
        self.journal.made = True
        await self._write()

    # --- begun and ended, while somebody has it open

    async def _begin(self) -> None:
        """The open source has the socket beside it from now on.

        :raise Conflict: when it lets its pool have room back, which a quorum does not.
        """
        source, parts = self.journal.source, self._parts
        async with parts.locks.of([source.id]):
            if not self._open or await parts.paired(source.id):
                return
            if not parts.stacks.encrypted(source) and nodes.stays_raw(await parts.daemon.node(source.id)):
                raise Conflict(
                    f"{source.name} gives room back to its pool while it is open: it is paired when it is closed",
                    hint="stop the instance, or detach the volume, for a moment",
                )
            await self._degrade("its replica is being made whole")
            async with parts.still(source):
                pass

    async def leave(self) -> None:
        """The source goes on by itself, open or not, and nobody answers any more."""
        source, parts = self.journal.source, self._parts
        async with parts.locks.of([source.id]):
            self._left = True
            try:
                if await parts.paired(source.id):
                    async with parts.still(source):
                        pass
            except BaseException:
                self._left = False
                raise
        await self.stop()

    async def level(self) -> None:
        """The target is as large as the source is now, or was when it was open last."""
        target = self.journal.target
        pool = self._parts.pools.get(target.spec.pool)
        size = self.journal.size
        with suppress(LamellaError):
            size = await self._size()
        if size and (await pool.handle(target.id)).size != size:
            await pool.resize(target.id, size)

    # --- opened

    async def over(self, node: Node) -> Node:
        """What the storage process opens instead of the source's own *node*; the socket is answered when this returns."""
        journal = self.journal
        if self._left or journal.promoted_at is not None:
            return node
        async with self._turn:
            size = await self._size()
            if journal.size != size:
                await self.server.stop()
                journal.size = size
                await self._write()
            if not self.server.alive:
                await self._answer()
        return both(node, self.server.path, size)

    async def _answer(self) -> None:
        if self.journal.degraded_since is None and not self.journal.replication.spec.paused:
            try:
                await self._serve_replica()
                return
            except LamellaError as error:
                await self._degrade(error.message)
        elif self.journal.degraded_since is None:
            await self._degrade("it is paused")
        await self.server.serve(sink(await self._size()), SINK)

    async def _degrade(self, why: str) -> None:
        journal = self.journal
        if journal.degraded_since is None:
            journal.degraded_since, journal.degraded_why = now(), why
            await self._write()
            log.warning("replication %s is degraded: %s", journal.replication.name, why)
            self._parts.tell(
                "replication.degraded",
                journal.source.id,
                f"{journal.source.name} is written without its replica: {why}",
            )

    async def _serve_replica(self) -> None:
        pool = self._parts.pools.get(self.journal.target.spec.pool)
        status = await pool.status()
        if status.free < _ROOM:
            raise Unavailable(f"pool {self.journal.target.spec.pool} is full", hint="lamella pool ls")
        if (await pool.handle(self.journal.target.id)).size < await self._size():
            await self.server.stop()
            await self.level()
        await self.server.serve(await pool.node(self.journal.target.id), REPLICA)

    # --- watched

    async def run(self) -> None:
        """Until cancelled: whoever answers is answered for; what is behind is brought forward."""
        while True:
            try:
                await self._look()
                self.failing = self.hint = ""
            except LamellaError as error:
                if self.failing != error.message:
                    log.warning("replication %s: %s", self.journal.replication.name, error)
                self.failing, self.hint = error.message, error.hint
            except Exception as error:
                log.exception("replication %s", self.journal.replication.name)
                self.failing, self.hint = f"{type(error).__name__}: {error}", "the host's log says more"
            with suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN):
                    if self.server.alive:
                        await self.server.ended()
                    else:
                        await asyncio.sleep(_AGAIN)

    async def _look(self) -> None:
        journal = self.journal
        if journal.promoted_at is not None:
            return
        if self._open:
            await self._begin()
        if not self._open:
            async with self._parts.locks.of([journal.source.id]), self._turn:
                if not self._open and self.server.role:
                    await self.server.stop()
            if journal.degraded_since is not None and not journal.replication.spec.paused:
                await self.seed()
            if not self._open:
                return
        revived = False
        async with self._turn:
            if not self.server.alive:
                await self._revive()
                revived = True
            elif self.server.role == REPLICA and (why := await self._must_end()):
                await self._alone(why)
        if revived:
            # A storage process that died as well could not be brought back while nobody answered here.
            await self._parts.daemon.add(await self._parts.stacks.of(journal.source))
        if journal.degraded_since is not None and not journal.replication.spec.paused:
            await self._resync()

    async def _revive(self) -> None:
        """Somebody died. A replica that comes back in time has lost nothing; its writer only waited."""
        if self.journal.degraded_since is not None:
            await self.server.serve(sink(await self._size()), SINK)
            return
        why = ""
        with suppress(TimeoutError):
            async with asyncio.timeout(_WAIT):
                while True:
                    try:
                        await self._serve_replica()
                        return
                    except LamellaError as error:
                        why = error.message
                    await asyncio.sleep(0.25)
        await self._alone(why or "the replica does not come back")

    async def _must_end(self) -> str:
        """Why the replica cannot go on; empty when it can."""
        pool = self.journal.target.spec.pool
        if self.journal.replication.spec.paused:
            return "it is paused"
        with suppress(LamellaError):
            if (await self._parts.pools.get(pool).status()).free < _ROOM:
                return f"pool {pool} is full"
        return ""

    async def _alone(self, why: str) -> None:
        await self._degrade(why)
        await self.server.serve(sink(await self._size()), SINK)

    async def _resync(self) -> None:
        """Both get every write while everything is copied; then they are the same."""
        journal = self.journal
        async with self._turn:
            if not journal.made:
                await self._make()
            await self._serve_replica()
        self.resyncing = True
        try:
            target = Stack(id=f"{journal.target.id}+resync", node=client(self.server.path, await self._size()))
            await self._parts.daemon.follow(journal.source.id, target)
            async with self._turn:
                if not self.server.alive or self.server.role != REPLICA:
                    raise Unavailable("the replica was lost again", hint="it is tried again")
                journal.seeded, journal.degraded_since, journal.degraded_why = True, None, ""
                await self._write()
            self._parts.tell(
                "replication.current", journal.source.id, f"{journal.source.name} and its replica are the same again"
            )
        except LamellaError as error:
            async with self._turn:
                await self._alone(error.message)
            raise
        finally:
            self.resyncing = False

    # --- let go

    async def stop(self) -> None:
        async with self._turn:
            await self.server.stop()

    async def _size(self) -> int:
        return (await self._parts.pools.get(self.journal.source.spec.pool).handle(self.journal.source.id)).size

    async def _plain(self) -> Stack:
        node = await self._parts.pools.get(self.journal.source.spec.pool).node(self.journal.source.id)
        return Stack(id=self.journal.source.id, node=node)

    async def _goal(self) -> Stack:
        node = await self._parts.pools.get(self.journal.target.spec.pool).node(self.journal.target.id)
        return Stack(id=self.journal.target.id, node=node)

    async def _write(self) -> None:
        await blocking(self._journals.of.write, self.id, self.journal)
