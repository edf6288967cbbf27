"""The agent of one host: takes what control assigns to it, adopts what runs, and answers for its instances.

It composes the wings and holds one :class:`Worker` an instance. Only here and below is the machine touched.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress
from datetime import datetime
from typing import TypeVar, cast

from lamella.host.ceilings import ceilings, port_of
from lamella.host.compute.driver import (
    ComputeDriver,
    DerivesImages,
    HasMachine,
    HasScreen,
    Home,
    KeepsMemory,
    TakesCopies,
    TakesTap,
)
from lamella.host.facts import read_facts
from lamella.host.images.library import Credentials, ImageLibrary, Progress
from lamella.host.journal import Journal
from lamella.host.linux.blocking import blocking
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.machine import desired_port
from lamella.host.measure.sampler import Sampler
from lamella.host.measure.watched import net_of, watched, with_waits
from lamella.host.memory.keeper import MemoryKeeper
from lamella.host.network.driver import NetworkDriver
from lamella.host.network_wing import NetworkWing
from lamella.host.processors.wing import Processors
from lamella.host.reporter import Reporter
from lamella.host.sharing.wing import SharingWing
from lamella.host.storage.wing import Storage
from lamella.host.worker import Worker
from lamella.host.writers import InstanceWriters
from lamella.model.assignment import Assignment, Assignments, ControlDesk, ImageProgress, ImageRequest
from lamella.model.board import DesktopTicket, Input
from lamella.model.capture import CaptureSpec
from lamella.model.contract import Mechanism
from lamella.model.errors import Invalid, LamellaError, NotFound, Unavailable, Unsupported
from lamella.model.files import FileInfo
from lamella.model.host import Capability, HostStatus
from lamella.model.ids import is_id
from lamella.model.image import ImageStatus
from lamella.model.judgement import Judgement
from lamella.model.storage import StorageEvent, Volume
from lamella.model.storage_requests import AnyStorageRequest, StorageProgress
from lamella.model.stream import ExecSpec, ProcessStream
from lamella.model.usage import LogEntry, Usage

log = logging.getLogger("lamella.host.agent")

T = TypeVar("T")

POLL = 25.0
TICK = 60.0
ADOPTION = 30.0


class Agent:
    """:class:`HostAgent` over real wings."""

    def __init__(
        self,
        home: Home,
        name: str,
        *,
        drivers: Mapping[str, Callable[[Callable[[str], None]], ComputeDriver]],
        network: NetworkDriver,
        storage: Storage,
        library: ImageLibrary,
        address: str = "",
    ) -> None:
        self.home = home
        self.name = name
        self.network = network
        self._network_wing = NetworkWing(network)
        self.processors = Processors(home)
        self.library = library
        self._address = address
        self._drivers = {level: make(self._changed) for level, make in drivers.items()}
        self.storage_wing = storage
        self._workers: dict[str, Worker] = {}
        self.memory = MemoryKeeper(
            lambda: tuple(self._workers.values()),
            spare=self._spare,
            taken=lambda id: Cgroups(ROOT, home.mark).group(id).usage().memory,
            still=home.run / "held-still.json",
        )
        self._capabilities: list[Capability] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._synced = asyncio.Condition()
        self._revision = 0
        self._desk: ControlDesk | None = None
        self._reporter: Reporter | None = None
        self._journal = Journal(home.run / "journal")
        storage.use_writers(InstanceWriters(self._driver_of, self._assigned, self._drivers.values))
        storage.on_event(self._heard)
        self._sharing = SharingWing(home, self._assigned)
        self.host_id = ""
        self._sampler = Sampler(
            lambda: Cgroups(ROOT, home.mark),
            lambda: watched((worker.asked, worker.running) for worker in self._workers.values()),
            self._befell,
            net=lambda: net_of(home),
            memory=home.run / "broken.json",
        )

    # --- wings, as workers use them

    def driver(self, isolation: str) -> ComputeDriver:
        if isolation not in self._drivers:
            raise Unsupported(f"host {self.name} has no driver for isolation {isolation}")
        return self._drivers[isolation]

    # --- life

    async def open(self, desk: ControlDesk) -> str:
        """Look at the machine, register, adopt, and begin to act. Returns the host's id."""
        await self.look()
        return await self.join(desk)

    async def look(self) -> None:
        """Open every wing, and see what this machine can do."""
        self._capabilities = list(await self.storage_wing.open())
        await self.library.open()
        self._capabilities += await self.network.open()
        self._capabilities += await self._sharing.open()
        for driver in self._drivers.values():
            if isinstance(driver, TakesTap):
                driver.use_taps(self._open_tap)
        opened = await asyncio.gather(*(driver.open() for driver in self._drivers.values()))
        told = {capability.name: capability for found in opened for capability in found}
        self._capabilities += told.values()

    async def join(self, desk: ControlDesk) -> str:
        """Register, adopt, and begin to act. Returns the host's id. May be tried again when *desk* did not answer."""
        self._desk = desk
        self.host_id = await desk.register(self.name, await self.facts(), self._address)
        if self._reporter is None:
            self._reporter = Reporter(desk, self.host_id)
            self._reporter.open()
        await self._sync(await desk.assignments(self.host_id, 0, 0))
        self._tasks = [
            asyncio.create_task(self._follow(), name="assignments"),
            asyncio.create_task(self._tick(), name="tick"),
            asyncio.create_task(self._network_wing.watch(), name="network watch"),
            asyncio.create_task(self._sharing.watch(), name="sharing"),
            asyncio.create_task(self.memory.run(), name="memory"),
            asyncio.create_task(self._sampler.run(), name="sampler"),
        ]
        return self.host_id

    async def close(self) -> None:
        """Let go; everything that runs goes on."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.gather(*(worker.close() for worker in self._workers.values()))
        if self._reporter is not None:
            await self._reporter.close()
        for driver in self._drivers.values():
            await driver.close()
        await self.network.close()
        await self.storage_wing.close()

    async def _follow(self) -> None:
        desk = self._desk
        assert desk is not None
        while True:
            try:
                await self._sync(await desk.assignments(self.host_id, self._revision, POLL))
            except LamellaError as error:
                log.warning("control does not answer: %s", error)
                await asyncio.sleep(1.0)
            except Exception:
                log.exception("assignments")
                await asyncio.sleep(1.0)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            try:
                await self.processors.settle()
            except Exception:
                log.exception("the processors")
            for worker in tuple(self._workers.values()):
                if not worker.resting_after_failure:
                    worker.wake()

    async def _sync(self, news: Assignments) -> None:
        assert self._reporter is not None
        await self.storage_wing.use_pools(news.pools)
        asked = [worker.asked for worker in self._workers.values()]
        await self._network_wing.use(news, asked, self._reporter.tell_balancer)
        told = {one.instance.id: one for one in news.instances}
        kept = {} if news.complete else {one.instance.id: one for one in asked if one.instance.id not in news.gone}
        await self.processors.use({**kept, **told}.values())
        await self._sharing.use(news)
        if news.policy is not None:
            self.memory.reserve = news.policy.reserve.memory or None
            for driver in self._drivers.values():
                if isinstance(driver, TakesCopies):
                    driver.use_copies(news.policy.copies)
        for assignment in news.instances:
            self._assign(assignment, self._reporter)
        for id in news.gone:
            worker = self._workers.pop(id, None)
            if worker is not None:
                await worker.close()
            self._sampler.forget(id)
        if news.complete:
            await self._remove_strays({a.instance.id for a in news.instances}, news)
        self._revision = news.revision
        async with self._synced:
            self._synced.notify_all()

    def _assign(self, assignment: Assignment, reporter: Reporter) -> None:
        id = assignment.instance.id
        worker = self._workers.get(id)
        if worker is not None:
            worker.assign(assignment)
            return
        try:
            worker = self._workers[id] = Worker(assignment, self, reporter, self._journal, self._forget)
        except LamellaError as error:
            log.error("instance %s: %s", id, error)
            return
        self.memory.giving_way.adopt(worker)

    def _forget(self, id: str) -> None:
        self._workers.pop(id, None)
        self._network_wing.forget(id)
        self._sampler.forget(id)

    async def _remove_strays(self, mine: set[str], news: Assignments) -> None:
        """What bears our mark and belongs to nothing is removed. Volumes are not: losing one is worse than keeping one."""
        for driver in self._drivers.values():
            for id in await driver.inventory() - mine:
                log.warning("removing %s, which belongs to nothing", id)
                with suppress(LamellaError):
                    await driver.remove(id)
        ports = {port.id for a in news.instances for port in (a.port, *a.ports.values()) if port is not None}
        for id in await self.network.inventory() - ports:
            with suppress(LamellaError):
                await self.network.detach(id)

    def _changed(self, id: str) -> None:
        worker = self._workers.get(id)
        if worker is not None:
            worker.wake()

    async def _driver_of(self, id: str) -> ComputeDriver:
        return (await self._worker(id)).driver

    def _assigned(self) -> list[tuple[Assignment, ComputeDriver]]:
        return [(worker.asked, worker.driver) for worker in self._workers.values()]

    def _heard(self, type: str, subject: str, message: str) -> None:
        """Something befell storage; what is heard before control is known is in the log alone."""
        log.warning("%s %s: %s", type, subject, message)
        if self._reporter is not None:
            volume, pool = (subject, "") if is_id(subject) else ("", subject)
            self._reporter.tell_storage(StorageEvent(type=type, message=message, volume=volume, pool=pool))

    def _befell(self, id: str, type: str, message: str) -> None:
        worker = self._workers.get(id)
        if worker is not None:
            worker.remark(type, message)

    def _spare(self) -> None:
        """The host runs short: what is only held ready goes first."""
        for driver in self._drivers.values():
            if isinstance(driver, KeepsMemory):
                driver.let_go()

    async def _open_tap(self, port_id: str) -> int:
        for worker in self._workers.values():
            for port in (worker.asked.port, *worker.asked.ports.values()):
                if port is not None and port.id == port_id:
                    _, descriptor = await self.network.attach_tap(desired_port(port))
                    return descriptor
        raise NotFound(f"no instance here has the port {port_id}")

    # --- HostAgent

    async def wake(self, revision: int) -> None:
        """The long poll at the desk hears of commits by itself; nothing to do in one process."""

    async def _worker(self, id: str) -> Worker:
        """The worker of an instance, when it has been adopted.

        :raise NotFound: when control never assigned it here.
        """
        try:
            async with asyncio.timeout(ADOPTION):
                async with self._synced:
                    # A request may overtake the assignment that it is about, by a moment.
                    # After a start of the agent, all of them come at once.
                    if id not in self._workers:
                        with suppress(TimeoutError):
                            async with asyncio.timeout(3 if self._revision else 2 * ADOPTION):
                                await self._synced.wait_for(lambda: id in self._workers)
                worker = self._workers.get(id)
                if worker is None:
                    raise NotFound(f"host {self.name} has no instance {id}")
                await worker.adopted.wait()
                return worker
        except TimeoutError:
            raise Unavailable(f"instance {id} is still being adopted", hint="ask again in a moment") from None

    async def exec(self, id: str, spec: ExecSpec) -> ProcessStream:
        return await (await self._worker(id)).driver.exec(id, spec)

    async def attach(self, id: str, *, start: bool) -> ProcessStream:
        worker = await self._worker(id)
        if start:
            await self._reach(worker)
        return await worker.attach(start=start)

    async def _reach(self, worker: Worker) -> None:
        """Wait until the worker knows of the start that the caller has just asked for."""
        async with self._synced:
            with suppress(TimeoutError):
                async with asyncio.timeout(3):
                    await self._synced.wait_for(lambda: worker.waits_for_attach)

    async def kill(self, id: str, signal: int) -> None:
        await (await self._worker(id)).driver.kill(id, signal)

    async def logs(self, id: str, *, follow: bool, tail: int | None, since: datetime | None) -> AsyncIterator[LogEntry]:
        worker = await self._worker(id)
        async for entry in worker.driver.logs(id, follow=follow, tail=tail, since=since):
            yield entry

    async def stat(self, id: str, path: str) -> FileInfo:
        return await (await self._worker(id)).driver.stat(id, path)

    async def list_directory(self, id: str, path: str) -> list[FileInfo]:
        return await (await self._worker(id)).driver.list_directory(id, path)

    async def read_file(self, id: str, path: str) -> AsyncIterator[bytes]:
        worker = await self._worker(id)
        async for piece in worker.driver.read_file(id, path):
            yield piece

    async def write_file(
        self, id: str, path: str, data: AsyncIterator[bytes], *, mode: int, uid: int, gid: int
    ) -> None:
        worker = await self._worker(id)
        await worker.driver.write_file(id, path, data, mode=mode, uid=uid, gid=gid)

    async def make_directory(self, id: str, path: str, *, mode: int, uid: int, gid: int) -> None:
        worker = await self._worker(id)
        await worker.driver.make_directory(id, path, mode=mode, uid=uid, gid=gid)

    async def usage(self, ids: list[str]) -> dict[str, Usage]:
        async def one(id: str) -> tuple[str, Usage] | None:
            try:
                worker = await self._worker(id)
                usage = await worker.driver.usage(id)
                return id, with_waits(usage, await blocking(self._sampler.read, id))
            except LamellaError:
                return None

        found = await asyncio.gather(*(one(id) for id in ids))
        return dict(item for item in found if item is not None)

    async def mechanisms(self, id: str) -> list[Mechanism]:
        worker = await self._worker(id)
        found = await worker.driver.mechanisms(id)
        if not found:
            return found
        found = self.memory.mechanisms(id, found)
        shared = await self._sharing.mechanisms(worker.asked, worker.driver)
        given = await self.processors.mechanisms(id)
        return [*found, *given, *shared, *await ceilings(self.network, worker.asked)]

    async def judgements(self, ids: list[str]) -> dict[str, list[Judgement]]:
        workers = [(worker.asked, True) for worker in self._workers.values() if worker.running]
        asked = {item.id: item for item in watched(workers)}
        return {id: await blocking(self._sampler.judgements, id, asked[id].promise) for id in ids if id in asked}

    # What only some levels have

    async def _able(self, id: str, protocol: type[T], what: str) -> T:
        worker = await self._worker(id)
        if not isinstance(worker.driver, protocol):
            level = worker.asked.instance.spec.isolation
            raise Unsupported(f"a {level} has no {what}", hint="--isolation vm has")
        return worker.driver

    async def reset(self, id: str) -> None:
        await (await self._able(id, HasMachine, "reset button")).reset(id)

    async def screenshot(self, id: str) -> bytes:
        return await (await self._able(id, HasScreen, "screen")).screenshot(id)

    async def input(self, id: str, input: Input) -> None:
        await (await self._able(id, HasScreen, "keyboard or pointer")).input(id, input)

    async def desktop(self, id: str, kind: str) -> DesktopTicket:
        return await (await self._able(id, HasScreen, "screen")).desktop(id, kind)

    async def screen(self, id: str, kind: str) -> ProcessStream:
        return await (await self._able(id, HasScreen, "screen")).screen(id, kind)

    async def dump(self, id: str, *, crash: bool) -> AsyncIterator[bytes]:
        driver = await self._able(id, HasMachine, "memory that can be written out")
        async with aclosing(_generator(driver.dump(id, crash=crash))) as pieces:
            async for piece in pieces:
                yield piece

    async def capture(self, id: str, wish: CaptureSpec) -> AsyncIterator[bytes]:
        port = port_of((await self._worker(id)).asked, wish.nic or None)
        async with aclosing(_generator(self.network.capture(port.id, wish))) as pieces:
            async for piece in pieces:
                yield piece

    async def export_image(self, digest: str, format: str) -> AsyncIterator[bytes]:
        async with aclosing(_generator(self.library.export(digest, format))) as pieces:
            async for piece in pieces:
                yield piece

    def storage(self, request: AnyStorageRequest) -> AsyncIterator[StorageProgress]:
        return self.storage_wing.request(request)

    def export_volume(self, volume: Volume, snapshot: str, format: str) -> AsyncIterator[bytes]:
        return self.storage_wing.export(volume, snapshot, format)

    async def facts(self) -> HostStatus:
        pools = {name: await self.storage_wing.pool_status(name) for name in self.storage_wing.pool_names}
        facts = await blocking(read_facts, self._capabilities, pools, self.network.underlay)
        facts.sharing = await self._sharing.consolidation()
        return facts

    async def collect_images(self, keep: set[str]) -> int:
        freed = await self.library.collect(keep)
        for driver in self._drivers.values():
            if isinstance(driver, DerivesImages):
                freed += await driver.collect_images(keep)
        return freed

    async def image(self, request: ImageRequest) -> AsyncIterator[ImageProgress]:
        lines: asyncio.Queue[ImageProgress | None] = asyncio.Queue(64)

        def report(progress: Progress) -> None:
            with suppress(asyncio.QueueFull):
                lines.put_nowait(
                    ImageProgress(step=progress.step, done=progress.done, total=progress.total, unit=progress.unit)
                )

        async def work() -> ImageStatus:
            try:
                return await self._bring(request, report)
            finally:
                # The end must be heard even when nobody kept up with the progress.
                while lines.full():
                    lines.get_nowait()
                lines.put_nowait(None)

        task = asyncio.create_task(work(), name=f"image {request.verb}")
        try:
            while (line := await lines.get()) is not None:
                yield line
            try:
                yield ImageProgress(result=await task)
            except LamellaError as error:
                yield ImageProgress(error_code=error.code, error=error.message, hint=error.hint)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, LamellaError):
                await task

    async def _bring(self, request: ImageRequest, report: Callable[[Progress], None]) -> ImageStatus:
        if request.verb == "pull":
            credentials = None
            if request.username:
                credentials = Credentials(username=request.username, password=request.password)
            return await self.library.pull(request.source, report, credentials=credentials, insecure=request.insecure)
        if request.verb == "import":
            return await self.library.import_file(request.source, report, initrd=request.initrd)
        if request.verb == "build":
            return await self.library.build(request.source, report, packages=request.packages, disk=request.disk)
        raise Invalid(f"an image cannot be brought in by {request.verb!r}", hint="pull, import or build", field="verb")


def _generator(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Whoever leaves in the middle has it end at once, not when it is collected."""
    return cast("AsyncGenerator[bytes]", pieces)
