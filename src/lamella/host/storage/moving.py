"""Volumes from one pool to another, open or not, whatever their drivers.

What is written down says at every instant which side is the truth, and the other one is removed after a crash:
 1. ``copying`` is on the disk before the new side is made: the old one is the truth;
 2. of an open volume everything is copied, and again what is written meanwhile, until both are the same, while writers wait;
 3. ``moved`` is on the disk: the new side is the truth; then the storage process goes over to it;
 4. the old side is removed, then the note.
"""

import asyncio
import logging

import msgspec

from lamella.host.linux.blocking import blocking
from lamella.host.storage.blocks import Stack
from lamella.host.storage.creating import Creating
from lamella.host.storage.driver import Node, StorageDriver
from lamella.host.storage.parts import Parts
from lamella.host.storage.records import Folder
from lamella.host.storage.requests import Tell
from lamella.model.errors import Conflict, LamellaError, NotFound, Unsupported
from lamella.model.storage import Feature, Volume, VolumeForm, VolumeStatus
from lamella.model.storage_requests import MoveVolume

log = logging.getLogger("lamella.host.storage")


class Move(msgspec.Struct, kw_only=True):
    """From the pool ``source`` to ``target``. ``moved`` says that the target is the truth."""

    volume: Volume
    source: str
    target: str
    moved: bool = False


