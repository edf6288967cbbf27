"""How volumes are used: counted by the storage process, added up and written down here, so that neither restart loses it."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import msgspec

from lamella.host.linux.blocking import blocking
from lamella.host.storage.blocks import Counted
from lamella.host.storage.parts import Parts
from lamella.host.storage.records import Folder
from lamella.host.storage.requests import Tell
from lamella.model.errors import LamellaError
from lamella.model.replication import VolumeAccess
from lamella.model.replication_requests import MeasureAccess
from lamella.model.resource import now
from lamella.model.storage import Volume

log = logging.getLogger("lamella.host.storage")

# Seconds between two looks.
EVERY = 20.0


class _Kept(msgspec.Struct, kw_only=True):
    access: VolumeAccess
    seen: Counted = Counted(bytes=0, operations=0)


def added(kept: VolumeAccess, before: Counted, seen: Counted, at: datetime) -> VolumeAccess:
    """*kept* with what came between two looks; counters that went back began anew."""
    anew = seen.operations < before.operations or seen.bytes < before.bytes
    start = Counted(bytes=0, operations=0) if anew else before
    bytes, operations = seen.bytes - start.bytes, seen.operations - start.operations
    return VolumeAccess(
        since=kept.since,
        bytes=kept.bytes + bytes,
        operations=kept.operations + operations,
        last=at if operations else kept.last,
    )


class Access:
    """Answers MeasureAccess, and looks every :data:`EVERY` seconds."""

    def __init__(self, parts: Parts, clock: Callable[[], datetime] = now) -> None:
        self._parts = parts
        self._clock = clock
        self._folder = Folder(parts.home.state / "storage" / "access")
        self._known: dict[str, _Kept] = {}
        self._task: asyncio.Task[None] | None = None
        parts.requests.serve(MeasureAccess, self.measure)

    async def open(self) -> None:
        self._known = await blocking(self._folder.all, _Kept)
        self._task = asyncio.create_task(self._look_again(), name="access")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def measure(self, request: MeasureAccess, tell: Tell) -> dict[str, VolumeAccess]:
        """:class:`MeasureAccess`."""
        await self.look()
        for volume in request.volumes:
            if volume.id not in self._known:
                await self._begin(volume)
        return {volume.id: self._known[volume.id].access for volume in request.volumes}

    async def look(self) -> None:
        """Add up what was counted since the last look, and write down what changed."""
        at = self._clock()
        for id, seen in (await self._parts.daemon.counted()).items():
            kept = self._known.setdefault(id, _Kept(access=VolumeAccess(since=at)))
            if seen == kept.seen:
                continue
            kept.access, kept.seen = added(kept.access, kept.seen, seen, at), seen
            await blocking(self._folder.write, id, kept)

    async def _begin(self, volume: Volume) -> None:
        self._known[volume.id] = kept = _Kept(access=VolumeAccess(since=self._clock()))
        await blocking(self._folder.write, volume.id, kept)

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self.look()
            except LamellaError as error:
                log.warning("use of volumes: %s", error)
