"""What a volume was, kept until what is restored over it is whole: one that was cut off is what it was again.

    state/backup/restores/<volume's id>.json    the snapshot that keeps it, and the key that it had

The record is written before the first byte of the volume changes, and goes after the last: whoever finds one goes back.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import msgspec

from lamella.host.linux.blocking import blocking
from lamella.host.storage.parts import Locks, Parts
from lamella.host.storage.records import Folder
from lamella.host.storage.requests import Tell
from lamella.host.storage.snapshots import Snapshots
from lamella.model.errors import Conflict, LamellaError, Unsupported
from lamella.model.ids import new_id
from lamella.model.resource import new_resource
from lamella.model.storage import Snapshot, SnapshotSpec, SnapshotStatus, Volume
from lamella.model.storage_requests import DropSnapshot, RestoreSnapshot, TakeSnapshot

log = logging.getLogger("lamella.host.storage")

# Seconds between two tries to go back.
AGAIN = 5.0


class Overwriting(msgspec.Struct, kw_only=True):
    """``snapshot`` keeps what ``volume`` was, ``key`` is its wrapped key from then."""

    volume: Volume
    snapshot: str
    key: str = ""


class Keeping:
    """Nobody opens a volume that is half overwritten."""

    def __init__(self, parts: Parts, snapshots: Snapshots) -> None:
        self._parts, self._snapshots = parts, snapshots
        self._records = Folder(parts.home.state / "backup" / "restores")
        self._half: set[str] = set()
        # Of its own: what takes, drops and restores snapshots holds the wing's.
        self._locks = Locks()
        self._again: asyncio.Task[None] | None = None
        parts.may_open.append(self._check)
        parts.kept.append(self._kept)

    async def open(self) -> None:
        """Go back from what a former daemon was cut off in."""
        self._half |= set(await blocking(self._records.ids))
        await self._settle()

    async def close(self) -> None:
        if self._again is not None:
            self._again.cancel()
            with suppress(asyncio.CancelledError):
                await self._again

    async def _settle(self) -> None:
        """What cannot be now (a full pool, one that is not open yet) is tried again."""
        for record in (await blocking(self._records.all, Overwriting)).values():
            async with self._locks.of([record.volume.id]):
                if record.volume.id in self._half:
                    await self._try_back(record, _unheard)
        if self._half and self._again is None:
            self._again = asyncio.create_task(self._keep_trying(), name="half restored volumes")

    async def _keep_trying(self) -> None:
        while self._half:
            await asyncio.sleep(AGAIN)
            await self._settle()
        self._again = None

    async def _try_back(self, record: Overwriting, tell: Tell) -> None:
        try:
            await self._back(record, tell)
        except LamellaError as error:
            log.warning("volume %s is half restored: %s", record.volume.name, error)
            self._parts.tell(
                "volume.half-restored",
                record.volume.id,
                f"volume {record.volume.name} cannot be what it was before it was restored: {error.message}",
            )

    @asynccontextmanager
    async def kept(self, volume: Volume, tell: Tell) -> AsyncGenerator[None]:
        """While *volume* is overwritten. When that fails it is what it was.

        :raise Unsupported: when its pool can keep nothing of it; it is untouched.
        """
        async with self._locks.of([volume.id]):
            former = await blocking(self._records.read, volume.id, Overwriting)
            if former is not None:
                await self._back(former, tell)
            async with self._guarded(volume, tell):
                yield

    @asynccontextmanager
    async def _guarded(self, volume: Volume, tell: Tell) -> AsyncGenerator[None]:
        snapshot = new_id("snapshot")
        record = Overwriting(volume=volume, snapshot=snapshot, key=self._parts.stacks.made(volume.id).key)
        await self._keep(record, tell)
        await blocking(self._records.write, volume.id, record)
        self._half.add(volume.id)
        try:
            yield
        except BaseException:
            await asyncio.shield(self._fail(record, tell))
            raise
        await blocking(self._records.forget, volume.id)
        self._half.discard(volume.id)
        await self._drop(record, tell)

    async def _fail(self, record: Overwriting, tell: Tell) -> None:
        await self._try_back(record, tell)
        if record.volume.id in self._half and self._again is None:
            self._again = asyncio.create_task(self._keep_trying(), name="half restored volumes")

    async def _keep(self, record: Overwriting, tell: Tell) -> None:
        try:
            await self._snapshots.take(TakeSnapshot(snapshot=_row(record), volumes=[record.volume]), tell)
        except Unsupported as error:
            raise Unsupported(
                f"volume {record.volume.name} would be lost while it is overwritten: {error.message}",
                hint="restore to a new volume: --as NAME",
            ) from error

    async def _back(self, record: Overwriting, tell: Tell) -> None:
        volume, parts = record.volume, self._parts
        await self._snapshots.restore(RestoreSnapshot(snapshot=_row(record), volumes=[volume]), tell)
        made = parts.stacks.made(volume.id)
        if made.key != record.key:
            made.key = record.key
            await blocking(parts.records.made.write, volume.id, made)
        await blocking(self._records.forget, volume.id)
        self._half.discard(volume.id)
        await self._drop(record, tell)

    async def _drop(self, record: Overwriting, tell: Tell) -> None:
        """One that stays takes room, and no more: `lamella fsck` removes what nobody knows."""
        try:
            await self._snapshots.drop(DropSnapshot(snapshot=_row(record), volumes=[record.volume]), tell)
        except LamellaError as error:
            log.warning("what volume %s was before it was restored stays: %s", record.volume.name, error)

    def _kept(self, id: str) -> list[str]:
        record = self._records.read(id, Overwriting)
        return [record.snapshot] if record is not None else []

    def _check(self, volume: Volume) -> None:
        if volume.id in self._half:
            raise Conflict(
                f"volume {volume.name} is half restored, and about to be what it was",
                hint="see to its pool (room, presence): it is tried again every few seconds",
            )


def _row(record: Overwriting) -> Snapshot:
    volume = record.volume
    row: Snapshot = new_resource(
        "snapshot", f"{volume.name}@before-restore", SnapshotSpec(volume=volume.id), SnapshotStatus()
    )
    row.id = record.snapshot
    return row


def _unheard(step: str, done: int, total: int, unit: str) -> None:
    pass
