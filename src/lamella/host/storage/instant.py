"""One instant for several writers: who has to stand still for a snapshot, how each is made to, and that none is left so.

A guest is frozen by its agent and thaws by itself after a deadline; a filesystem that the host has mounted by FIFREEZE, which writes it
out first; an instance as a whole by its pause. The order is the guests', then the host's, then the pause, which is shortest.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from lamella.host.linux.blocking import blocking
from lamella.host.storage.mounting import Mounts
from lamella.host.storage.wing import Writers
from lamella.model.errors import DeadlineExceeded, LamellaError, Unavailable
from lamella.model.instance import Phase

# How long a guest's filesystems may stand still, in seconds.
DEADLINE = 20.0


class Stillness:
    """Who stands still. ``pause`` is for how many seconds, once it is over."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.pause = 0.0
        self.frozen: list[str] = []
        self.held: list[str] = []
        self.paused: list[str] = []
        self.broken: list[str] = []


class Instant:
    """Makes writers stand still. *writers* may be ``None`` on a host that runs nothing."""

    def __init__(self, writers: Writers | None, mounts: Mounts) -> None:
        self._writers = writers
        self._mounts = mounts

    @asynccontextmanager
    async def of(self, *, freeze: list[str], mounted: list[str], pause: list[str]) -> AsyncGenerator[Stillness]:
        """While inside, the guests *freeze* and the *mounted* volumes are frozen and the instances *pause* paused.

        :raise DeadlineExceeded: at the end, when a guest had thawed by itself before: what was taken is not of one state.
        """
        still = Stillness()
        try:
            try:
                async with asyncio.timeout(2 * DEADLINE):
                    await self._stop(still, freeze, mounted, pause)
            except TimeoutError:
                raise Unavailable(
                    f"what writes did not stand still within {2 * DEADLINE:g} s", hint="try again when it writes less"
                ) from None
            yield still
        finally:
            await asyncio.shield(self._go_on(still))
            still.pause = time.monotonic() - still.began
        if still.broken:
            raise DeadlineExceeded(
                f"instance {still.broken[0]} thawed before the snapshot was taken: it was kept for {DEADLINE:g} s at most",
                hint="try again when its disks are less busy, or without --consistent",
            )

    async def _stop(self, still: Stillness, freeze: list[str], mounted: list[str], pause: list[str]) -> None:
        for id in mounted:
            await blocking(self._mounts.write_out, id)
        still.began = time.monotonic()
        if self._writers is not None:
            for id in freeze:
                await self._writers.freeze(id, DEADLINE)
                still.frozen.append(id)
        for id in mounted:
            still.held.append(id)
            await blocking(self._mounts.freeze, id)
        if self._writers is not None:
            for id in pause:
                if await self._writers.phase(id) is Phase.RUNNING:
                    still.paused.append(id)
                    await self._writers.pause(id)

    async def _go_on(self, still: Stillness) -> None:
        """In the other order. Every one is tried, whatever becomes of the others."""
        failed: list[LamellaError] = []
        for id in reversed(still.paused):
            assert self._writers is not None
            try:
                await self._writers.resume(id)
            except LamellaError as error:
                failed.append(error)
        for id in reversed(still.held):
            await blocking(self._mounts.thaw, id)
        for id in reversed(still.frozen):
            assert self._writers is not None
            try:
                if not await self._writers.thaw(id):
                    still.broken.append(id)
            except LamellaError as error:
                failed.append(error)
        if failed:
            raise failed[0]
