"""Pairs, medians, ratios: how everything here is measured.

The machine is shared and noisy, so ours and the peer's runs alternate, and the ratio is of the medians.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Series:
    """Seconds, one a run."""

    name: str
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def text(self) -> str:
        low, high = min(self.seconds), max(self.seconds)
        return f"{self.median * 1e3:.1f} ms ({low * 1e3:.1f} to {high * 1e3:.1f}, n={len(self.seconds)})"


@dataclass
class Row:
    """One line of the table. ``peer`` is ``None`` where the peer is not installed: the row says so, and has no ratio."""

    what: str
    ours: str
    peer: str | None
    ratio: float | None
    bar: str
    aim: str


def pairs(ours: Callable[[], float], theirs: Callable[[], float], *, runs: int, warm: int = 1) -> tuple[Series, Series]:
    """*runs* alternating runs of each after *warm* that do not count. The callables return seconds."""
    a, b = Series("ours"), Series("peer")
    for number in range(runs + warm):
        mine, other = ours(), theirs()
        if number >= warm:
            a.seconds.append(mine)
            b.seconds.append(other)
    return a, b


def timed(action: Callable[[], object]) -> float:
    """Seconds that *action* took."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def compared(what: str, ours: Series, peer: Series, *, bar: str, aim: str) -> Row:
    return Row(what, ours.text(), peer.text(), ours.median / peer.median, bar, aim)


def absent(what: str, peer: str, ours: Series | None, *, bar: str, aim: str) -> Row:
    return Row(what, ours.text() if ours else "not measured", f"{peer} is not installed", None, bar, aim)


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| what | ours | peer | ratio | bar | aim |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        ratio = f"{row.ratio:.2f} ×" if row.ratio is not None else "–"
        lines.append(f"| {row.what} | {row.ours} | {row.peer or '–'} | {ratio} | {row.bar} | {row.aim} |")
    return "\n".join(lines)
