"""When a line is broken and when it is kept again: told once each. Pure.

A line is broken when it was found so twice in a row, and kept again when all of the shortest window is. What is in between changes nothing.
"""

from datetime import datetime

import msgspec

from lamella.model.judgement import Verdict

TWICE = 2
Line = tuple[str, bool]


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Of one line: its verdict, *since* when, how often in a row it was found broken, and whether that was told."""

    verdict: Verdict = Verdict.NOT_MEASURED
    since: datetime | None = None
    breaches: int = 0
    told: bool = False


class News(msgspec.Struct, frozen=True):
    """*type* is ``contract.broken`` or ``contract.kept``."""

    type: str
    line: Line


def now_of(found: Verdict, *, told: bool) -> Verdict:
    """What is said of a line that was *found* so: what was *told* to be broken is broken until it is told to be kept."""
    return Verdict.BROKEN if told and found is not Verdict.NOT_MEASURED else found


def step(before: State, found: Verdict, at: datetime, line: Line) -> tuple[State, News | None]:
    """The state after *found*, and what is to be told of it."""
    breaches = before.breaches + 1 if found is Verdict.BROKEN else 0
    told, news = before.told, None
    if not told and breaches >= TWICE:
        told, news = True, News("contract.broken", line)
    elif told and found is Verdict.KEPT:
        told, news = False, News("contract.kept", line)
    shown = now_of(found, told=told)
    since = before.since if shown is before.verdict else at
    return State(verdict=shown, since=since, breaches=breaches, told=told), news
