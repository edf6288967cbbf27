"""How many copies wait for their command, and whose turn it is: pure.

A pool is filled in the background, a few copies at a time, those of all projects in turn. What waits is the first thing to go.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec

from lamella.control.shares import NOTHING, Share

# Copies that are being made at once on one host.
AT_ONCE = 2


class Member(msgspec.Struct, kw_only=True, frozen=True):
    """A copy that waits, or (not ``ready``) is about to. One that is not ``sound`` failed, or is of another memory than copies are now."""

    id: str
    ready: bool
    sound: bool = True


class Pool(msgspec.Struct, kw_only=True, frozen=True):
    """The copies of one template. ``share`` is what each takes of its host; one that is not ``open`` gets no more of them now."""

    template: str
    project: str
    host: str
    wanted: int
    share: Share
    members: tuple[Member, ...] = ()
    open: bool = True


class Plan(msgspec.Struct, kw_only=True, frozen=True):
    """``make`` are templates, one for each copy; ``remove`` are ids of members."""

    make: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


def plan(pools: Sequence[Pool], fits: Callable[[str, Share], bool], *, at_once: int = AT_ONCE) -> Plan:
    """What to make and what to remove. ``fits(host, share)`` says whether *host* has room for *share* beyond what it has promised.

    Those that are not sound go, then what is more than wanted, those that are not ready first. Of those who want more it is the turn of the
    project that has the fewest, and in it of the pool that is the emptiest.
    """
    remove: list[str] = []
    there: dict[str, int] = {}
    making: dict[str, int] = {}
    by_project: dict[str, int] = {}
    for pool in pools:
        good = sorted((item for item in pool.members if item.sound), key=lambda item: (item.ready, item.id))
        remove += [item.id for item in pool.members if not item.sound]
        surplus = max(0, len(good) - pool.wanted)
        remove += [item.id for item in good[:surplus]]
        kept = good[surplus:]
        there[pool.template] = len(kept)
        making[pool.host] = making.get(pool.host, 0) + sum(not item.ready for item in kept)
        by_project[pool.project] = by_project.get(pool.project, 0) + len(kept)
    make: list[str] = []
    planned: dict[str, Share] = {}
    full: set[str] = set()
    while True:
        hungry = [
            pool
            for pool in pools
            if pool.open
            and pool.template not in full
            and there[pool.template] < pool.wanted
            and making[pool.host] < at_once
        ]
        if not hungry:
            return Plan(make=tuple(make), remove=tuple(remove))
        pool = min(
            hungry,
            key=lambda item: (by_project[item.project], there[item.template] / item.wanted, item.template),
        )
        asked = planned.get(pool.host, NOTHING) + pool.share
        if not fits(pool.host, asked):
            full.add(pool.template)
            continue
        planned[pool.host] = asked
        make.append(pool.template)
        there[pool.template] += 1
        by_project[pool.project] += 1
        making[pool.host] += 1


def giving_way(waiting: Mapping[str, Share], short: Callable[[Share], bool]) -> list[str] | None:
    """Ids of those of *waiting* that go so that there is room: as few as will do, the largest first. ``short(given)`` says whether there is
    too little room still when *given* comes back. ``None`` when all of them are not enough."""
    gone: list[str] = []
    given = NOTHING
    order = sorted(waiting, key=lambda id: (-waiting[id].memory, -waiting[id].cpu, id))
    for id in order:
        if not short(given):
            break
        gone.append(id)
        given += waiting[id]
    if short(given):
        return None
    # The largest first may be one too many in the end.
    for id in sorted(gone, key=lambda id: (waiting[id].memory, waiting[id].cpu, id)):
        rest = sum((waiting[other] for other in gone if other != id), NOTHING)
        if not short(rest):
            gone.remove(id)
    return gone


class Demand(msgspec.Struct, kw_only=True, frozen=True):
    """How often copies of a template are asked for (``rate``, a second, as it was at the monotonic time ``at``) and how many seconds one
    takes to be made. Both forget: what was a few minutes ago counts for little."""

    rate: float = 0.0
    at: float = 0.0
    takes: float = 1.0

    def arrived(self, at: float) -> "Demand":
        """One more was asked for at the monotonic time *at*."""
        return msgspec.structs.replace(self, rate=self.rate_at(at) + 1 / MEMORY, at=at)

    def made(self, seconds: float) -> "Demand":
        """One more was made, in so many *seconds*."""
        return msgspec.structs.replace(self, takes=self.takes + (max(0.0, seconds) - self.takes) * WEIGHT)

    def rate_at(self, at: float) -> float:
        """Copies a second, at the monotonic time *at*."""
        return self.rate * math.exp(-max(0.0, at - self.at) / MEMORY)

    def wanted(self, at: float, ceiling: int) -> int:
        """How many arrive while one is made, of which there are *ceiling* at most; none when hardly anybody asks any more."""
        needed = self.rate_at(at) * self.takes
        return 0 if needed < NEGLIGIBLE else min(ceiling, math.ceil(needed))


# Seconds after which an arrival counts for a third of what it did.
MEMORY = 60.0
# What the newest copy's time counts for.
WEIGHT = 0.3
# Arrivals in the time of one copy below which none waits.
NEGLIGIBLE = 1e-3
