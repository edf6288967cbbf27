"""The plan of one instance: pure, so every corner can be visited."""

from datetime import UTC, datetime, timedelta

from hypothesis import assume, given
from hypothesis import strategies as st

from lamella.host.compute.driver import Limits, Observed
from lamella.host.plan import (
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
    limits_of,
    plan,
    restart_delay,
)
from lamella.model.assignment import Assignment
from lamella.model.board import Disk
from lamella.model.instance import InstanceSpec, InstanceStatus, Phase, Power, RestartMode, RestartPolicy
from lamella.model.resource import new_resource
from lamella.model.storage import VolumeForm, VolumeSpec, VolumeStatus

AT = datetime(2026, 1, 1, tzinfo=UTC)


def asked(
    spec: InstanceSpec, status: InstanceStatus | None = None, *, deleted: bool = False, old: tuple[str, ...] = ()
) -> Assignment:
    instance = new_resource("instance", "web", spec, status or InstanceStatus())
    instance.deleted_at = AT if deleted else None
    volume = new_resource("volume", "root", VolumeSpec(form=VolumeForm.FILESYSTEM), VolumeStatus())
    retired = [new_resource("volume", name, VolumeSpec(form=VolumeForm.BLOCK), VolumeStatus()) for name in old]
    return Assignment(revision=1, instance=instance, volume=volume, retired_volumes=retired)


specs = st.builds(
    InstanceSpec,
    image=st.just("x"),
    power=st.sampled_from(Power),
    epoch=st.integers(0, 4),
    attach_epoch=st.integers(0, 4),
    memory=st.sampled_from([None, 64 << 20, 128 << 20]),
    restart=st.builds(RestartPolicy, mode=st.sampled_from(RestartMode), retries=st.integers(0, 3)),
)
statuses = st.builds(
    InstanceStatus,
    epoch=st.integers(0, 4),
    restarts=st.integers(0, 5),
    exit_code=st.sampled_from([None, 0, 1, 137]),
    finished_at=st.sampled_from([None, AT - timedelta(seconds=1), AT - timedelta(hours=1)]),
    phase=st.sampled_from(Phase),
)
seen_phases = st.sampled_from([None, Phase.STARTING, Phase.RUNNING, Phase.PAUSED, Phase.SUSPENDED, Phase.STOPPED])


class World:
    """A machine as small as the plan can see: enough to carry its steps out."""

    def __init__(self, phase: Phase | None, status: InstanceStatus) -> None:
        self.phase = phase
        self.status = status
        self.applied: Limits | None = None
        self.launches = 0

    def seen(self) -> Observed | None:
        return None if self.phase is None else Observed(phase=self.phase)

    def do(self, step: object, spec: InstanceSpec) -> None:
        match step:
            case Prepare():
                assert self.phase not in (Phase.RUNNING, Phase.PAUSED), "prepared over a running instance"
                self.phase, self.applied = Phase.STARTING, limits_of(spec)
            case Launch():
                assert self.phase is Phase.STARTING, "launched without being prepared"
                self.phase, self.status.epoch = Phase.RUNNING, step.epoch
                self.launches += 1
            case Suspend():
                assert self.phase in (Phase.RUNNING, Phase.PAUSED)
                self.phase = Phase.SUSPENDED
            case Wake():
                assert self.phase is Phase.SUSPENDED
                self.phase, self.applied = Phase.RUNNING, limits_of(spec)
            case Take():
                assert self.phase is Phase.STARTING
                self.applied = limits_of(spec)
            case Stop():
                self.phase = Phase.STOPPED
                self.status.exit_code, self.status.finished_at = 143, AT
            case Pause():
                assert self.phase is Phase.RUNNING
                self.phase = Phase.PAUSED
            case Resume():
                assert self.phase is Phase.PAUSED
                self.phase = Phase.RUNNING
            case Update():
                self.applied = step.limits
            case Discard():
                self.phase = None if self.phase is Phase.STARTING else self.phase
            case Remove():
                self.phase = None


