"""How much memory each instance shall have: from what each was promised, what it says of itself, and what the host has. Pure.

Who does not use what it has gives it back slowly; who comes short gets at once. What an instance says of itself moves its own share
alone: it is never given less than its floor, nor more than its ceiling, and nobody is given what is another's floor.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from lamella.model.instance import Priority

MIB = 1 << 20

# Beside what it uses, an instance keeps an eighth of that, and this many bytes at least. It is given more when half of it is left, and
# gives back when it has three times that much: between the two nothing moves.
LEAST_ROOM = 32 * MIB
_ROOM = 8
# What is taken from one instance in one round when nobody waits for it: an eighth of its ceiling, or this.
LEAST_STEP = 64 * MIB
_STEP = 8
# Raises below this many bytes are not worth asking a guest for.
GRAIN = 4 * MIB
# Nothing is taken for so many seconds from one that waited for memory; each time anew twice as long, at most so long.
FIRST_REST = 10.0
LONGEST_REST = 600.0

_ORDER = (Priority.HIGH, Priority.NORMAL, Priority.LOW)


class Share(msgspec.Struct, kw_only=True, frozen=True):
    """One instance as it was seen; sizes in bytes.

    ``held`` is what it has now, ``used`` what it says it cannot do without (``None``: it says nothing). ``waits``: it stood still for want
    of memory since it was seen last. What is not ``eager`` keeps what it has while there is enough for all: it has said nothing new.
    One without a ``balloon`` has its ceiling at any time, and ``held`` is what it took of that: it is given no more, and what it does not
    need is taken only while there is too little for all.
    """

    id: str
    floor: int
    ceiling: int
    held: int
    used: int | None = None
    waits: bool = False
    eager: bool = True
    balloon: bool = True
    priority: Priority = Priority.NORMAL


class Memory(msgspec.Struct, kw_only=True, frozen=True):
    """What is remembered of an instance from one round to the next: its ``target``, and until when (seconds of a clock that never goes
    back) nothing is taken from it because it waited, which it has done for ``rest`` seconds this time."""

    target: int
    rests_until: float = 0.0
    rest: float = 0.0


def decide(
    shares: Sequence[Share], budget: int, before: Mapping[str, Memory], at: float, *, press: bool = False
) -> dict[str, Memory]:
    """What each of *shares* is to have, by id, as of *at* (seconds).

    *budget* is what the host has for all of them together. What was not given back yet is not given to another. Where the floors alone
    are more than the budget, everybody has its floor. With *press* what nobody needs is taken at once.
    """
    wishes = [_wish(share, before.get(share.id), at) for share in shares]
    if press or sum(wish.target for wish in wishes) > budget:
        goals = _divided(wishes, budget, keep_surplus=not press)
    else:
        goals = {wish.share.id: wish.target for wish in wishes}
    granted = _granted(wishes, goals, budget)
    return {
        wish.share.id: Memory(target=granted[wish.share.id], rests_until=wish.rests_until, rest=wish.rest)
        for wish in wishes
    }


class _Wish(msgspec.Struct, kw_only=True, frozen=True):
    """``need`` is what an instance should have, ``target`` what it may have while nobody else comes short."""

    share: Share
    floor: int
    last: int
    need: int
    target: int
    rests_until: float = 0.0
    rest: float = 0.0


def _wish(share: Share, before: Memory | None, at: float) -> _Wish:
    ceiling = max(0, share.ceiling)
    floor = _clamp(share.floor, 0, ceiling)
    held = _clamp(share.held, 0, ceiling)
    last = _clamp(before.target if before is not None else held, floor, ceiling)
    rests_until, rest = (before.rests_until, before.rest) if before is not None else (0.0, 0.0)
    if at > rests_until + rest:
        rest = 0.0
    if share.used is None:
        return _Wish(share=share, floor=floor, last=last, need=last, target=last, rests_until=rests_until, rest=rest)
    used = _clamp(share.used, 0, ceiling)
    room = max(LEAST_ROOM, used // _ROOM)
    need = _clamp(used + 2 * room, floor, ceiling)
    if not share.balloon:
        return _Wish(share=share, floor=floor, last=last, need=last if share.waits else min(need, last), target=last)
    if share.waits and at >= rests_until:
        rest = min(LONGEST_REST, max(FIRST_REST, 2 * rest))
        rests_until = at + rest
        need = target = _clamp(max(last, need) + max(LEAST_STEP, ceiling // _STEP), floor, ceiling)
    elif last < _clamp(used + room // 2, floor, ceiling):
        # What it uses grows: it is given a step ahead, and keeps that for a while.
        target = _clamp(need + max(LEAST_STEP, ceiling // _STEP), floor, ceiling)
        rests_until = max(rests_until, at + FIRST_REST)
    elif share.eager and last > used + 3 * room and at >= rests_until:
        target = max(need, last - max(LEAST_STEP, ceiling // _STEP))
    else:
        target = last
    return _Wish(share=share, floor=floor, last=last, need=need, target=target, rests_until=rests_until, rest=rest)


def _divided(wishes: Sequence[_Wish], budget: int, *, keep_surplus: bool) -> dict[str, int]:
    """Floors first, then what is needed, then what is only kept; the higher priority before the lower, and evenly within one."""
    given = {wish.share.id: wish.floor for wish in wishes}
    left = budget - sum(given.values())
    layers: list[Callable[[_Wish], int]] = [lambda wish: wish.need]
    if keep_surplus:
        layers.append(lambda wish: wish.target)
    for most in layers:
        for priority in _ORDER:
            group = [wish for wish in wishes if wish.share.priority is priority]
            wants = {wish.share.id: max(0, most(wish) - given[wish.share.id]) for wish in group}
            for id, amount in poured(wants, left).items():
                given[id] += amount
                left -= amount
    return given


def _granted(wishes: Sequence[_Wish], goals: Mapping[str, int], budget: int) -> dict[str, int]:
    """*goals*, but no more than is there now: what an instance holds beyond its goal is missing until it has given it back."""
    granted: dict[str, int] = {}
    raises: list[tuple[_Wish, int]] = []
    charged = 0
    for wish in wishes:
        goal, held = goals[wish.share.id], max(0, wish.share.held)
        sure = max(wish.floor, min(goal, held))
        granted[wish.share.id] = sure
        charged += max(held, sure)
        if goal > sure:
            raises.append((wish, goal - sure))
    left = budget - charged
    for priority in _ORDER:
        wants = {wish.share.id: more for wish, more in raises if wish.share.priority is priority}
        for id, amount in poured(wants, left).items():
            granted[id] += amount
            left -= amount
    for wish in wishes:
        target = granted[wish.share.id]
        if wish.last < target < wish.last + GRAIN:
            granted[wish.share.id] = wish.last
    return granted


def poured(wants: Mapping[str, int], amount: int) -> dict[str, int]:
    """*amount* over those who want, evenly, nobody more than it wants (max-min fairness)."""
    given = dict.fromkeys(wants, 0)
    left = max(0, amount)
    waiting: Iterable[tuple[str, int]] = sorted(wants.items(), key=lambda item: (item[1], item[0]))
    for number, (id, want) in enumerate(waiting):
        given[id] = min(want, left // (len(wants) - number))
        left -= given[id]
    return given


def _clamp(value: int, least: int, most: int) -> int:
    return max(least, min(value, most))
