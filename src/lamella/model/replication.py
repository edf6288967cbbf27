"""A volume that is kept a second time in another pool, and how far behind the second one is. Times are seconds, sizes bytes."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.resource import Condition, Resource


class ReplicationMode(StrEnum):
    """``async`` copies what changed every so often; ``sync`` acknowledges a write when it is in both places."""

    ASYNC = "async"
    SYNC = "sync"


class ReplicationPhase(StrEnum):
    """``seeding``: no whole copy yet. ``current``: the copy is as good as its mode promises. ``late``: the newest cycle is older than two
    intervals. ``degraded``: writes are acknowledged with one copy alone. ``resyncing``: the replica is back and is being made whole.
    ``promoted``: the target took the source's place."""

    PENDING = "pending"
    SEEDING = "seeding"
    CURRENT = "current"
    LATE = "late"
    DEGRADED = "degraded"
    RESYNCING = "resyncing"
    PAUSED = "paused"
    PROMOTED = "promoted"
    FAILED = "failed"


class ReplicationSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``volume`` and ``target`` are the ids of the source and of the replica, which lies in ``pool``. ``every`` is the interval of
    ``async``."""

    volume: str
    target: str
    pool: str
    mode: ReplicationMode = ReplicationMode.ASYNC
    every: Annotated[float, Meta(ge=0.5, le=366 * 86400)] = 60.0
    paused: bool = False


class ReplicationStatus(msgspec.Struct, kw_only=True):
    """What the host saw. ``last`` is the instant that the newest whole copy is of; ``rpo`` how old that was when it was looked at, and
    ``worst`` the oldest that it was in the last day. ``moved`` is what the newest cycle copied, ``took`` for how long."""

    phase: ReplicationPhase = ReplicationPhase.PENDING
    observed_generation: int = 0
    host: str | None = None
    cycles: int = 0
    last: datetime | None = None
    rpo: float | None = None
    worst: float | None = None
    moved: int = 0
    took: float = 0.0
    degraded_since: datetime | None = None
    promoted_at: datetime | None = None
    conditions: list[Condition] = []


Replication = Resource[ReplicationSpec, ReplicationStatus]


class TieringPolicy(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A volume that nobody used for ``after`` seconds goes to the pool ``cold``, and back to ``hot`` when it is used again."""

    hot: Annotated[str, Meta(min_length=1, max_length=63)]
    cold: Annotated[str, Meta(min_length=1, max_length=63)]
    after: Annotated[int, Meta(ge=60, le=3660 * 86400)] = 7 * 86400


# A cycle may be late by so many intervals before its promise is broken.
LATE = 2.0


def promised_age(spec: ReplicationSpec, took: float) -> float:
    """How old the newest whole copy may be: two intervals and what a cycle takes; nothing of ``sync``. Seconds."""
    return 0.0 if spec.mode is ReplicationMode.SYNC else LATE * spec.every + took


class VolumeAccess(msgspec.Struct, kw_only=True):
    """How a volume was used: bytes and operations since ``since``, both kinds together, and when it was used last."""

    since: datetime
    bytes: int = 0
    operations: int = 0
    last: datetime | None = None


class TierState(msgspec.Struct, kw_only=True):
    """When a volume was moved by its policy, and how many operations it had seen by then."""

    at: datetime
    operations: int = 0
