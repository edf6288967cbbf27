"""What this host saw, on its way to control: the newest state of each instance, many in one message, on nobody's path."""

import asyncio
import logging
from collections import deque
from contextlib import suppress

import msgspec

from lamella.model.assignment import ControlDesk, InstanceReport
from lamella.model.balancer import BalancerReport
from lamella.model.errors import LamellaError
from lamella.model.storage import StorageEvent

log = logging.getLogger("lamella.host.reporter")

# What is only on its way (starting, stopping) is told after this many seconds, unless it has become something by then.
PATIENCE = 0.03
# How long to wait before telling again what control did not take, in seconds.
RETRY = 1.0
MOST_EVENTS = 1000


class Reporter:
    """Keeps the last word on every instance until control has it."""

    def __init__(self, desk: ControlDesk, host: str) -> None:
        self._desk = desk
        self._host = host
        self._waiting: dict[str, InstanceReport] = {}
        self._balancers: dict[str, BalancerReport] = {}
        self._storage: deque[StorageEvent] = deque(maxlen=MOST_EVENTS)
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._task = asyncio.create_task(self._run(), name="reporter")

    async def close(self) -> None:
        """Tell what is still waiting, for a moment, then end."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._waiting:
            with suppress(LamellaError, TimeoutError):
                async with asyncio.timeout(2):
                    await self._desk.report(self._host, list(self._waiting.values()))

    def tell(self, report: InstanceReport, *, patient: bool = False) -> None:
        """Replace what was going to be said of this instance; its events and what it let go of are kept, in order.

        *patient* ones may wait a moment."""
        before = self._waiting.get(report.id)
        if before is not None:
            report = msgspec.structs.replace(
                report,
                events=[*before.events, *report.events],
                released=[*before.released, *(id for id in report.released if id not in before.released)],
            )
        self._waiting[report.id] = report
        if patient:
            asyncio.get_running_loop().call_later(PATIENCE, self._wake.set)
        else:
            self._wake.set()

    def tell_storage(self, event: StorageEvent) -> None:
        """What befell storage; of very many, the newest are told."""
        self._storage.append(event)
        self._wake.set()

    def tell_balancer(self, report: BalancerReport) -> None:
        """Replace what was going to be said of this balancer; its events are kept, in order."""
        before = self._balancers.get(report.id)
        if before is not None:
            report = msgspec.structs.replace(report, events=[*before.events, *report.events][-MOST_EVENTS:])
        self._balancers[report.id] = report
        self._wake.set()

    async def _tell_balancers(self) -> None:
        batch, self._balancers = self._balancers, {}
        if not batch:
            return
        try:
            await self._desk.report_balancers(self._host, list(batch.values()))
        except BaseException:
            newer, self._balancers = self._balancers, batch
            for report in newer.values():
                self.tell_balancer(report)
            raise

    async def _tell_storage(self) -> None:
        events = list(self._storage)
        if not events:
            return
        self._storage.clear()
        try:
            await self._desk.tell(self._host, events)
        except BaseException:
            newer = list(self._storage)
            self._storage.clear()
            self._storage.extend([*events, *newer])
            raise

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._tell_storage()
                await self._tell_balancers()
            except Exception as error:
                log.warning("control did not take an event: %s", error)
                asyncio.get_running_loop().call_later(RETRY, self._wake.set)
            if not self._waiting:
                continue
            batch, self._waiting = self._waiting, {}
            try:
                await self._desk.report(self._host, list(batch.values()))
            except asyncio.CancelledError:
                self._waiting = batch | self._waiting
                raise
            except Exception as error:
                log.warning("control did not take a report: %s", error)
                newer, self._waiting = self._waiting, {}
                for report in (*batch.values(), *newer.values()):
                    self.tell(report)
                await asyncio.sleep(RETRY)
