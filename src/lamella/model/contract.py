"""The contract: what isolates an instance, what it is guaranteed, what limits it, and what is *not* promised."""

from datetime import datetime

import msgspec

from lamella.model.judgement import Judgement, Span, Verdict

# A mechanism that holds one of the limits of a request is named by it: ``limit.cpu``, ``limit.memory``, ``limit.pids``, ``limit.disk``.
LIMIT = "limit."
# So is one that holds a guarantee: ``guarantee.cpu``, ``guarantee.memory``.
GUARANTEE = "guarantee."


class Mechanism(msgspec.Struct, kw_only=True):
    """One thing in force around a running instance. ``evidence`` says where it was read (a file of /proc, a QMP answer)."""

    name: str
    value: str
    evidence: str
    in_force: bool = True


class Line(msgspec.Struct, kw_only=True):
    """One line of a contract: ``value`` in words, and what enforces it (empty for what nothing enforces). ``verdict`` is whether it is
    kept now, *since* when; ``windows`` the same over the last minute, quarter of an hour and day, with the evidence."""

    subject: str
    value: str
    enforced_by: str = ""
    asked: str = ""
    verdict: Verdict = Verdict.NOT_MEASURED
    since: datetime | None = None
    windows: list[Span] = []


def judged(lines: list[Line], judgements: list[Judgement], *, guarantee: bool) -> list[Line]:
    """*lines* with the verdicts on them."""
    found = {item.subject: item for item in judgements if item.guarantee is guarantee}
    return [
        msgspec.structs.replace(line, verdict=item.verdict, since=item.since, windows=item.windows)
        if (item := found.get(line.subject)) is not None
        else line
        for line in lines
    ]


class Replica(msgspec.Struct, kw_only=True):
    """What keeps an attached *volume* a second time, as *replica* in *pool*. Seconds: the copy may be ``promised`` old (nothing of
    ``sync``), which is twice the interval ``every`` and what one cycle takes; the newest whole one is ``achieved`` old, and was
    ``worst`` old at most in the last day. ``kept`` says whether the promise holds now; *why* is the sentence when it does not."""

    volume: str
    replication: str
    replica: str
    pool: str
    mode: str
    every: float | None = None
    promised: float
    achieved: float | None = None
    worst: float | None = None
    kept: bool
    why: str = ""


class Contract(msgspec.Struct, kw_only=True):
    """Contract v1 of one instance, as of ``read_at``.

    ``isolation`` was read from the running thing; it is empty, and ``observed`` false, while the instance does not run.
    ``replicas`` is what keeps its volumes a second time. ``lacks`` are the verbs that this level does not have, each with the reason.
    """

    instance: str
    id: str
    version: int = 1
    read_at: datetime
    level: str
    driver: str
    observed: bool
    isolation: list[Mechanism]
    guarantees: list[Line]
    limits: list[Line]
    accelerator: str
    accelerator_reason: str
    not_promised: list[str]
    lacks: list[str] = []
    replicas: list[Replica] = []


class LevelSummary(msgspec.Struct, kw_only=True):
    """One isolation level in a comparison. ``available`` says whether a ready host can run it, ``reason`` how that is known:
    each host's own sentence."""

    level: str
    what: str
    available: bool
    reason: str


class ComparisonRow(msgspec.Struct, kw_only=True):
    """What each level says on one *subject*, by the level's name: every level of the comparison is there."""

    subject: str
    values: dict[str, str]


class Comparison(msgspec.Struct, kw_only=True):
    """The contracts of all levels side by side. ``levels`` are in order, the one that shares most with its host first;
    ``not_promised`` is what no level promises."""

    levels: list[LevelSummary]
    rows: list[ComparisonRow]
    not_promised: list[str]


class Reason(msgspec.Struct, kw_only=True):
    """One thing that a level needs, on one host: whether it is there (``available``), and the sentence that says how that was
    found out."""

    host: str
    need: str
    available: bool
    reason: str


class WhyNot(msgspec.Struct, kw_only=True):
    """Why a level can or cannot be had: ``reasons`` is everything that it needs, host by host, what is missing first."""

    level: str
    available: bool
    reasons: list[Reason]
