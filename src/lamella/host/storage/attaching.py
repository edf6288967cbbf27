"""Volumes for instances: opened in the storage process once, and shown to each level in its own way.

A container or a module gets a directory: a filesystem volume's own, or the mount of a block volume. A machine gets a socket or a raw file
(ways.py). What is to be open is written down first and struck out last, so that whoever comes after a crash at any line finds what to
finish or close.
"""

import asyncio
import logging
from pathlib import Path

from lamella.host.compute.driver import MountedVolume
from lamella.host.linux.blocking import blocking
from lamella.host.storage.driver import Fences
from lamella.host.storage.mounting import Mounts
from lamella.host.storage.parts import AT_REST, Parts
from lamella.host.storage.records import MadeVolume, OpenVolume
from lamella.host.storage.stacks import group_of
from lamella.host.storage.ways import FILE, MOUNT, SERVED, TREE, Chosen, choose
from lamella.host.storage.wing import Attachment
from lamella.model.errors import Internal, LamellaError, Unavailable
from lamella.model.storage import Volume, device_of

log = logging.getLogger("lamella.host.storage")


class Attaching:
    """What is open for instances. *parts* are the wing's."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.mounts = Mounts(parts.home)
        # What was open before this daemon and is not looked at yet: its pool or its key has to come first.
        self._unadopted: set[str] = set()

    # --- for instances

    async def attach(self, asked: Attachment) -> MountedVolume:
        """:meth:`~lamella.host.storage.wing.Storage.attach`."""
        volume, parts = asked.volume, self._parts
        chosen = await self._choose(asked)
        async with parts.locks.of([volume.id]):
            for check in parts.may_open:
                check(volume)
            parts.require_unread(volume, "attached")
            known = asked.user in parts.opened.users(volume.id)
            try:
                record = await blocking(
                    parts.opened.enter,
                    volume,
                    chosen.way,
                    asked.user,
                    read_only=asked.mount.read_only,
                    why=chosen.why,
                    socket_owner=asked.uid,
                )
                path, size = await self._open(volume)
            except BaseException:
                if not known:
                    await asyncio.shield(self._close_for(volume.id, asked.user))
                raise
        return MountedVolume(
            name=volume.name,
            id=volume.id,
            device=device_of(volume.id),
            target=asked.mount.target,
            filesystem="" if record.way == TREE else volume.spec.filesystem,
            path=path,
            size=size,
            read_only=asked.mount.read_only,
            socket=path if record.way == SERVED else None,
            served=Chosen(way=record.way, why=record.why).words,
        )

    async def _choose(self, asked: Attachment) -> Chosen:
        parts, user = self._parts, asked.user
        running = parts.writers is not None and await parts.writers.phase(user) not in AT_REST
        return choose(
            asked.volume,
            asked.spec.isolation,
            asked.mount.target,
            read_only=asked.mount.read_only,
            running=running,
            shown=any(record.machine == user for record in parts.opened.all.values()),
        )

    async def detach(self, user: str, volume_ids: set[str] | None = None) -> None:
        """:meth:`~lamella.host.storage.wing.Storage.detach`."""
        opened = self._parts.opened
        for id in sorted(opened.of(user) if volume_ids is None else opened.of(user) & volume_ids):
            async with self._parts.locks.of([id]):
                await self._close_for(id, user)

    # --- for the wing

    async def adopt(self) -> None:
        """Find again what the table says is open, close what nobody has open, and let go of what stood still."""
        opened, daemon = self._parts.opened, self._parts.daemon
        for id in await blocking(self.mounts.mounted):
            # Who froze it is gone; its snapshot is made again when control asks.
            await blocking(self.mounts.thaw, id)
            if id not in opened:
                log.warning("volume %s is mounted for nobody; it is closed", id)
                await self.mounts.unmount(id)
        shown = await blocking(lambda: {id for ask in self._parts.shown for id in ask()})
        for id in await daemon.inventory() - set(opened.all) - shown:
            await daemon.remove(id)
        self._unadopted = set(opened.all)
        await self.adopt_more()

    async def adopt_more(self) -> None:
        """What could not be adopted yet: pools and keys come later than the daemon."""
        for id in tuple(self._unadopted):
            record = self._parts.opened.get(id)
            if record is None:
                self._unadopted.discard(id)
                continue
            async with self._parts.locks.of([id]):
                try:
                    await self._open(record.volume)
                    self._unadopted.discard(id)
                except LamellaError as error:
                    log.warning("volume %s: %s", id, error)

    async def reopened(self, id: str) -> None:
        """The storage process was started again: a mount over the old one's file is dead, and is made anew.

        What an instance has of the dead one stays dead until it is started again.
        """
        record = self._parts.opened.get(id)
        if record is not None and record.way == MOUNT:
            async with self._parts.locks.of([id]):
                await self._open(record.volume)

    async def close_all(self) -> None:
        """Unmount everything and close it in the storage process: nothing of this home is left open."""
        for id, record in self._parts.opened.all.items():
            for user in tuple(record.users):
                try:
                    await self.detach(user, {id})
                except LamellaError as error:
                    log.warning("volume %s: %s", id, error)

    async def door(self, id: str) -> Path:
        """The file of an open block volume, or its machine's socket."""
        record = self._parts.opened.get(id)
        if record is None or record.way == TREE:
            raise Internal(f"volume {id} is not open as a disk")
        return await self._door(id, record)

    async def _door(self, id: str, record: OpenVolume) -> Path:
        ways = await self._parts.daemon.export(id, socket_owner=record.socket_owner, writable=_writable(record))
        found = ways.socket if record.way == SERVED else ways.file
        if found is None:
            raise Internal(f"the storage process gives no way in to volume {id}")
        return found

    async def _open(self, volume: Volume) -> tuple[Path, int]:
        """Open it as the table says: where it is, and its size."""
        record = self._parts.opened.get(volume.id)
        assert record is not None
        pool = self._parts.pools.get(volume.spec.pool)
        if record.way == TREE:
            handle = await pool.handle(volume.id)
            return handle.path, handle.size
        daemon = self._parts.daemon
        running = volume.id in await daemon.inventory()
        if running and await daemon.machine(volume.id) != record.machine:
            # A daemon that looked at its filesystem was killed: nobody has it yet.
            await daemon.remove(volume.id)
            running = False
        if not running and isinstance(pool, Fences):
            await pool.fence(volume.id)
        if not running and record.way == SERVED and volume.spec.filesystem:
            async with self._parts.disk(volume) as file:
                await self.mounts.tidy(file)
        try:
            await self._parts.add(volume, machine=record.machine)
        except Unavailable:
            # Its key may be locked away again, while the storage process still has it.
            if not running:
                raise
        door = await self._door(volume.id, record)
        made = self._parts.records.made.read(volume.id, MadeVolume) or MadeVolume()
        if record.way == MOUNT:
            point = await self.mounts.mount(volume.id, door, read_only=record.read_only, fully=made.strange)
            if made.strange:
                await self._mark(volume.id, made, strange=False)
            return point, await daemon.size(volume.id)
        if not running and record.way == FILE and not record.read_only and volume.spec.filesystem:
            await self.mounts.tidy(door)
        if not record.read_only and not made.strange:
            await self._mark(volume.id, made, strange=True)
        return door, await daemon.size(volume.id)

    async def _mark(self, id: str, made: MadeVolume, *, strange: bool) -> None:
        made.strange = strange
        await blocking(self._parts.records.made.write, id, made)

    async def _close_for(self, id: str, user: str) -> None:
        record = self._parts.opened.get(id)
        if record is None or user not in record.users:
            return
        if len(record.users) == 1 and record.way != TREE:
            await self._close(id, record)
        await blocking(self._parts.opened.leave, id, user)

    async def _close(self, id: str, record: OpenVolume) -> None:
        daemon = self._parts.daemon
        self._parts.closing.add(id)
        try:
            if id in await daemon.inventory():
                try:
                    # What is not written yet has to be, however full the pool is: for that there is a floor.
                    await daemon.release([id])
                    await daemon.limit(id, record.volume.spec.limits, "" if record.machine else group_of(record.volume))
                except LamellaError as error:
                    # Who served it was killed, and its key is locked away since: it has nothing to write.
                    log.warning("volume %s: %s", id, error)
            if record.way == MOUNT:
                await self.mounts.unmount(id)
            await daemon.remove(id)
        finally:
            self._parts.closing.discard(id)
        self._unadopted.discard(id)


def _writable(record: OpenVolume) -> bool:
    # What is mounted read-only may have a journal to replay first.
    return record.way == MOUNT or not record.read_only
