"""What an asynchronous replication does next, from what is written down of it. Pure; :mod:`.cycle` carries it out.

The invariant: from the first cycle on there is a snapshot ``base`` of the target that is whole and never changes, and it is dropped
only when a newer one is written down. So the target can be promoted at every instant, and what is lost is what was written after it.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

from lamella.host.storage.driver import Extent
from lamella.host.storage.replication.journal import Journal
from lamella.model.replication import ReplicationPhase, ReplicationStatus, promised_age
from lamella.model.resource import Condition

# So many jobs a cycle takes at most; one takes a few hundredths of a second beside what it copies.
_PIECES = 16


class Step(StrEnum):
    """``make`` the target; ``drop`` stale snapshots; ``rest`` until the next is due; ``take`` a snapshot of the source; ``rewind`` the
    target to ``base``; ``copy`` what changed; ``seal`` the target as a snapshot and write it down as the new ``base``."""

    MAKE = "make"
    DROP = "drop"
    REST = "rest"
    TAKE = "take"
    REWIND = "rewind"
    COPY = "copy"
    SEAL = "seal"


def next_step(journal: Journal, *, taken: bool, sealed: bool, copied: bool, now: datetime) -> Step:
    """*taken*: the source has ``next``; *sealed*: the target has it; *copied*: this process copied all of it to the target."""
    if not journal.made:
        return Step.MAKE
    if journal.next:
        if not taken:
            return Step.TAKE
        if sealed or copied:
            return Step.SEAL
        return Step.REWIND if journal.dirty else Step.COPY
    if journal.stale:
        return Step.DROP
    return Step.REST if due_in(journal, now) > 0 else Step.TAKE


def joined(extents: Sequence[Extent], most: int = _PIECES) -> list[Extent]:
    """*extents* (in order) as at most *most* pieces: the smallest gaps are copied with what lies around them. Each piece is a job."""
    if len(extents) <= most:
        return list(extents)
    gaps = sorted(
        range(1, len(extents)), key=lambda at: extents[at].offset - extents[at - 1].offset - extents[at - 1].length
    )
    kept = set(gaps[len(extents) - most :])
    made: list[Extent] = []
    for at, extent in enumerate(extents):
        if made and at not in kept:
            first = made[-1]
            made[-1] = Extent(offset=first.offset, length=extent.offset + extent.length - first.offset)
        else:
            made.append(Extent(offset=extent.offset, length=extent.length, zero=extent.zero))
    return made


def due_in(journal: Journal, now: datetime) -> float:
    """Seconds until the next cycle begins: an interval after the last one began."""
    if journal.base_at is None:
        return 0.0
    return max(0.0, journal.replication.spec.every - (now - journal.base_at).total_seconds())


def status_of(journal: Journal, now: datetime, *, failing: str = "", hint: str = "") -> ReplicationStatus:
    """What is told of it at *now*."""
    age = (now - journal.base_at).total_seconds() if journal.base_at is not None else None
    day = [one.oldest for one in journal.ages if (now - one.at).total_seconds() < 86400]
    phase = _phase(journal, age)
    why = failing or (journal.degraded_why if phase is ReplicationPhase.DEGRADED else "")
    conditions = (
        [] if not why else [Condition(type="Current", status=False, reason=phase.value, message=why, hint=hint)]
    )
    return ReplicationStatus(
        phase=phase,
        host=journal.source.status.host,
        cycles=journal.cycles,
        last=journal.base_at,
        rpo=age,
        worst=max([*day, *([age] if age is not None else [])], default=None),
        moved=journal.moved,
        took=journal.took,
        degraded_since=journal.degraded_since,
        promoted_at=journal.promoted_at,
        conditions=conditions,
    )


def _phase(journal: Journal, age: float | None) -> ReplicationPhase:
    if journal.promoted_at is not None:
        return ReplicationPhase.PROMOTED
    if journal.replication.spec.paused:
        return ReplicationPhase.PAUSED
    if age is None:
        return ReplicationPhase.SEEDING
    late = age > promised_age(journal.replication.spec, journal.took)
    return ReplicationPhase.LATE if late else ReplicationPhase.CURRENT
