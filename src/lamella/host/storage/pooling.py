"""Pools opened and closed at control's request."""

from lamella.host.storage.parts import Parts
from lamella.host.storage.requests import Tell
from lamella.model.errors import Conflict
from lamella.model.storage import PoolStatus
from lamella.model.storage_requests import ClosePool, OpenPool


class Pooling:
    """Answers OpenPool and ClosePool."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
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
