"""Machines that stand still because of storage go on: after a crash of the storage process, and when a full pool has room again.

A machine has its volume's file open by itself. After a crash that file is dead and another lies at the same path; its writes fail, and
it stands still with them. It is told to take the new file and to do them again, and is asked until it has: its driver, its worker or the
storage process may not be there yet. The same is done for one whose own disk is in a pool that was full: QEMU holds its write back.
"""

import asyncio
import logging

from lamella.host.storage.attaching import Attaching
from lamella.host.storage.parts import AT_REST, Parts
from lamella.host.storage.ways import FILE, SERVED
from lamella.model.errors import LamellaError

log = logging.getLogger("lamella.host.storage")

# Seconds between attempts: the first, and the longest.
_SOON, _LATE = 0.25, 5.0
# A write may fail a moment after its machine was looked at: it is looked at once more, so many seconds later.
_AFTER = 2.0
_LOOKS = 2
_MACHINES = (FILE, SERVED)


class Healing:
    """One task for each machine that may stand still; it ends when the machine goes on, or has let go of its volumes."""

    def __init__(self, parts: Parts, attaching: Attaching) -> None:
        self._parts = parts
        self._attaching = attaching
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # Asked for again since their task looked last.
        self._again: set[str] = set()

    async def close(self) -> None:
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def restarted(self) -> None:
        """The storage process was started again, or may have been while nobody looked."""
        self._heal(
            {user for record in self._parts.opened.all.values() if record.way in _MACHINES for user in record.users}
        )

    def roomy(self, pool: str) -> None:
        """*pool* was full and has room."""
        records = self._parts.opened.all.values()
        found = [record for record in records if record.way in _MACHINES and record.volume.spec.pool == pool]
        self._heal({user for record in found for user in record.users} | self._own(pool))

    def _own(self, pool: str) -> set[str]:
        """Instances whose own disks are in *pool*."""
        own = self._parts.writers.own_disks() if self._parts.writers is not None else {}
        return {user for user, pools in own.items() if pool in pools}

    def _heal(self, users: set[str]) -> None:
        if self._parts.writers is None:
            return
        for user in users:
            self._again.add(user)
            if user not in self._tasks:
                self._tasks[user] = asyncio.create_task(self._until_it_goes_on(user), name=f"heal {user}")

    async def _until_it_goes_on(self, user: str) -> None:
        try:
            looks, pause, said = 0, _SOON, ""
            while await self._may_wait(user):
                if user in self._again:
                    self._again.discard(user)
                    looks = _LOOKS
                if not looks:
                    return
                try:
                    await self._look(user)
                    looks, pause, wait = looks - 1, _SOON, _AFTER
                except (LamellaError, OSError) as error:
                    if str(error) != said:
                        log.warning("instance %s waits for its volumes: %s", user, said := str(error))
                    pause, wait = min(2 * pause, _LATE), pause
                if looks:
                    await asyncio.sleep(wait)
        finally:
            self._again.discard(user)
            del self._tasks[user]

    def _files(self, user: str) -> list[str]:
        """The volumes whose files it has open."""
        return [id for id, one in self._parts.opened.all.items() if one.way in _MACHINES and user in one.users]

    async def _may_wait(self, user: str) -> bool:
        """Whether it runs, with a volume's file or a disk of its own."""
        writers = self._parts.writers
        assert writers is not None
        return bool(self._files(user)) or (user in writers.own_disks() and await writers.phase(user) not in AT_REST)

    async def _look(self, user: str) -> None:
        assert self._parts.writers is not None
        for id in self._files(user):
            # Waits for the storage process, and for the way in.
            await self._attaching.door(id)
        await self._parts.writers.heal(user)
