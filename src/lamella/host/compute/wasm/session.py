"""One instance that runs, as this daemon sees it: the conversation with its monitor, and what is done when it has ended.

Made when an instance is created, and made again by whichever daemon finds it. Nothing in it is needed by the instance.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime

from lamella.host.compute.qemu.log import Log
from lamella.host.compute.qemu.places import ExitRecord
from lamella.host.compute.wasm import monitor
from lamella.host.compute.wasm.monitor import Connection, Kind, Lost, Packet
from lamella.host.compute.wasm.places import Places, ProcessRecord
from lamella.host.linux.blocking import blocking
from lamella.host.linux.cgroup import Cgroup
from lamella.model.errors import CannotRun, LamellaError, Unavailable

logger = logging.getLogger(__name__)

KILLED = 137


class Stale(Exception):
    """The library did not take the compiled module: it was made for another one."""


class Session:
    """``ready`` when it could be started, ``running`` when it was, ``ended`` when it has, ``gone`` when it is tidied up too."""

    def __init__(
        self, places: Places, group: Cgroup, log: Log, connection: Connection, ended: Callable[["Session"], None]
    ) -> None:
        self.places = places
        self.group = group
        self.log = log
        self.connection = connection
        self.ready = False
        self.running = False
        self.ended = asyncio.Event()
        self.gone = asyncio.Event()
        self._ended = ended
        self._begun = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._follower: asyncio.Task[None] | None = None

    @property
    def process(self) -> ProcessRecord | None:
        return self.places.process()

    async def made(self) -> None:
        """Wait until the worker is ready to start, then listen to it.

        :raise CannotRun: when the module is the reason that it cannot.
        :raise Stale: when the compiled module does not fit.
        :raise Lost: when the monitor ended.
        :raise Unavailable: when the worker could not be made.
        """
        packet = await self.connection.receive()
        match packet:
            case Packet(kind=Kind.READY):
                self.ready = True
                self.listen()
            case Packet(kind=Kind.STALE):
                raise Stale(packet.text)
            case Packet(kind=Kind.FAILED, code=125):
                raise Unavailable(f"the instance could not be made: {packet.text}")
            case Packet(kind=Kind.FAILED):
                raise CannotRun(
                    packet.text, hint="the module asks for what this level does not have", exit_code=packet.code
                )
            case Packet(kind=Kind.ENDED):
                raise Unavailable(f"the worker ended as it was made: {packet.text}", hint="more memory may help")
            case _:
                raise Lost("the monitor of the instance ended as it was made", hint="try again")

    def adopt(self, hello: Packet) -> None:
        """Go on with an instance that another daemon made; *hello* is the first packet of the monitor."""
        self.ready = hello.state in "RB"
        self.running = hello.state == "B"
        if self.running:
            self._begun.set()
        self.listen()

    def listen(self) -> None:
        self.log.go_on()
        self._life = asyncio.create_task(self._live(), name=f"wasm {self.places.id}")

    async def start(self) -> None:
        """:raise Unavailable: when it has ended."""
        if self.running:
            return
        await monitor.start(self.connection)
        async with asyncio.TaskGroup() as tasks:
            waits = [tasks.create_task(self._begun.wait()), tasks.create_task(self.ended.wait())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if not self.running:
            raise Unavailable("the instance ended before it was started", hint="start it again")

    async def close(self) -> None:
        """Let go of it; it goes on."""
        for task in (self._life, self._follower):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self.connection.close()

    def follow(self) -> None:
        """Have the log told when the monitor has written more of it."""
        if self._follower is None or self._follower.done():
            self._follower = asyncio.create_task(self._follow(), name=f"log of {self.places.id}")

    async def _follow(self) -> None:
        with contextlib.suppress(Unavailable):
            connection = await Connection.connect(self.places.socket)
            try:
                await connection.send(b"W")
                while (packet := await connection.receive()) is not None:
                    if packet.kind is Kind.GROWN:
                        self.log.grew()
            finally:
                connection.close()

    async def _live(self) -> None:
        told = False
        while not told:
            try:
                packet = await self.connection.receive()
            except Unavailable as error:
                logger.warning("%s: %s", self.places.id, error)
                packet = None
            if packet is None:
                break
            if packet.kind is Kind.READY:
                self.ready = True
            elif packet.kind is Kind.BEGUN:
                self.running = True
                self._begun.set()
            elif packet.kind is Kind.ENDED:
                told = True
        if not told:
            await blocking(self._lost)
        self.ended.set()
        self.log.finish()
        self._ended(self)
        self.connection.close()
        if self._follower is not None:
            self._follower.cancel()
        await blocking(self._tidy)
        self.gone.set()

    def _lost(self) -> None:
        """The monitor is gone without a word, and the worker with it."""
        if self.places.exit() is None and self.running:
            process = self.places.process()
            self.places.write(lost(process))

    def _tidy(self) -> None:
        try:
            self.group.remove()
        except LamellaError as error:
            logger.warning("%s: %s", self.places.id, error)
        self.places.remove_run()


def lost(process: ProcessRecord | None) -> ExitRecord:
    """How a run ended of which nobody told."""
    return ExitRecord(
        exit_code=KILLED,
        started_at=process.started_at if process else None,
        finished_at=datetime.now(UTC),
        reason="its monitor was killed, or the host was restarted",
    )


def open_group(group: Cgroup) -> list[int]:
    """Where a worker joins its group: descriptors that the caller closes."""
    return [os.open(file, os.O_WRONLY | os.O_CLOEXEC) for file in group.procs_files()]
