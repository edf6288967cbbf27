"""What is done when a host runs out of memory, before its kernel kills somebody: step by step, the mildest first. Pure."""

from collections.abc import Sequence
from enum import IntEnum

import msgspec

from lamella.model.instance import Priority

# What is available of all memory when a step begins; it ends when there is half as much again.
_BEGINS = {1: 0.10, 2: 0.03, 3: 0.015}
_ENDS = 1.5


class Step(IntEnum):
    """``RECLAIM`` takes at once what nobody needs; ``PAUSE`` has instances of low priority stand still; ``KILL`` ends them, where an
    operator asked for that."""

    CALM = 0
    RECLAIM = 1
    PAUSE = 2
    KILL = 3


class HostMemory(msgspec.Struct, kw_only=True, frozen=True):
    """Bytes that a host has, and that can be had without anybody's loss (``MemAvailable``)."""

    total: int
    available: int


class Candidate(msgspec.Struct, kw_only=True, frozen=True):
    """An instance that runs: ``resident`` is what it takes of the host, in bytes."""

    id: str
    priority: Priority
    resident: int
    paused: bool = False


def step(host: HostMemory, before: Step, *, kills: bool = False) -> Step:
    """The step that *host* is on, after *before*."""
    most = Step.KILL if kills else Step.PAUSE
    for wanted in (Step.KILL, Step.PAUSE, Step.RECLAIM):
        begins = _BEGINS[wanted] * (_ENDS if before >= wanted else 1)
        if wanted <= most and host.available < begins * host.total:
            return wanted
    return Step.CALM


def next_to_pause(candidates: Sequence[Candidate]) -> str | None:
    """Whose turn it is: of those of low priority that run, the one that takes most. Who did not say ``low`` is never paused."""
    return _largest([one for one in candidates if one.priority is Priority.LOW and not one.paused])


def next_to_kill(candidates: Sequence[Candidate]) -> str | None:
    """Of those of low priority, the one that takes most."""
    return _largest([one for one in candidates if one.priority is Priority.LOW])


def _largest(candidates: Sequence[Candidate]) -> str | None:
    return max(candidates, key=lambda one: (one.resident, one.id)).id if candidates else None