@given(specs, statuses, seen_phases, st.booleans())
def test_a_plan_carried_out_comes_to_rest_where_it_was_asked_to(
    spec: InstanceSpec, status: InstanceStatus, phase: Phase | None, still: bool
) -> None:
    world = World(phase, status)
    for _ in range(6):
        chosen = plan(asked(spec, world.status), world.seen(), world.applied, AT, still=still)
        if not chosen.steps:
            break
        for step in chosen.steps:
            world.do(step, spec)
    else:
        raise AssertionError("the plan does not come to rest")
    alive = world.phase in (Phase.RUNNING, Phase.PAUSED)
    if spec.power is Power.STOPPED:
        assert not alive and world.phase not in (Phase.STARTING, Phase.SUSPENDED)
    elif spec.power is Power.SUSPENDED:
        assert not alive and world.phase is not Phase.STARTING
        assert world.launches == 0
    elif spec.power is Power.READY:
        assert alive or world.phase is Phase.STARTING
        assert world.launches == 0
    elif alive:
        assert world.status.epoch >= spec.epoch
        assert world.applied == limits_of(spec)
        assert (world.phase is Phase.PAUSED) == (still or spec.power is Power.PAUSED)
    else:
        assert world.status.epoch >= spec.epoch
    assert world.launches <= 1


@given(specs, statuses, seen_phases)
def test_what_is_to_go_is_removed_whatever_state_it_is_in(
    spec: InstanceSpec, status: InstanceStatus, phase: Phase | None
) -> None:
    chosen = plan(asked(spec, status, deleted=True), World(phase, status).seen(), None, AT)
    assert chosen.steps == (Remove(),)


names = st.frozensets(st.sampled_from(["a", "b", "c"]))


@given(specs, statuses, seen_phases, names, names, st.sampled_from([(), ("old",), ("old", "older")]))
def test_devices_come_and_go_and_what_is_retired_is_let_go_of_last(
    spec: InstanceSpec,
    status: InstanceStatus,
    phase: Phase | None,
    wanted: frozenset[str],
    plugged: frozenset[str],
    old: tuple[str, ...],
) -> None:
    # What waits has never run, and takes no devices.
    assume(spec.power is not Power.READY or phase not in (Phase.RUNNING, Phase.PAUSED))
    spec.disks = [Disk(name=name, size=1 << 30) for name in sorted(wanted)]
    world = World(phase, status)
    present = plugged | set(old)
    for _ in range(10):
        seen = world.seen()
        if seen is not None and seen.phase in (Phase.RUNNING, Phase.PAUSED):
            seen.devices = sorted(present)
        chosen = plan(asked(spec, world.status, old=old), seen, world.applied, AT)
        if not chosen.steps:
            break
        for step in chosen.steps:
            match step:
                case Rewire():
                    present = wanted
                case Prepare() | Wake():
                    present = wanted
                    world.do(step, spec)
                case Release():
                    alive = world.phase in (Phase.RUNNING, Phase.PAUSED)
                    assert not (alive and set(old) & present), "released while it is plugged in"
                    old = ()
                case _:
                    world.do(step, spec)
    else:
        raise AssertionError("the plan does not come to rest")
    assert old == ()
    if world.phase in (Phase.RUNNING, Phase.PAUSED):
        assert sorted(present) == spec.device_names


def test_a_run_that_ended_by_itself_is_left_alone_without_a_policy() -> None:
    done = InstanceStatus(epoch=1, exit_code=0, phase=Phase.STOPPED, finished_at=AT)
    assert plan(asked(InstanceSpec(image="x", epoch=1), done), Observed(phase=Phase.STOPPED), None, AT).steps == ()


def test_a_policy_waits_longer_each_time_and_not_forever() -> None:
    spec = InstanceSpec(image="x", restart=RestartPolicy(mode=RestartMode.ALWAYS))
    delays = [restart_delay(spec, InstanceStatus(restarts=n)) for n in range(30)]
    assert delays == sorted(delays, key=lambda d: d or 0)
    assert delays[0] == 0.1 and delays[-1] == 30.0


