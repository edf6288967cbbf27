"""The host's sampler: once a second it reads what the kernel counts of every instance, and writes down what happened in between.

It is one task and one thread at a time. One that comes late leaves a gap; while it is late or dead, nothing is said to be kept.
"""

import asyncio
import logging
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from lamella.host.linux.blocking import blocking
from lamella.host.linux.cgroup import Cgroups
from lamella.host.measure.alarms import Line, News, State, now_of, step
from lamella.host.measure.counters import Counters, GroupReader, links
from lamella.host.measure.judging import WINDOWS, Finding, judge, lines, span
from lamella.host.measure.promise import LONGEST, Promise, Watched, between
from lamella.host.measure.rings import History
from lamella.host.measure.told import Told
from lamella.model.judgement import Judgement, Span, Verdict
from lamella.model.resource import now

log = logging.getLogger("lamella.host.measure")

INTERVAL = 1.0
# What is judged for events is judged every so many seconds.
JUDGED_EVERY = 5.0
# A change of what is promised is in force after this many seconds at most; until then nothing is judged by it.
SETTLING = 5.0
# Processes that an OCI runtime brought in are gathered every so many readings.
GATHERED_EVERY = 5
# Files of so many instances are kept open, at most a quarter of the descriptors that we may have.
_FILES = 11


class _Measured:
    """One instance as far as it is known."""

    def __init__(self, reader: GroupReader, promise: Promise, at: float) -> None:
        self.reader = reader
        self.promise = promise
        self.promised_at = at - SETTLING
        self.last: Counters | None = None
        self.earlier: Counters | None = None
        self.history = History()
        self.states: dict[Line, State] = {}

    def rest(self) -> None:
        """It does not run: the next reading is another first one."""
        self.reader.close()
        self.last = self.earlier = None


Tell = Callable[[str, str, str], None]


