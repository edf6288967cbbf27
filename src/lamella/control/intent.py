"""Intent and its fulfilment: what the power verbs write, and when an instance has come to where it was asked to. Pure."""

from collections.abc import Callable
from typing import Literal

from lamella.model.errors import Conflict
from lamella.model.instance import Instance, Phase, Power
from lamella.model.resource import Condition

PowerVerb = Literal["start", "stop", "restart", "pause", "resume"]


def refusal(instance: Instance) -> Condition | None:
    """Why the newest intent for something that runs, and goes on running, could not be carried out."""
    status = instance.status
    if status.observed_generation < instance.generation or status.phase not in (Phase.RUNNING, Phase.PAUSED):
        return None
    return next((item for item in status.conditions if item.type == "Ready" and not item.status), None)


def settled(instance: Instance) -> bool:
    """Whether the host has seen the newest intent and come to rest with it."""
    status, spec = instance.status, instance.spec
    if status.observed_generation < instance.generation or instance.deleted_at is not None:
        return False
    if status.phase is Phase.FAILED or refusal(instance) is not None:
        return True
    if spec.power is Power.STOPPED:
        # One that never ran is pending, and may stay so.
        return status.phase in (Phase.STOPPED, Phase.PENDING)
    if spec.power is Power.READY:
        return status.phase is Phase.READY
    if status.epoch < spec.epoch:
        return False
    if spec.power is Power.PAUSED:
        return status.phase in (Phase.PAUSED, Phase.STOPPED)
    return status.phase in (Phase.RUNNING, Phase.STOPPED)


def _stopped(instance: Instance) -> bool:
    status = instance.status
    over = status.phase is Phase.STOPPED and status.epoch >= instance.spec.epoch
    return over or status.phase is Phase.FAILED


CONDITIONS: dict[str, Callable[[Instance], bool]] = {
    "settled": settled,
    # What ran and is over already was running: nobody waits for a moment that has passed.
    "running": lambda instance: instance.status.phase is Phase.RUNNING or _stopped(instance),
    "stopped": _stopped,
    "removed": lambda instance: False,
}


def apply_power(instance: Instance, verb: PowerVerb) -> None:
    """Change the intent of *instance* as *verb* says; what is so already stays as it is.

    :raise Conflict: when the verb makes no sense in the state that it is in.
    """
    spec, phase = instance.spec, instance.status.phase
    if verb == "start":
        resting = phase in (Phase.STOPPED, Phase.FAILED) and instance.status.epoch >= spec.epoch
        if spec.power is Power.STOPPED or resting:
            spec.epoch += 1
        spec.power = Power.RUNNING
    elif verb == "stop":
        spec.power = Power.STOPPED
    elif verb == "restart":
        spec.epoch += 1
        spec.power = Power.RUNNING
    elif verb == "pause":
        if phase not in (Phase.RUNNING, Phase.PAUSED, Phase.STARTING):
            raise Conflict(f"{instance.name} is {phase}; only a running instance can be paused", hint="start it first")
        spec.power = Power.PAUSED
    else:
        if spec.power is not Power.PAUSED:
            raise Conflict(f"{instance.name} is not paused", hint="`lamella start` starts a stopped one")
        spec.power = Power.RUNNING
