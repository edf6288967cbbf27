"""Which backups a policy keeps. Pure."""

from collections.abc import Callable, Iterable
from datetime import datetime

from lamella.model.backup import Retention

_PERIODS: list[tuple[str, Callable[[datetime], object]]] = [
    ("hourly", lambda at: (at.date(), at.hour)),
    ("daily", lambda at: at.date()),
    ("weekly", lambda at: at.isocalendar()[:2]),
    ("monthly", lambda at: (at.year, at.month)),
]


def kept(backups: Iterable[tuple[str, datetime]], keep: Retention) -> set[str]:
    """Ids of those of *backups* (id, when it was taken, UTC) that *keep* names: the newest ``last``, and the newest of each of the latest
    hours, days, ISO weeks and months that have any. The newest of all is kept whatever *keep* says; so are all when it says nothing."""
    newest = sorted(backups, key=lambda item: item[1], reverse=True)
    counts = [keep.last, *(getattr(keep, name) for name, _ in _PERIODS)]
    if not any(counts):
        return {id for id, _ in newest}
    found = {id for id, _ in newest[: max(1, keep.last)]}
    for name, period in _PERIODS:
        seen: set[object] = set()
        for id, at in newest:
            if len(seen) >= getattr(keep, name):
                break
            if period(at) not in seen:
                seen.add(period(at))
                found.add(id)
    return found