class Moving:
    """Answers MoveVolume, and ends at the start what a crash has left."""

    def __init__(self, parts: Parts, creating: Creating) -> None:
        self._parts = parts
        self._creating = creating
        self._notes = Folder(parts.home.state / "storage" / "moves")
        parts.requests.serve(MoveVolume, self.move)

    async def move(self, request: MoveVolume, tell: Tell) -> VolumeStatus:
        """:class:`MoveVolume`.

        :raise Conflict: when it has snapshots, or is open and an instance's own. :raise NoRoom: when the other pool is full.
        """
        volume, parts = request.volume, self._parts
        if volume.spec.form is not VolumeForm.BLOCK:
            raise Unsupported(
                f"volume {volume.name} is a directory", hint="make another one there and copy the files with lamella cp"
            )
        async with parts.locks.of([volume.id]):
            note = await blocking(self._notes.read, volume.id, Move)
            if note is not None:
                await self._settle(note)
            source = parts.pools.get(volume.spec.pool)
            target = parts.pools.get(request.pool.name)
            here = source is not target and volume.id in await source.inventory()
            if not here and volume.id in await target.inventory():
                # It is there: whoever asks again did not hear of it.
                return await self._status(volume, request.pool.name)
            await self._check(volume, source)
            note = Move(volume=volume, source=volume.spec.pool, target=request.pool.name)
            await blocking(self._notes.write, volume.id, note)
            try:
                await self._carry(note, source, target, tell, request.speed)
            except LamellaError as error:
                await self._end(note)
                if not note.moved:
                    raise
                log.warning("volume %s was moved, although: %s", volume.id, error)
            except BaseException:
                await asyncio.shield(self._end(note))
                raise
            else:
                await self._end(note)
            return await self._status(volume, request.pool.name)

    async def _check(self, volume: Volume, source: StorageDriver) -> None:
        kept = await source.snapshots(volume.id) if Feature.SNAPSHOT in source.features else []
        if kept or self._parts.stacks.made(volume.id).copies:
            raise Conflict(
                f"volume {volume.name} has snapshots, which do not move", hint="lamella snapshot ls; remove them first"
            )
        self._parts.require_unread(volume, "moved")
        if await self._parts.runs(volume):
            raise Conflict(
                f"volume {volume.name} is its running instance's own disk", hint="stop the instance, then move it"
            )

    async def _carry(self, note: Move, source: StorageDriver, target: StorageDriver, tell: Tell, speed: int) -> None:
        volume, daemon = note.volume, self._parts.daemon
        if volume.id in await target.inventory():
            await target.delete(volume.id)
        await target.create(volume.id, VolumeForm.BLOCK, (await source.handle(volume.id)).size)

        def told(done: int, total: int) -> None:
            tell("copy", done, total, "bytes")

        async def same() -> None:
            await self._decide(note)

        node = await target.node(volume.id)
        if volume.id in self._parts.opened:
            key = await self._parts.stacks.key(volume)
            await daemon.mirror(volume.id, Stack(id=volume.id, node=node, key=key), told, speed=speed, same=same)
        else:
            origin = Stack(id=volume.id, node=await source.node(volume.id), read_only=True)
            await daemon.copy(origin, Stack(id=f"{volume.id}+new", node=node), told, speed=speed)
            await self._decide(note)

    async def _decide(self, note: Move) -> None:
        """From here on the other side is the truth."""
        await blocking(self._notes.write, note.volume.id, msgspec.structs.replace(note, moved=True))
        note.moved = True

    async def _settle(self, note: Move) -> None:
        """End it, one way or the other: of the two sides the one that is not the truth goes."""
        await self._look(note)
        await self._clear(note)

    async def _end(self, note: Move) -> None:
        """:meth:`_settle` at once, and not only after the next start. What cannot go yet does not change what became of it."""
        await self._look(note)
        try:
            await self._clear(note)
        except LamellaError as error:
            log.warning("volume %s: what is left of its move goes later: %s", note.volume.id, error)

    async def _look(self, note: Move) -> None:
        """Which side is the truth is on the disk, and nothing is believed that can be looked at."""
        note.moved = await self._moved(note)
        await blocking(self._notes.write, note.volume.id, note)

    async def _clear(self, note: Move) -> None:
        await (self._finish(note) if note.moved else self._undo(note))

    async def _moved(self, note: Move) -> bool:
        """Whoever has it open knows: both sides were the same when it was written down, and what is written since is on one of them."""
        id, daemon = note.volume.id, self._parts.daemon
        if id not in await daemon.inventory():
            return note.moved
        stands = await daemon.node(id)
        if stands == await self._node(note.target, id):
            return True
        return note.moved and stands != await self._node(note.source, id)

    async def _node(self, pool: str, id: str) -> Node | None:
        try:
            return await self._parts.pools.get(pool).node(id)
        except NotFound:
            return None

    async def _finish(self, note: Move) -> None:
        volume = _in(note.volume, note.target)
        await blocking(self._parts.opened.update, volume)
        await self._parts.pools.get(note.source).delete(volume.id, shred=volume.spec.shred)
        await blocking(self._notes.forget, volume.id)

    async def _undo(self, note: Move) -> None:
        await self._parts.pools.get(note.target).delete(note.volume.id)
        await blocking(self._notes.forget, note.volume.id)

    async def recover(self) -> None:
        """What a crash left half moved is ended, as far as its pools are at hand; the rest when it is asked for again.

        It runs whenever pools come: a volume that somebody works on is left to whom it is, and nobody is waited for."""
        locks = self._parts.locks
        for id in await blocking(self._notes.all, Move):
            if locks.held(id):
                continue
            try:
                async with locks.of([id]):
                    # Only now: a move may have ended since its note was seen.
                    note = await blocking(self._notes.read, id, Move)
                    if note is not None:
                        await self._settle(note)
            except LamellaError as error:
                log.warning("volume %s is half moved: %s", id, error)

    async def where(self, volume: Volume) -> Volume:
        """*volume* as it lies now: control may not have heard yet that it was moved."""
        note = await blocking(self._notes.read, volume.id, Move)
        return _in(volume, note.target) if note is not None and note.moved else volume

    async def _status(self, volume: Volume, pool: str) -> VolumeStatus:
        return await self._creating.status(_in(volume, pool))


def _in(volume: Volume, pool: str) -> Volume:
    return msgspec.structs.replace(volume, spec=msgspec.structs.replace(volume.spec, pool=pool))
