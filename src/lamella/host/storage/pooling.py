"""Pools opened and closed at control's request, and how each is: its room, and what was promised of it."""

import time

from lamella.host.storage.guard import overcommitted
from lamella.host.storage.parts import Parts
from lamella.host.storage.pools import unusable
from lamella.host.storage.requests import Tell
from lamella.model.errors import Conflict, LamellaError, Unavailable
from lamella.model.storage import PoolStatus, StoragePhase, VolumeForm
from lamella.model.storage_requests import ClosePool, OpenPool

# Adding up all volumes is not done more often than this, in seconds.
_ADDED_UP = 60.0


class Pooling:
    """Answers OpenPool and ClosePool."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._promised: dict[str, tuple[float, int]] = {}
        parts.requests.serve(OpenPool, self.open)
        parts.requests.serve(ClosePool, self.close)

    async def open(self, request: OpenPool, tell: Tell) -> PoolStatus:
        """:class:`OpenPool`."""
        tell("open", 0, 0, "")
        return await self._parts.pools.use(request.pool.name, request.pool.spec)

    async def close(self, request: ClosePool, tell: Tell) -> None:
        """:class:`ClosePool`."""
        name = request.pool.name
        used = [record for record in self._parts.opened.all.values() if record.volume.spec.pool == name]
        if used:
            volumes = ", ".join(sorted(record.volume.name for record in used))
            raise Conflict(f"pool {name} cannot be closed: {volumes} is attached", hint="detach what is in it first")
        await self._parts.pools.let_go(name)

    async def status(self, name: str) -> PoolStatus:
        """How it is now, with a warning when its volumes were promised more than it holds. Never raises: one that does not answer is
        ``failed``, with the reason as a condition."""
        try:
            self._parts.stalls.require([name])
        except Unavailable as error:
            return unusable(error.message)
        status = await self._parts.pools.status(name)
        if status.phase is StoragePhase.READY:
            warning = overcommitted(status, await self._sum(name))
            status.conditions = [*status.conditions, *([warning] if warning is not None else [])]
        return status

    async def _sum(self, name: str) -> int:
        at, promised = self._promised.get(name, (0.0, 0))
        if not at or time.monotonic() - at > _ADDED_UP:
            promised = 0
            try:
                pool = self._parts.pools.get(name)
                for id in await pool.inventory():
                    handle = await pool.handle(id)
                    promised += handle.size if handle.form is VolumeForm.BLOCK else 0
            except LamellaError:
                # One went meanwhile, or the pool did: the next sum is whole again.
                return self._promised.get(name, (0.0, 0))[1]
            self._promised[name] = (time.monotonic(), promised)
        return promised
