"""What to do next for one instance: a pure function from (asked, seen) to a list of steps.

The steps leave no choices to whoever runs them. Each may be run again after a crash at any line.
"""

from datetime import datetime, timedelta

import msgspec

from lamella.host.compute.driver import Limits, Observed
from lamella.model.assignment import Assignment
from lamella.model.instance import STOP_TIMEOUT, InstanceSpec, InstanceStatus, Phase, Power, RestartMode
from lamella.model.storage import device_of

FIRST_DELAY = 0.1
LONGEST_DELAY = 30.0
# A run of this many seconds counts as well: the delay before the next restart begins anew.
GOOD_RUN = 10.0


class Step(msgspec.Struct, tag=True, frozen=True):
    """One thing to do. Subclasses say what; ``because`` is for ``explain``."""


class Prepare(Step, frozen=True):
    """Volume, network, and the instance itself up to the moment before its command runs."""


class Launch(Step, frozen=True):
    """Run the command: the run number *epoch*. *restart* when a policy asked, not a person."""

    epoch: int
    restart: bool = False
    wait_for_attach: bool = False


class Stop(Step, frozen=True):
    timeout: float
    because: str


class Pause(Step, frozen=True):
    pass


class Resume(Step, frozen=True):
    pass


class Suspend(Step, frozen=True):
    """Keep its memory and end it."""


class Wake(Step, frozen=True):
    """Go on from the memory that was kept."""


class Take(Step, frozen=True):
    """Tell one that was made and waits what it is."""


class Update(Step, frozen=True):
    limits: Limits


class Rewire(Step, frozen=True):
    """Plug in what is asked for and missing, unplug what nobody asks for any more."""


class Release(Step, frozen=True):
    """Volumes and ports that were retired, and are in no machine any more, go for good."""


class Discard(Step, frozen=True):
    """Throw away what was prepared and never launched, or what a stopped run left on the network."""


class Remove(Step, frozen=True):
    """Instance, port and volume go from this host."""


AnyStep = (
    Prepare | Launch | Stop | Pause | Resume | Suspend | Wake | Take | Update | Rewire | Release | Discard | Remove
)


class Plan(msgspec.Struct, frozen=True):
    """Steps in order; ``again_in`` says in how many seconds to look anew even if nothing happens."""

    steps: tuple[AnyStep, ...] = ()
    again_in: float | None = None


def limits_of(spec: InstanceSpec) -> Limits:
    return Limits(cpu=spec.cpu, memory=spec.memory, pids=spec.pids)


def grace_of(spec: InstanceSpec) -> float:
    """Seconds between asking an instance to end and forcing it."""
    if spec.grace is not None:
        return spec.grace
    return STOP_TIMEOUT if spec.stop_timeout is None else spec.stop_timeout


def restart_delay(spec: InstanceSpec, status: InstanceStatus) -> float | None:
    """Seconds from the end of the last run to the next by policy; ``None`` when the policy wants none."""
    policy = spec.restart
    if policy.mode is RestartMode.NO:
        return None
    if policy.mode is RestartMode.ON_FAILURE:
        if status.exit_code == 0:
            return None
        if policy.retries and status.restarts >= policy.retries:
            return None
    return min(FIRST_DELAY * 2 ** min(status.restarts, 20), LONGEST_DELAY)


def plan(
    asked: Assignment, seen: Observed | None, applied: Limits | None, at: datetime, *, still: bool = False
) -> Plan:
    """The steps from *seen* to what is *asked* at the time *at*. *applied* are the limits that were set last (``None``: not known). With
    *still* it is paused where it was to run: its host needs what it would take."""
    spec, status = asked.instance.spec, asked.instance.status
    if asked.instance.deleted_at is not None:
        return Plan((Remove(),))
    phase = seen.phase if seen is not None else Phase.STOPPED
    alive = phase in (Phase.RUNNING, Phase.PAUSED)
    stop = Stop(grace_of(spec), "it was asked")

    retired = bool(asked.retired_volumes or asked.retired_ports)
    if retired and not alive:
        return Plan((Discard(), Release()) if phase is Phase.STARTING else (Release(),))

    if spec.power is Power.STOPPED:
        if alive or phase is Phase.SUSPENDED:
            return Plan((stop, Discard()))
        return Plan((Discard(),)) if phase is Phase.STARTING else Plan()

    if spec.power is Power.READY:
        return Plan() if alive or phase is Phase.STARTING else Plan((Prepare(),))
    due = status.epoch < spec.epoch
    if spec.power is Power.SUSPENDED:
        # What was never begun, or is over, has nothing to keep.
        return Plan((Suspend(), Discard())) if alive else Plan((Discard(),)) if phase is Phase.STARTING else Plan()
    if phase is Phase.SUSPENDED and not due:
        return Plan((Wake(),))
    if phase is Phase.STARTING and due and status.phase is Phase.READY:
        return Plan((Take(), _launch(spec)))
    if alive and due:
        return Plan((stop, Prepare(), _launch(spec)))
    if alive:
        steps = _while_running(spec, phase, applied, still=still)
        if seen is not None and seen.devices is not None and seen.devices != devices_of(asked):
            return Plan((*steps, Rewire()))
        return Plan((*steps, Release()) if retired and not steps else steps)
    if due:
        return Plan((Prepare(), _launch(spec)))
    delay = restart_delay(spec, status)
    if delay is None:
        return Plan()
    wait = 0.0
    if status.finished_at is not None:
        wait = (status.finished_at + timedelta(seconds=delay) - at).total_seconds()
    if wait > 0:
        return Plan(again_in=wait)
    return Plan((Prepare(), Launch(epoch=spec.epoch, restart=True)))


