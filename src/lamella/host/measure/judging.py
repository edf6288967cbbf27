"""The verdict: what was promised against what was got, over the last minute, quarter of an hour and day. Pure.

The kernel keeps its promises in periods of 100 ms and we look once a second, so a promise is kept when it is within a twentieth. What is
shorter than a hundredth of what was promised is no breach either: it is the time that anybody needs to be woken.
"""

from collections.abc import Callable, Mapping

import msgspec

from lamella.host.measure.promise import Promise
from lamella.host.measure.rings import Slot
from lamella.model.bit_rate import format as format_rate
from lamella.model.judgement import Span, Verdict
from lamella.model.quantity import format_size

WINDOWS: Mapping[str, int] = {"1m": 60, "15m": 900, "24h": 86400}
# Nothing is judged on fewer seconds of measuring than these.
LEAST = 10.0
# Shares of what was promised: missing more than the first breaks it, more than the second puts it at risk.
BROKEN, AT_RISK = 0.05, 0.02
# What is missed of a guarantee counts from this share of all that is guaranteed on.
MATTERS = 0.01


class Finding(msgspec.Struct, frozen=True):
    verdict: Verdict
    evidence: str


Judge = Callable[[Slot, Promise], Finding]


def judge(seen: Slot, promise: Promise) -> dict[tuple[str, bool], Finding]:
    """The verdict on every line that is promised, by its subject and whether it is a guarantee, over what is *seen* of one window."""
    return {
        line: Finding(Verdict.NOT_MEASURED, f"measured for {seen.seconds:.0f} s, judged from {LEAST:.0f} s on")
        if seen.seconds < LEAST
        else how(seen, promise)
        for line, how in lines(promise).items()
    }


def lines(promise: Promise) -> dict[tuple[str, bool], Judge]:
    """What can be judged of *promise*, and how."""
    found: dict[tuple[str, bool], Judge] = {}
    if promise.cpu_guarantee:
        found["cpu", True] = _cpu_guarantee
    if promise.memory_floor:
        found["memory", True] = _memory_floor
    if promise.cpu_ceiling is not None:
        found["cpu", False] = _cpu_ceiling
    if promise.memory_ceiling is not None:
        found["memory", False] = _memory_ceiling
    if promise.rate_in:
        found["rate in", False] = lambda seen, promise: _rate(seen.received, seen.received_allowed, seen)
    if promise.rate_out:
        found["rate out", False] = lambda seen, promise: _rate(seen.sent, seen.sent_allowed, seen)
    return found


def span(window: str, seen: Slot, found: Finding) -> Span:
    return Span(window=window, verdict=found.verdict, measured=round(seen.seconds, 1), evidence=found.evidence)


def _cpu_guarantee(seen: Slot, promise: Promise) -> Finding:
    if seen.promised < promise.cpu_guarantee * LEAST / 2:
        return Finding(Verdict.NOT_MEASURED, "how long it waits for a processor is not known yet, or not counted here")
    share = seen.short / seen.owed if seen.owed else 0.0
    weight = seen.short / seen.promised
    evidence = (
        f"used {seen.cpu:.1f} s of processors and waited {seen.waited:.1f} s; of {seen.promised:.1f} s that are guaranteed it wanted "
        f"{seen.owed:.1f} s and missed {seen.short:.1f} s ({share:.1%})"
    )
    return Finding(_verdict(share, weight), evidence)


def _verdict(share: float, weight: float) -> Verdict:
    if share > BROKEN and weight > MATTERS:
        return Verdict.BROKEN
    if share > AT_RISK and weight > MATTERS / 2:
        return Verdict.AT_RISK
    return Verdict.KEPT


def _cpu_ceiling(seen: Slot, promise: Promise) -> Finding:
    if not seen.allowed:
        return Finding(Verdict.NOT_MEASURED, "nothing holds it to its ceiling here")
    over = seen.capped / seen.allowed - 1
    evidence = (
        f"used {seen.capped:.1f} s of {seen.allowed:.1f} s that are allowed; throttled for {seen.throttled:.1f} s"
    )
    return Finding(_verdict(over, over), evidence)


def _memory_ceiling(seen: Slot, promise: Promise) -> Finding:
    if not seen.memory_capped:
        return Finding(Verdict.NOT_MEASURED, "nothing holds it to its ceiling here")
    used = f"at most {format_size(int(seen.memory))} in use{'' if promise.exact else ', by its monitor too'}"
    share = seen.over / seen.memory_capped
    evidence = f"{used}, above it for {seen.over:.0f} s; {seen.kills:.0f} processes killed for want of memory"
    return Finding(_verdict(share, share), evidence)


def _memory_floor(seen: Slot, promise: Promise) -> Finding:
    if not seen.floored:
        return Finding(Verdict.NOT_MEASURED, "how long it waits for memory is not known yet, or not counted here")
    share = seen.below / seen.floored
    evidence = (
        f"for {seen.below:.1f} s of {seen.floored:.0f} s not all of it was there for the asking; "
        f"{seen.outside:.0f} processes killed for want of memory on the host, waited {seen.memory_waited:.1f} s for memory"
    )
    return Finding(Verdict.BROKEN if seen.outside else _verdict(share, share), evidence)


def _rate(passed: float, allowed: float, seen: Slot) -> Finding:
    if not allowed:
        return Finding(Verdict.NOT_MEASURED, "its first NIC is not counted here")
    over = passed / allowed - 1
    evidence = f"{format_rate(round(passed * 8 / seen.seconds))} on average, of {format_rate(round(allowed * 8 / seen.seconds))}"
    return Finding(_verdict(over, over), evidence)
