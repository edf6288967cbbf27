"""One instance on this host: look, plan, act, tell, and again when something changed. One task an instance, so no two acts meet."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import msgspec

from lamella.host.assembly import Assembly
from lamella.host.compute.driver import (
    SUSPENDED_MEMORY,
    ComputeDriver,
    HasProcessors,
    JoinsNamespace,
    KeepsMemory,
    Limits,
    Observed,
    TakesDevices,
)
from lamella.host.ended import EndedStream
from lamella.host.images.library import ImageLibrary
from lamella.host.journal import Journal
from lamella.host.machine import desired_network, desired_port
from lamella.host.network.driver import NetworkDriver
from lamella.host.plan import (
    AnyStep,
    Discard,
    Launch,
    Pause,
    Prepare,
    Release,
    Remove,
    Resume,
    Rewire,
    Stop,
    Suspend,
    Take,
    Update,
    Wake,
    fold,
    plan,
)
from lamella.host.processors.wing import Processors
from lamella.host.reporter import Reporter
from lamella.host.storage.wing import Storage
from lamella.model.assignment import Assignment, InstanceReport
from lamella.model.errors import CannotRun, Conflict, Internal, LamellaError, NoRoom, Unavailable, Unsupported
from lamella.model.instance import Decision, InstanceStatus, Phase, Power
from lamella.model.network import Port
from lamella.model.resource import Condition, now
from lamella.model.stream import ProcessStream

log = logging.getLogger("lamella.host.worker")

ATTACH_WAIT = 60.0
FIRST_RETRY = 0.5
LONGEST_RETRY = 60.0
# Nobody waits for these.
PASSING_PHASES = frozenset({Phase.STARTING, Phase.STOPPING, Phase.DELETING})
# Errors that trying again may cure; the others wait until somebody changes what is asked.
PASSING = (Unavailable, NoRoom, Internal)


class Wings(Protocol):
    """What a worker works with."""

    library: ImageLibrary
    network: NetworkDriver

    processors: Processors

    storage_wing: Storage

    def driver(self, isolation: str) -> ComputeDriver: ...


class Worker:
    """Makes one assignment so. ``assign`` and ``wake`` are called from the loop; everything else happens in its own task."""

    def __init__(
        self,
        assignment: Assignment,
        wings: Wings,
        reporter: Reporter,
        journal: Journal,
        gone: Callable[[str], None],
    ) -> None:
        self.id = assignment.instance.id
        self.asked = assignment
        self.driver = wings.driver(assignment.instance.spec.isolation)
        self.adopted = asyncio.Event()
        self._wings = wings
        self._reporter = reporter
        self._gone = gone
        self._journal = journal
        self._status: InstanceStatus = assignment.instance.status
        # What was launched just before a crash may not have reached control.
        self._status.epoch = max(self._status.epoch, journal.epoch(self.id))
        self._told: bytes = b""
        self._events: list[tuple[str, str]] = []
        self._applied: Limits | None = None
        self._shaped: dict[str, tuple[int | None, int | None, str]] = {}
        self._assembly = Assembly(self.id, library=wings.library, network=wings.network, storage=wings.storage_wing)
        self._wake = asyncio.Event()
        self._plugged = True
        self._held_still = ""
        self._failures = 0
        # Why the last run never began; it stays to be read until one does.
        self._unbegun = [c for c in assignment.instance.status.conditions if c.reason == CannotRun.code]
        self._error: LamellaError | None = None
        self._attach: asyncio.Future[ProcessStream] | None = None
        self._attach_asked = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=self.id)

    # --- from outside

    def assign(self, assignment: Assignment) -> None:
        """Take the newest intent; what was seen stays this worker's own knowledge."""
        same = (
            assignment.instance.generation == self.asked.instance.generation
            and not (assignment.retired_ports or assignment.retired_volumes)
            and assignment.instance.deleted_at == self.asked.instance.deleted_at
            and [port.spec.mirror for port in _ports(assignment)] == [port.spec.mirror for port in _ports(self.asked)]
        )
        self.asked = assignment
        # What a run goes on from is decided by control.
        self._status.beginning = assignment.instance.status.beginning
        self._status.template = assignment.instance.status.template
        if not same:
            self._failures, self._error = 0, None
            self._wake.set()

    def wake(self) -> None:
        """Something may have happened to it."""
        self._wake.set()

    @property
    def phase(self) -> Phase:
        """Its phase as it was seen last."""
        return self._status.phase

    def remark(self, type: str, message: str) -> None:
        """Tell an event of it that somebody else saw."""
        self._events.append((type, message))
        self._tell()

    def hold_still(self, why: str) -> None:
        """Pause it whatever was asked, until *why* is empty: somebody else needs what it would take."""
        if why and not self._held_still:
            self.remark("memory.paused", why)
        self._held_still = why
        self._wake.set()

    @property
    def waits_for_attach(self) -> bool:
        """Whether a start that was asked for begins only when somebody is attached."""
        spec = self.asked.instance.spec
        return self._status.epoch < spec.epoch == spec.attach_epoch

    @property
    def resting_after_failure(self) -> bool:
        """It failed for a reason that waiting does not cure."""
        return self._failures > 0

    @property
    def running(self) -> bool:
        """Whether it was seen to run when somebody looked last."""
        return self._status.phase is Phase.RUNNING

    async def close(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._fail_attach(Unavailable("the host's agent is ending"))

    async def attach(self, *, start: bool) -> ProcessStream:
        """The instance's streams; with *start*, in place before the command runs.

        :raise Conflict: when it does not run, and nothing is going to start it.
        """
        if start and self.waits_for_attach:
            if self._error is not None:
                raise self._error
            if self._attach is not None and not self._attach.done():
                raise Conflict("somebody else is waiting to be attached to this start")
            self._attach = asyncio.get_running_loop().create_future()
            self._attach_asked.set()
            return await asyncio.shield(self._attach)
        return await self.driver.attach(self.id)

    # --- the task

    async def _run(self) -> None:
        again: float | None = 0.0
        while True:
            if again != 0.0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(again):
                        await self._wake.wait()
            self._wake.clear()
            try:
                again = await self._converge()
                self._failures, self._error = 0, None
            except LamellaError as error:
                again = self._failed(error)
            except Exception as error:
                log.exception("instance %s", self.id)
                again = self._failed(Internal(f"{type(error).__name__}: {error}"))
            if again == -1.0:
                return

    async def _converge(self) -> float | None:
        """Look, plan and act until there is nothing to do. Returns in how many seconds to look again; -1 when it is gone."""
        for _ in range(8):
            asked = msgspec.structs.replace(
                self.asked, instance=msgspec.structs.replace(self.asked.instance, status=self._status)
            )
            seen = await self._look()
            asked.instance.status = self._status
            self.adopted.set()
            chosen = plan(asked, seen, self._applied, now(), still=bool(self._held_still))
            if not chosen.steps:
                if self._plugged and (seen is None or seen.phase in (Phase.STOPPED, Phase.SUSPENDED)):
                    # What has ended holds no link and no published port.
                    await self._unplug(asked)
                elif seen is not None and seen.phase in (Phase.RUNNING, Phase.PAUSED):
                    await self._shape(asked)
                elif seen is not None and asked.instance.spec.power is Power.READY:
                    self._phase(Phase.READY)
                self._settle(asked.instance.generation)
                return chosen.again_in
            try:
                for step in chosen.steps:
                    await self._do(step, asked)
                    if isinstance(step, Remove):
                        return -1.0
            except CannotRun as error:
                await self._never_ran(asked, error)
        raise Internal("the plan does not come to rest", hint="this is a defect; the log has more")

    async def _look(self) -> Observed | None:
        seen = await self.driver.observe(self.id)
        self._status, events = fold(self._status, seen, now())
        if self._status.accelerator and not any(d.what == "accelerator" for d in self._status.decisions):
            self.decide("accelerator", self._status.accelerator, self._status.accelerator_reason)
        self._events += events
        if events:
            self._tell()
        return seen

    async def _do(self, step: AnyStep, asked: Assignment) -> None:
        spec = asked.instance.spec
        match step:
            case Prepare():
                self._phase(Phase.STARTING)
                await self._prepare(asked)
            case Launch():
                await self._launch(step)
            case Stop():
                self._phase(Phase.STOPPING)
                rootfs = await self._assembly.image(asked)
                # Who gives it no time does not ask it either: what it makes of a signal would be a matter of luck.
                signal = (spec.stop_signal or rootfs.config.stop_signal or "SIGTERM") if step.timeout else "SIGKILL"
                await self.driver.stop(self.id, signal=signal, timeout=step.timeout)
                await self._look()
            case Pause():
                await self.driver.pause(self.id)
            case Resume():
                await self.driver.resume(self.id)
            case Suspend():
                await self._keeper().suspend(self.id)
                await self._look()
            case Wake():
                self._phase(Phase.STARTING)
                await self._prepare(asked, wakes=True)
                await self.driver.start(self.id)
                self._phase(Phase.RUNNING, ("instance.resumed", "it goes on from the memory that was kept"))
            case Take():
                await self._keeper().take(await self._assembly.machine(asked))
                self._phase(Phase.STARTING)
            case Update():
                await self.driver.update(self.id, step.limits)
                self._applied = step.limits
            case Rewire():
                await self._rewire(asked)
            case Release():
                await self._release(asked)
            case Discard():
                await self._unplug(asked)
            case Remove():
                await self._remove(asked)

    def _keeper(self) -> KeepsMemory:
        if not isinstance(self.driver, KeepsMemory):
            raise Unsupported(f"{self.driver.name} keeps no memory", hint="a microvm does")
        return self.driver

    async def _prepare(self, asked: Assignment, *, wakes: bool = False) -> None:
        began = time.perf_counter()
        self._plugged = True
        try:
            machine = await self._assembly.machine(asked)
            if wakes:
                machine = msgspec.structs.replace(machine, memory=SUSPENDED_MEMORY, fresh=False)
            for network in asked.networks.values():
                await self._wings.network.ensure_network(desired_network(network))
            await self.driver.create(machine)
        except BaseException:
            # Others may want the volumes of what does not start.
            await self._assembly.close()
            raise
        self._applied = machine.limits
        # Its command begins in the place that it was promised.
        await self._wings.processors.settle()
        if asked.port is not None:
            port = desired_port(asked.port)
            if isinstance(self.driver, JoinsNamespace):
                await self._wings.network.attach_namespace(port, await self.driver.netns(self.id))
            if port.publish:
                self._status.published = await self._wings.network.publish(port)
        log.debug("%s prepared in %.1f ms", self.id, (time.perf_counter() - began) * 1e3)

    async def _shape(self, asked: Assignment) -> None:
        """Ceilings, mirrors and processors of what runs: those asked for now, also when somebody took them away."""
        if asked.instance.status.cpus and isinstance(self.driver, HasProcessors):
            await self._wings.processors.spread(self.id, await self.driver.processors(self.id))
        for port in _ports(asked):
            wants = (port.spec.rate_in, port.spec.rate_out, port.spec.mirror)
            if any(wants) or self._shaped.get(port.id) != wants:
                await self._wings.network.shape(desired_port(port))
                self._shaped[port.id] = wants

    async def _rewire(self, asked: Assignment) -> None:
        if not isinstance(self.driver, TakesDevices):
            raise Unsupported(f"{self.driver.name} takes no devices while it runs", hint="stop it first")
        for network in asked.networks.values():
            await self._wings.network.ensure_network(desired_network(network))
        await self.driver.rewire(await self._assembly.machine(asked))
        await self._assembly.close(asked)

    async def _release(self, asked: Assignment) -> None:
        """Retired volumes and ports are deleted; control hears of it and forgets them."""
        for port in asked.retired_ports:
            await self._wings.network.detach(port.id)
        await self._assembly.close(asked)
        await self._assembly.delete(asked.retired_volumes)
        released = [item.id for item in (*asked.retired_ports, *asked.retired_volumes)]
        # Not asked for again: what is newest of the assignment says so until the next one comes.
        self.asked = msgspec.structs.replace(self.asked, retired_ports=[], retired_volumes=[])
        self._reporter.tell(
            InstanceReport(id=self.id, status=self._status, released=released, events=self._take_events())
        )

    async def _launch(self, step: Launch) -> None:
        if step.wait_for_attach:
            await self._attach_first()
        self._status.driver = self.driver.name
        self._status.epoch = step.epoch
        self._status.exit_code = None
        if step.restart:
            self._status.restarts += 1
            self._events.append(
                ("instance.restarted", f"its policy ({self.asked.instance.spec.restart.mode}) starts it again")
            )
        self._journal.write(self.id, step.epoch)
        await self.driver.start(self.id)
        self._unbegun = []
        self._phase(Phase.RUNNING, ("instance.started", f"run {step.epoch} began"))

    async def _never_ran(self, asked: Assignment, error: CannotRun) -> None:
        """A run that could not begin is a run that ended: with docker's codes, under the same policies."""
        epoch = asked.instance.spec.epoch
        if asked.instance.spec.attach_epoch == epoch and self._status.epoch < epoch:
            await self._somebody_attaches()
        self._journal.write(self.id, epoch)
        restart = self._status.epoch == epoch
        seen = await self.driver.observe(self.id)
        if seen is not None and seen.phase in (Phase.RUNNING, Phase.STARTING):
            await self.driver.stop(self.id, signal="SIGKILL", timeout=0)
            seen = await self.driver.observe(self.id)
        self._status = msgspec.structs.replace(
            self._status,
            phase=Phase.STOPPED,
            driver=self.driver.name,
            epoch=epoch,
            exit_code=error.exit_code,
            finished_at=(seen.finished_at if seen is not None else None) or now(),
            restarts=self._status.restarts + restart,
        )
        self._unbegun = [_not_ready(error)]
        self._status.conditions = self._unbegun
        self._events.append(("instance.failed", error.message))
        self.decide(f"run {epoch}", f"ended with code {error.exit_code}", error.message)
        if self._attach is not None and not self._attach.done():
            self._attach.set_result(EndedStream(error))
        self._attach_asked.clear()
        await self._unplug(asked)
        self._tell()

    async def _attach_first(self) -> None:
        await self._somebody_attaches()
        if self._attach is not None and not self._attach.done():
            self._attach.set_result(await self.driver.attach(self.id))

    async def _somebody_attaches(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(ATTACH_WAIT):
                await self._attach_asked.wait()
        self._attach_asked.clear()

    def _fail_attach(self, error: LamellaError) -> None:
        if self._attach is not None and not self._attach.done():
            self._attach.set_exception(error)
            # Nobody may be listening any more; that is no error of ours.
            self._attach.exception()
        self._attach_asked.clear()

    async def _unplug(self, asked: Assignment) -> None:
        for port in _ports(asked):
            await self._wings.network.detach(port.id)
        self._status.published = []
        seen = await self.driver.observe(self.id)
        if seen is not None and seen.phase is Phase.STARTING:
            await self.driver.remove(self.id)
        await self._assembly.close()
        self._wings.storage_wing.rest([*([asked.volume] if asked.volume is not None else []), *asked.disks.values()])
        self._plugged = False

    async def _remove(self, asked: Assignment) -> None:
        self._phase(Phase.DELETING)
        await self._let_go(asked)
        await self._assembly.close()
        own = [] if asked.volume is None else [asked.volume]
        await self._assembly.delete([*own, *asked.disks.values(), *asked.retired_volumes])
        self._journal.forget(self.id)
        self._reporter.tell(InstanceReport(id=self.id, status=self._status, removed=True, events=self._take_events()))
        self._fail_attach(Conflict("the instance was removed"))
        self._gone(self.id)

    async def _let_go(self, asked: Assignment) -> None:
        """Instance and port side by side: the kernel takes its time for a link."""
        going = [self.driver.remove(self.id)]
        going += [self._wings.network.detach(port.id) for port in (*_ports(asked), *asked.retired_ports)]
        for failed in await asyncio.gather(*going, return_exceptions=True):
            if failed is not None:
                raise failed

    # --- telling

    def _phase(self, phase: Phase, *events: tuple[str, str]) -> None:
        self._status = msgspec.structs.replace(self._status, phase=phase)
        self._events += events
        self._tell()

    def _settle(self, generation: int) -> None:
        self._status = msgspec.structs.replace(self._status, observed_generation=generation, conditions=self._unbegun)
        self._tell()

    def _failed(self, error: LamellaError) -> float | None:
        """Say what went wrong; returns when to try again."""
        self.adopted.set()
        self._failures += 1
        self._error = error
        passing = isinstance(error, PASSING)
        generation = self.asked.instance.generation
        # What runs goes on running: it is a change of it that could not be made.
        runs = self._status.phase in (Phase.RUNNING, Phase.PAUSED)
        self._status = msgspec.structs.replace(
            self._status,
            phase=self._status.phase if runs else Phase.FAILED,
            conditions=[_not_ready(error)],
            observed_generation=generation,
        )
        if self._failures == 1:
            self._events.append(("instance.failed", error.message))
        self._fail_attach(error)
        self._tell()
        return min(FIRST_RETRY * 2 ** (self._failures - 1), LONGEST_RETRY) if passing else None

    def _tell(self) -> None:
        shape = msgspec.msgpack.encode(self._status)
        if shape == self._told and not self._events:
            return
        self._told = shape
        report = InstanceReport(id=self.id, status=self._status, events=self._take_events())
        self._reporter.tell(report, patient=self._status.phase in PASSING_PHASES and not report.events)

    def _take_events(self) -> list[tuple[str, str]]:
        events, self._events = self._events, []
        return events

    def decide(self, what: str, chosen: str, because: str) -> None:
        """Note a decision of this host for ``explain``."""
        decision = Decision(at=now(), what=what, chosen=chosen, because=because)
        self._status.decisions = [*self._status.decisions, decision]


def _ports(asked: Assignment) -> list[Port]:
    return [port for port in (asked.port, *asked.ports.values()) if port is not None]


def _not_ready(error: LamellaError) -> Condition:
    return Condition(type="Ready", status=False, reason=error.code, message=error.message, hint=error.hint, since=now())
