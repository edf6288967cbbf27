"""Several volumes that go back to one snapshot: all of them, or none."""

from contextlib import AsyncExitStack

from lamella.host.storage.backup.keeping import Keeping
from lamella.host.storage.parts import Parts
from lamella.host.storage.requests import Tell
from lamella.host.storage.snapshots import Snapshots
from lamella.model.errors import NotFound
from lamella.model.storage import Volume
from lamella.model.storage_requests import RestoreSnapshot


class Together:
    """Answers RestoreSnapshot. Of one volume its driver sees to it; of several each is kept until the last is what it was."""

    def __init__(self, parts: Parts, snapshots: Snapshots, keeping: Keeping) -> None:
        self._parts, self._snapshots, self._keeping = parts, snapshots, keeping
        parts.requests.serve(RestoreSnapshot, self.restore)

    async def restore(self, request: RestoreSnapshot, tell: Tell) -> None:
        """:class:`RestoreSnapshot`.

        :raise NotFound: when one has no such snapshot. :raise Conflict: when one is open. Then, as after any other error, all are what
            they were.
        """
        async with AsyncExitStack() as kept:
            if len(request.volumes) > 1:
                for volume in request.volumes:
                    await self._check(volume, request.snapshot.id)
                # In one order, so that no two wait for each other.
                for volume in sorted(request.volumes, key=lambda volume: volume.id):
                    await kept.enter_async_context(self._keeping.kept(volume, tell))
            await self._snapshots.restore(request, tell)

    async def _check(self, volume: Volume, snapshot: str) -> None:
        parts = self._parts
        await parts.require_closed(volume, "restored")
        if snapshot in parts.stacks.made(volume.id).copies:
            return
        if snapshot not in await parts.pools.get(volume.spec.pool).snapshots(volume.id):
            raise NotFound(f"volume {volume.name} has no snapshot {snapshot}", hint="nothing was restored")
