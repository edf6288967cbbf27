"""What the power verbs make of an instance that is suspended, or cannot be."""

import pytest

from lamella.control.intent import PowerVerb, apply_power, refusal, settled
from lamella.control.shares import counts
from lamella.model.errors import Conflict, LamellaError, Unsupported
from lamella.model.instance import Instance, InstanceSpec, InstanceStatus, Isolation, Phase, Power
from lamella.model.resource import Condition, new_resource


def instance(power: Power, phase: Phase, *, level: Isolation = Isolation.MICROVM, seen: bool = True) -> Instance:
    spec = InstanceSpec(image="x", isolation=level, power=power, epoch=1)
    status = InstanceStatus(phase=phase, epoch=1, observed_generation=1 if seen else 0)
    return new_resource("instance", "web", spec, status)


@pytest.mark.parametrize(
    ("verb", "power", "epoch"),
    [
        ("suspend", Power.SUSPENDED, 1),
        ("resume", Power.RUNNING, 1),
        ("start", Power.RUNNING, 1),
        ("stop", Power.STOPPED, 1),
        ("restart", Power.RUNNING, 2),
    ],
)
def test_a_suspended_one_goes_on_or_begins_anew(verb: PowerVerb, power: Power, epoch: int) -> None:
    # Its last resume may have been refused: the memory is there all the same.
    for phase in (Phase.SUSPENDED, Phase.FAILED):
        asleep = instance(Power.SUSPENDED, phase)
        apply_power(asleep, verb)
        assert (asleep.spec.power, asleep.spec.epoch) == (power, epoch)


@pytest.mark.parametrize("first", ["stop", "start"])
def test_what_ended_before_it_could_be_suspended_starts_anew(first: PowerVerb) -> None:
    over = instance(Power.SUSPENDED, Phase.STOPPED)
    for verb in ("resume", "suspend", "pause"):
        with pytest.raises(Conflict):
            apply_power(over, verb)
    apply_power(over, first)
    apply_power(over, "start")
    assert (over.spec.power, over.spec.epoch) == (Power.RUNNING, 2)


@pytest.mark.parametrize(
    ("power", "phase", "error"),
    [
        (Power.STOPPED, Phase.STOPPED, "is stopped; only a running"),
        (Power.PAUSED, Phase.PAUSED, "is paused; only a running"),
        (Power.RUNNING, Phase.STARTING, "is starting; only a running"),
        (Power.PAUSED, Phase.RUNNING, "only a running"),
        (Power.RUNNING, Phase.FAILED, "is failed; only a running"),
    ],
)
def test_only_what_runs_can_be_suspended(power: Power, phase: Phase, error: str) -> None:
    with pytest.raises(Conflict, match=error):
        apply_power(instance(power, phase), "suspend")


@pytest.mark.parametrize("level", sorted(set(Isolation) - {Isolation.MICROVM, Isolation.VM}))
def test_a_level_that_keeps_no_memory_says_who_does(level: Isolation) -> None:
    with pytest.raises(Unsupported) as refused:
        apply_power(instance(Power.RUNNING, Phase.RUNNING, level=level), "suspend")
    assert refused.value.hint == "--isolation microvm or vm can" and refused.value.field == "spec.isolation"


@pytest.mark.parametrize("verb", ["pause"])
def test_what_is_suspended_cannot_be_paused(verb: PowerVerb) -> None:
    for phase in (Phase.SUSPENDED, Phase.RUNNING):
        with pytest.raises(LamellaError):
            apply_power(instance(Power.SUSPENDED, phase), verb)


def test_it_is_settled_when_it_is_suspended_or_over_or_was_refused() -> None:
    assert settled(instance(Power.SUSPENDED, Phase.SUSPENDED))
    assert settled(instance(Power.SUSPENDED, Phase.STOPPED))
    assert not settled(instance(Power.SUSPENDED, Phase.RUNNING))
    assert not settled(instance(Power.SUSPENDED, Phase.SUSPENDED, seen=False))
    assert not settled(instance(Power.RUNNING, Phase.SUSPENDED))
    refused = instance(Power.SUSPENDED, Phase.RUNNING)
    refused.status.conditions = [Condition(type="Ready", status=False, reason="no-room", message="the disk is full")]
    assert settled(refused) and refusal(refused) is refused.status.conditions[0]


def test_it_counts_until_it_is_suspended_and_from_the_moment_that_it_is_to_go_on() -> None:
    assert counts(instance(Power.SUSPENDED, Phase.RUNNING))
    assert not counts(instance(Power.SUSPENDED, Phase.SUSPENDED))
    assert counts(instance(Power.RUNNING, Phase.SUSPENDED))