class Sampler:
    """Measures what *watched* names. *tell* hears of an instance's id, an event's type and its message, in the loop.
    *net* is a ``/proc/PID/net/dev`` in the layer's namespace. *cgroups* is called once, when there is something to measure. The file
    *memory* has what was told to be broken, for the next daemon."""

    def __init__(
        self,
        cgroups: Callable[[], Cgroups],
        watched: Callable[[], list[Watched]],
        tell: Tell,
        *,
        net: Callable[[], Path | None] = lambda: None,
        windows: Mapping[str, int] = WINDOWS,
        memory: Path | None = None,
    ) -> None:
        self._make = cgroups
        self._cgroups: Cgroups | None = None
        self._watched = watched
        self._tell = tell
        self._net = net
        self._windows = windows
        self._measured: dict[str, _Measured] = {}
        self._rounds = 0
        self._judged_at = 0.0
        self._told = Told(memory)

    async def run(self) -> None:
        """Until cancelled. What goes wrong is logged, and the next second is another."""
        due = time.monotonic()
        while True:
            due = max(due + INTERVAL, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            try:
                await self.look()
            except Exception:
                log.exception("a look at the instances")

    async def look(self) -> None:
        """Read everything once, and judge it when that is due."""
        watched = self._watched()
        if not watched and not self._measured:
            return
        news = await blocking(self._take, watched)
        for id, item, found in news:
            line = f"{item.line[0]} ({'guaranteed' if item.line[1] else 'limit'})"
            self._tell(id, item.type, f"{line}: {found.evidence}")

    def read(self, id: str) -> Counters | None:
        """What is counted of an instance now; ``None`` when it is not measured, or gone. Blocks for a tenth of a millisecond."""
        if self._cgroups is None or id not in self._measured:
            return None
        group = self._cgroups.group(id)
        return GroupReader(group, version=self._cgroups.version, keep=False).read(time.monotonic())

    def judgements(self, id: str, promise: Promise) -> list[Judgement]:
        """The verdict on every line of *promise*, over every window. Blocks for a millisecond."""
        at, known = time.monotonic(), self._measured.get(id)
        late = known is None or known.last is None or at - known.last.at > LONGEST
        why = "it was never read" if known is None or known.last is None else "the newest reading is old"
        found: dict[Line, list[Span]] = {line: [] for line in lines(promise)}
        for window, length in self._windows.items():
            if known is None or late:
                for spans in found.values():
                    spans.append(Span(window=window, verdict=Verdict.NOT_MEASURED, measured=0.0, evidence=why))
                continue
            seen = known.history.window(length, at)
            for line, finding in judge(seen, promise).items():
                found[line].append(span(window, seen, finding))
        made: list[Judgement] = []
        for line, spans in found.items():
            state = known.states.get(line, State()) if known is not None else State()
            shown = now_of(spans[0].verdict, told=state.told)
            since = state.since if shown is state.verdict else now()
            made.append(Judgement(subject=line[0], guarantee=line[1], verdict=shown, since=since, windows=spans))
        return made

    def forget(self, id: str) -> None:
        """The instance is no more."""
        self._told.forget(id)

    # --- in a thread

    def _take(self, watched: list[Watched]) -> list[tuple[str, News, Finding]]:
        at = time.monotonic()
        self._settle(watched, at)
        running = [item for item in watched if item.running]
        through = self._links() if any(item.links for item in running) else {}
        self._rounds += 1
        for item in running:
            self._read(item, through)
        if at - self._judged_at < JUDGED_EVERY:
            return []
        self._judged_at = at
        return [news for item in running for news in self._judge(item, at)]

    def _settle(self, watched: list[Watched], at: float) -> None:
        """Forget who is gone, begin with who is new and runs, and see who was promised something else."""
        here = {item.id for item in watched}
        if not self._rounds:
            self._told.keep(here)
        for id in self._measured.keys() - here:
            self._measured.pop(id).reader.close()
        if self._cgroups is None and any(item.running for item in watched):
            self._cgroups = self._make()
        for item in watched:
            known = self._measured.get(item.id)
            if known is None and not item.running:
                continue
            if known is None:
                assert self._cgroups is not None
                keep = len(self._measured) * _FILES < resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
                reader = GroupReader(self._cgroups.group(item.id), version=self._cgroups.version, keep=keep)
                self._measured[item.id] = _Measured(reader, item.promise, at)
                self._measured[item.id].states = {line: State(told=True) for line in self._told.lines(item.id)}
            elif known.promise != item.promise:
                known.promise, known.promised_at = item.promise, at
                known.states = {line: state for line, state in known.states.items() if line in lines(item.promise)}
            if known is not None and not item.running:
                known.rest()

    def _links(self) -> dict[str, tuple[int, int]]:
        file = self._net()
        try:
            return links(file.read_text()) if file is not None else {}
        except OSError:
            return {}

    def _read(self, item: Watched, through: dict[str, tuple[int, int]]) -> None:
        known = self._measured[item.id]
        at = time.monotonic()
        if self._cgroups is not None and self._cgroups.version == 1 and self._rounds % GATHERED_EVERY == 0:
            self._cgroups.group(item.id).gather()
        counted = known.reader.read(at)
        if counted is None:
            known.rest()
            return
        if counted.at_limit:
            known.reader.lower_peak()
        if item.links is not None and item.links[0] in through:
            left, right = through[item.links[0]], through.get(item.links[1])
            counted = msgspec.structs.replace(counted, received=left[1], sent=right[1] if right else left[0])
        earlier, before = known.earlier, known.last
        known.earlier, known.last = before, counted
        promise = known.promise if at - known.promised_at >= SETTLING else Promise()
        slot = between(before, counted, promise, earlier) if before is not None else None
        if slot is not None:
            known.history.add(at, slot)

    def _judge(self, item: Watched, at: float) -> list[tuple[str, News, Finding]]:
        known = self._measured[item.id]
        told: list[tuple[str, News, Finding]] = []
        if known.last is None:
            return told
        shortest = min(self._windows.values())
        for line, finding in judge(known.history.window(shortest, at), item.promise).items():
            known.states[line], news = step(known.states.get(line, State()), finding.verdict, now(), line)
            if news is not None:
                told.append((item.id, news, finding))
                self._told.note(item.id, line, broken=known.states[line].told)
        return told