def test_on_failure_counts_its_retries_and_minds_success() -> None:
    spec = InstanceSpec(image="x", restart=RestartPolicy(mode=RestartMode.ON_FAILURE, retries=2))
    assert restart_delay(spec, InstanceStatus(exit_code=0)) is None
    assert restart_delay(spec, InstanceStatus(exit_code=1, restarts=1)) is not None
    assert restart_delay(spec, InstanceStatus(exit_code=1, restarts=2)) is None


def test_too_early_for_the_policy_is_said_in_seconds() -> None:
    spec = InstanceSpec(image="x", epoch=1, restart=RestartPolicy(mode=RestartMode.ALWAYS))
    status = InstanceStatus(epoch=1, restarts=3, finished_at=AT - timedelta(seconds=0.3))
    chosen = plan(asked(spec, status), Observed(phase=Phase.STOPPED), None, AT)
    assert chosen.steps == () and chosen.again_in is not None and 0.4 < chosen.again_in <= 0.5


def test_the_end_of_a_run_is_told_once() -> None:
    running = InstanceStatus(phase=Phase.RUNNING, epoch=1, started_at=AT)
    ended = Observed(phase=Phase.STOPPED, exit_code=7, finished_at=AT + timedelta(seconds=1))
    after, events = fold(running, ended, AT)
    assert after.exit_code == 7 and [e[0] for e in events] == ["instance.ended"]
    again, events = fold(after, ended, AT)
    assert again.exit_code == 7 and events == []


def test_an_exit_during_a_daemon_s_absence_is_told_after_it() -> None:
    known = InstanceStatus(phase=Phase.RUNNING, epoch=1, started_at=AT)
    ended = Observed(phase=Phase.STOPPED, exit_code=3, started_at=AT, finished_at=AT + timedelta(hours=1))
    after, events = fold(known, ended, AT + timedelta(hours=2))
    assert (after.phase, after.exit_code, len(events)) == (Phase.STOPPED, 3, 1)


def test_a_vanished_instance_is_lost_not_ended() -> None:
    after, events = fold(InstanceStatus(phase=Phase.RUNNING, epoch=1), None, AT)
    assert after.phase is Phase.STOPPED and after.exit_code is None and after.finished_at == AT
    assert events[0][0] == "instance.lost"


def test_one_that_waits_is_taken_and_not_made_anew() -> None:
    spec = InstanceSpec(image="x", power=Power.READY)
    first = plan(asked(spec, InstanceStatus()), None, None, AT)
    assert first.steps == (Prepare(),)
    waiting = InstanceStatus(phase=Phase.READY)
    assert plan(asked(spec, waiting), Observed(phase=Phase.STARTING), None, AT).steps == ()
    after, _ = fold(waiting, Observed(phase=Phase.STARTING), AT)
    assert after.phase is Phase.READY
    taken = InstanceSpec(image="x", power=Power.RUNNING, epoch=1)
    steps = plan(asked(taken, after), Observed(phase=Phase.STARTING), None, AT).steps
    assert [type(step) for step in steps] == [Take, Launch]


def test_what_is_suspended_goes_on_in_the_same_run_and_boots_in_a_new_one() -> None:
    spec = InstanceSpec(image="x", power=Power.SUSPENDED, epoch=3)
    status = InstanceStatus(epoch=3, phase=Phase.RUNNING)
    assert plan(asked(spec, status), Observed(phase=Phase.RUNNING), limits_of(spec), AT).steps[0] == Suspend()
    status = InstanceStatus(epoch=3, phase=Phase.SUSPENDED)
    assert plan(asked(spec, status), Observed(phase=Phase.SUSPENDED), None, AT).steps == ()
    again = InstanceSpec(image="x", power=Power.RUNNING, epoch=3)
    assert plan(asked(again, status), Observed(phase=Phase.SUSPENDED), None, AT).steps == (Wake(),)
    anew = InstanceSpec(image="x", power=Power.RUNNING, epoch=4)
    steps = plan(asked(anew, status), Observed(phase=Phase.SUSPENDED), None, AT).steps
    assert [type(step) for step in steps] == [Prepare, Launch]
