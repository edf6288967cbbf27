"""Holding a guest's file systems still, by whoever answers inside."""

import contextlib
from typing import Protocol, TypeVar

from lamella.host.compute.qemu.process import QemuProcess
from lamella.host.compute.qemu.storage import DiskVerbs
from lamella.model.errors import DeadlineExceeded, LamellaError, Unavailable, Unsupported

S = TypeVar("S", bound=QemuProcess)


class Freezer(Protocol):
    """Who can do it inside: our agent, or qemu-guest-agent."""

    async def freeze(self, deadline: float) -> int: ...

    async def thaw(self) -> bool: ...


class FreezeVerbs(DiskVerbs[S]):
    """:class:`Freezes`; a level says who answers in its guest."""

    async def freeze(self, id: str, deadline: float) -> int:
        """See ``Freezes``.

        :raise Conflict: when it does not run, or is paused.
        """
        async with self._lock(id):
            inside = await self._freezer(id)
            try:
                return await inside.freeze(deadline)
            except (Unsupported, Unavailable):
                raise
            except LamellaError as error:
                with contextlib.suppress(LamellaError):
                    await inside.thaw()
                raise Unavailable(
                    f"the guest's file systems were not frozen: {error.message}", hint=error.hint
                ) from error

    async def thaw(self, id: str) -> bool:
        """See ``Freezes``. Somebody who does not answer any more has thawed at the deadline by itself, or is gone."""
        async with self._lock(id):
            inside = await self._freezer(id)
            try:
                return await inside.thaw()
            except (Unsupported, Unavailable, DeadlineExceeded):
                return False

    async def _freezer(self, id: str) -> Freezer:
        raise NotImplementedError