def devices_of(asked: Assignment) -> list[str]:
    """Names of all devices that shall be plugged in and can be unplugged, sorted: attached volumes are among them."""
    return sorted([*asked.instance.spec.device_names, *(device_of(volume.id) for volume in asked.volumes.values())])


def _launch(spec: InstanceSpec) -> Launch:
    return Launch(epoch=spec.epoch, wait_for_attach=spec.attach_epoch == spec.epoch)


def _while_running(spec: InstanceSpec, phase: Phase, applied: Limits | None, *, still: bool) -> tuple[AnyStep, ...]:
    steps: list[AnyStep] = []
    wanted = limits_of(spec)
    if wanted != applied:
        steps.append(Update(wanted))
    if (still or spec.power is Power.PAUSED) and phase is Phase.RUNNING:
        steps.append(Pause())
    elif not still and spec.power is Power.RUNNING and phase is Phase.PAUSED:
        steps.append(Resume())
    return tuple(steps)


def fold(status: InstanceStatus, seen: Observed | None, at: datetime) -> tuple[InstanceStatus, list[tuple[str, str]]]:
    """*status* with what was *seen* put in, and the events that this tells of. The phase is only what reality says."""
    events: list[tuple[str, str]] = []
    if seen is None:
        phase = Phase.STOPPED if status.epoch else Phase.PENDING
        lost = status.phase in (Phase.RUNNING, Phase.PAUSED, Phase.STOPPING)
        status = msgspec.structs.replace(status, launched_cpu=None, launched_memory=None)
        if lost:
            status.exit_code, status.finished_at = None, at
            events.append(
                (
                    "instance.lost",
                    "nothing is left of the running instance: the host was restarted, or it was removed by hand",
                )
            )
        return msgspec.structs.replace(status, phase=phase, pid=None, mechanisms=[]), events
    # One that waits goes on waiting until it is launched.
    waits = seen.phase is Phase.STARTING and status.phase is Phase.READY
    after = msgspec.structs.replace(
        status,
        phase=Phase.READY if waits else seen.phase,
        pid=seen.pid,
        accelerator=seen.accelerator or status.accelerator,
        accelerator_reason=seen.accelerator_reason or status.accelerator_reason,
    )
    if seen.board_type:
        after.board = seen.board_type
    after.devices = seen.devices or []
    if seen.started_at is not None:
        after.started_at = seen.started_at
    if seen.launched is not None:
        after.launched_cpu, after.launched_memory = seen.launched.cpu, seen.launched.memory
    if seen.phase is Phase.STOPPED:
        after.launched_cpu = after.launched_memory = None
        new_end = seen.finished_at is not None and seen.finished_at != status.finished_at
        if new_end or status.phase in (Phase.RUNNING, Phase.PAUSED):
            after.exit_code, after.finished_at = seen.exit_code, seen.finished_at
            code = "an unknown code" if seen.exit_code is None else f"code {seen.exit_code}"
            events.append(("instance.ended", f"the command ended with {code}"))
            if _ran_well(after):
                after.restarts = 0
    elif seen.phase is Phase.SUSPENDED and status.phase is not Phase.SUSPENDED:
        after.pid = None
        events.append(("instance.suspended", "its memory is kept, and nothing of it runs"))
    elif seen.phase is Phase.RUNNING and status.phase in (Phase.PAUSED,):
        events.append(("instance.resumed", "it runs again"))
    elif seen.phase is Phase.PAUSED and status.phase is not Phase.PAUSED:
        events.append(("instance.paused", "it is paused"))
    return after, events


def _ran_well(status: InstanceStatus) -> bool:
    if status.started_at is None or status.finished_at is None:
        return False
    return (status.finished_at - status.started_at).total_seconds() >= GOOD_RUN
