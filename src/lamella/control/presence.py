"""Which hosts of other processes answer: asked every few seconds, and written where placement and people read it."""

import asyncio
from contextlib import suppress

from lamella.control.events import record
from lamella.model.assignment import HostAgent
from lamella.model.errors import LamellaError, Unavailable
from lamella.model.host import Host
from lamella.model.resource import Condition, now
from lamella.store.store import Store, Transaction

READY = "ready"
AWAY = "away"

# Seconds between two questions, until the second one after an answer that did not come, and how long an answer may take.
EVERY = 5.0
AGAIN = 1.0
PATIENCE = 5.0


class Presence:
    """A host is away when it left two questions in a row unanswered: a daemon that is only restarted is not noticed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._away: dict[str, str] = {}

    def watch(self, host: str, agent: HostAgent) -> None:
        """From now on ask *agent* whether the host with the id *host* is there, in place of whoever was asked before."""
        before = self._tasks.get(host)
        if before is not None:
            before.cancel()
        self._away.pop(host, None)
        self._tasks[host] = asyncio.create_task(self._ask(host, agent), name=f"presence {host}")

    async def close(self) -> None:
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    def away(self, host: str) -> str:
        """Why *host* cannot be asked anything; empty when it can."""
        return self._away.get(host, "")

    async def _ask(self, host: str, agent: HostAgent) -> None:
        failed = 0
        while True:
            try:
                async with asyncio.timeout(PATIENCE):
                    await agent.wake(0)
                failed = 0
                self._away.pop(host, None)
                await self._write(host, READY, None)
            except (LamellaError, TimeoutError) as error:
                failed += 1
                if failed > 1:
                    said = error if isinstance(error, LamellaError) else Unavailable("its daemon does not answer")
                    self._away[host] = said.message
                    await self._write(host, AWAY, said)
            await asyncio.sleep(AGAIN if failed == 1 else EVERY)

    async def _write(self, host: str, phase: str, error: LamellaError | None) -> None:
        def write(tx: Transaction) -> None:
            known: Host | None = tx.by_id(host)
            if known is None or known.status.phase == phase:
                return
            known.status.phase, known.status.conditions = phase, []
            if error is None:
                known.status.seen_at = now()
            else:
                condition = Condition(
                    type="Ready", status=False, reason=error.code, message=error.message, hint=error.hint, since=now()
                )
                known.status.conditions = [condition]
            tx.update(known)
            record(tx, known, f"host.{phase}", f"host {known.name} is {phase}")

        # A database that is away, too, is asked again with the next question.
        with suppress(LamellaError):
            if (await self._store.by_id(host)).status.phase != phase:
                await self._store.write(write)
