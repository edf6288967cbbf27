"""Intent and its fulfilment: what the power verbs write, and when an instance has come to where it was asked to. Pure."""

from collections.abc import Callable
from typing import Literal

from lamella.control.fitting import SUSPENDS, check_keeps_memory
from lamella.model.errors import Conflict
from lamella.model.instance import Instance, Phase, Power
from lamella.model.resource import Condition

PowerVerb = Literal["start", "stop", "restart", "pause", "resume", "suspend"]


def refusal(instance: Instance) -> Condition | None:
    """Why the newest intent for something that runs, and goes on running, could not be carried out."""
    status = instance.status
    if status.observed_generation < instance.generation or status.phase not in (
        Phase.RUNNING,
        Phase.PAUSED,
        Phase.SUSPENDED,
    ):
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
    if spec.power is Power.SUSPENDED:
        # Its command may have ended before.
        return status.phase in (Phase.SUSPENDED, Phase.STOPPED)
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

    :raise Conflict: when the verb makes no sense in the state that it is in. :raise Unsupported: when its level cannot do that.
    """
    spec, phase = instance.spec, instance.status.phase
    if verb == "start":
        resting = phase in (Phase.STOPPED, Phase.FAILED) and instance.status.epoch >= spec.epoch
        # What is suspended goes on with the run that it was in.
        if spec.power is Power.STOPPED or (resting and not _is_suspended(instance)):
            spec.epoch += 1
        spec.power = Power.RUNNING
    elif verb == "stop":
        spec.power = Power.STOPPED
    elif verb == "restart":
        spec.epoch += 1
        spec.power = Power.RUNNING
    elif verb == "pause":
        if phase not in (Phase.RUNNING, Phase.PAUSED, Phase.STARTING) or spec.power is Power.SUSPENDED:
            raise Conflict(f"{instance.name} is {phase}; only a running instance can be paused", hint="start it first")
        spec.power = Power.PAUSED
    elif verb == "suspend":
        check_keeps_memory(spec, "suspended", SUSPENDS)
        if not _is_suspended(instance) and (phase is not Phase.RUNNING or spec.power is not Power.RUNNING):
            hint = "resume it first" if phase is Phase.PAUSED else "only what runs has a memory to keep"
            raise Conflict(f"{instance.name} is {phase}; only a running instance can be suspended", hint=hint)
        spec.power = Power.SUSPENDED
    else:
        if spec.power is not Power.PAUSED and not _is_suspended(instance):
            raise Conflict(
                f"{instance.name} is neither paused nor suspended", hint="`lamella start` starts a stopped one"
            )
        spec.power = Power.RUNNING


def _is_suspended(instance: Instance) -> bool:
    """Whether its memory lies in a file, or is about to. What ended before it could be suspended has none."""
    phase = instance.status.phase
    return phase is Phase.SUSPENDED or (instance.spec.power is Power.SUSPENDED and phase is not Phase.STOPPED)
