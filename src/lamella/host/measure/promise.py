"""What happened between two readings, held against what was promised at that time. Pure."""

import msgspec

from lamella.host.measure.counters import Counters
from lamella.host.measure.rings import Slot
from lamella.model.instance import InstanceSpec, Isolation

# Two readings that are farther apart than this many seconds are no measurement: what happened between them is not known.
LONGEST = 3.0
# The kernel lets a group have a little more than its limit for a moment: it charges in batches, and what cannot wait by force.
_SLACK = 1.02
# Bits a second that are bytes.
_BITS = 8


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """Cores, bytes, and bits a second; 0 and ``None`` are no promise. With *exact*, the group holds nothing but the instance, so that what
    was asked is also what the group may use; a machine's group holds its emulator too, and has a limit of its own."""

    cpu_guarantee: float = 0.0
    cpu_ceiling: float | None = None
    memory_floor: int = 0
    memory_ceiling: int | None = None
    rate_in: int | None = None
    rate_out: int | None = None
    exact: bool = True


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """An instance to be measured: what it was promised, and its first NIC's links in the layer's namespace (bytes that come in to the
    instance are sent by the first, those that go out by the second, or received by the first where there is none). While it does not run
    (*running*) nothing is read, and what was measured of it is kept."""

    id: str
    promise: Promise
    links: tuple[str, str] | None = None
    running: bool = True


def promise_of(spec: InstanceSpec) -> Promise:
    """What *spec* asks for. Of NICs, the first is counted."""
    nic = spec.nics[0] if spec.nics else None
    return Promise(
        cpu_guarantee=(spec.cpu_guarantee or 0) / 1000,
        cpu_ceiling=spec.cpu / 1000 if spec.cpu is not None else None,
        memory_floor=spec.memory_guarantee or 0,
        memory_ceiling=spec.memory,
        rate_in=nic.rate_in if nic is not None else None,
        rate_out=nic.rate_out if nic is not None else None,
        exact=spec.isolation is Isolation.CONTAINER,
    )


def between(before: Counters, after: Counters, promise: Promise, earlier: Counters | None = None) -> Slot | None:
    """What happened from *before* to *after*; ``None`` when that is no measurement: too long ago, or counters of another run.
    *earlier* is the reading before *before*: who reaches its limit just before a reading is killed just after it."""
    seconds, used = after.at - before.at, after.used - before.used
    if not 0 < seconds <= LONGEST or used < 0 or after.oom_kills < before.oom_kills:
        return None
    slot = Slot(seconds=seconds, cpu=used, memory=float(after.memory or 0))
    slot.throttled = max(0.0, after.throttled - before.throttled)
    _wait(slot, before, after)
    _processor(slot, before, after, promise)
    _memory(slot, before, after, promise)
    if after.full == (earlier or before).full and not (before.at_limit or after.at_limit):
        slot.outside = slot.kills
    _network(slot, before, after, promise)
    return slot


def _wait(slot: Slot, before: Counters, after: Counters) -> None:
    if before.cpu_waits is not None and after.cpu_waits is not None:
        slot.waited = max(0.0, after.cpu_waits.some - before.cpu_waits.some)
    if before.memory_waits is not None and after.memory_waits is not None:
        slot.memory_waited = max(0.0, after.memory_waits.some - before.memory_waits.some)
    if before.io_waits is not None and after.io_waits is not None:
        slot.io_waited = max(0.0, after.io_waits.some - before.io_waits.some)


def _processor(slot: Slot, before: Counters, after: Counters, promise: Promise) -> None:
    if promise.cpu_guarantee and before.cpu_waits is not None and after.cpu_waits is not None:
        # Who is throttled waits too, but for itself: its ceiling is not below its guarantee.
        waited = max(0.0, slot.waited - slot.throttled)
        slot.promised = promise.cpu_guarantee * slot.seconds
        slot.owed = min(slot.promised, slot.cpu + waited)
        lost = promise.cpu_guarantee * waited - slot.cpu
        if before.cpu_waits.full is not None and after.cpu_waits.full is not None:
            lost = _taken(slot, max(0.0, after.cpu_waits.full - before.cpu_waits.full), promise.cpu_guarantee)
        slot.short = max(0.0, min(slot.owed - slot.cpu, lost))
    ceiling = promise.cpu_ceiling if promise.exact else after.cpu_limit
    if promise.cpu_ceiling is not None and ceiling is not None:
        slot.capped, slot.allowed = slot.cpu, ceiling * slot.seconds


def _taken(slot: Slot, full: float, guarantee: float) -> float:
    """Seconds that others took of *guarantee*: from those in which nothing of it ran though it wanted (*full*), which waiting behind its
    own threads is not in. Below a whole core it is owed that share of the time in which it wanted anything, and no more."""
    return guarantee * max(0.0, full - slot.throttled) - max(0.0, 1.0 - guarantee) * slot.cpu


def _memory(slot: Slot, before: Counters, after: Counters, promise: Promise) -> None:
    slot.kills = float(after.oom_kills - before.oom_kills)
    if after.memory is None:
        return
    ceiling = promise.memory_ceiling if promise.exact else after.memory_limit
    if promise.memory_ceiling is not None and ceiling is not None:
        slot.memory_capped = slot.seconds
        slot.over = slot.seconds if after.memory > ceiling * _SLACK else 0.0
    if promise.memory_floor and before.memory_waits is not None and after.memory_waits is not None:
        slot.floored = slot.seconds
        if after.memory_limit is not None and after.memory_limit < promise.memory_floor:
            slot.below = slot.seconds
        elif after.memory < promise.memory_floor:
            # It has less than it was promised, and waits for memory: somebody else has it.
            slot.below = min(slot.seconds, slot.memory_waited)


def _network(slot: Slot, before: Counters, after: Counters, promise: Promise) -> None:
    if promise.rate_in and before.received is not None and after.received is not None:
        slot.received = max(0.0, float(after.received - before.received))
        slot.received_allowed = promise.rate_in / _BITS * slot.seconds
    if promise.rate_out and before.sent is not None and after.sent is not None:
        slot.sent = max(0.0, float(after.sent - before.sent))
        slot.sent_allowed = promise.rate_out / _BITS * slot.seconds
