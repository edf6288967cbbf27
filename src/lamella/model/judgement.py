"""What was promised against what was got: a verdict on each line of a contract, with its evidence."""

from datetime import datetime
from enum import StrEnum

import msgspec


class Verdict(StrEnum):
    """What cannot be known is *not measured*, and never *kept*."""

    KEPT = "kept"
    AT_RISK = "at-risk"
    BROKEN = "broken"
    NOT_MEASURED = "not-measured"


class Span(msgspec.Struct, kw_only=True, frozen=True):
    """The verdict over one window (``1m``, ``15m``, ``24h``). ``measured`` is for how many of its seconds there are measurements."""

    window: str
    verdict: Verdict
    measured: float
    evidence: str


class Judgement(msgspec.Struct, kw_only=True, frozen=True):
    """The verdict on the line *subject*. *guarantee* tells a line of what is guaranteed from one of what limits. ``verdict`` is how it is
    now: that of the shortest window, but what is broken stays so until that window is all kept. *since* is when it became so."""

    subject: str
    guarantee: bool
    verdict: Verdict
    since: datetime | None = None
    windows: list[Span] = []
