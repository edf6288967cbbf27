"""What a host may promise, what it has promised, and whether there is room for more. Pure.

Guarantees together are never more than the host has after its reserve; ceilings together never more than that times its overcommit. A
host that has not told how large it is bounds nothing.
"""

from collections.abc import Callable, Iterable

import msgspec

from lamella.control import huge_pages
from lamella.control.shares import NOTHING, Share, counts, share_of
from lamella.model.contract import Line
from lamella.model.errors import NoRoom
from lamella.model.host import Host
from lamella.model.instance import Instance
from lamella.model.quantity import format_cpu, format_size


class _Resource(msgspec.Struct, frozen=True):
    """One field of :class:`Share`: how it is said, the field of the spec, and the option that asks for *amount* of it."""

    name: str
    what: str
    field: str
    text: Callable[[int], str]
    option: Callable[[str], str]
    step: int


_RESOURCES = (
    _Resource(
        "cpu_guarantee", "guaranteed cores", "spec.cpu_guarantee", format_cpu, lambda text: f"--cpu-guarantee {text}", 1
    ),
    _Resource(
        "memory_guarantee",
        "guaranteed memory",
        "spec.memory_guarantee",
        format_size,
        lambda text: f"--memory {text}..",
        1 << 20,
    ),
    _Resource("cpu", "cores as ceilings", "spec.cpu", format_cpu, lambda text: f"--cpu {text}", 1),
    _Resource("memory", "memory as ceilings", "spec.memory", format_size, lambda text: f"--memory {text}", 1 << 20),
)

# What a guarantee is to whoever has cores of its own.
_OWN = _Resource("cpu_guarantee", "guaranteed cores", "spec.cpu", format_cpu, lambda text: f"--cpu {text}", 1000)


class Shortage(msgspec.Struct, kw_only=True, frozen=True):
    """Why something does not fit on a host: the sentence, what would fit, and the field that asked for too much."""

    message: str
    hint: str
    field: str


class Bounds(msgspec.Struct, kw_only=True, frozen=True):
    """As :class:`Share`; ``None`` is not known."""

    cpu_guarantee: int | None
    memory_guarantee: int | None
    cpu: int | None
    memory: int | None


def bounds_of(host: Host) -> Bounds:
    """The most that *host* may promise."""
    spec, status = host.spec, host.status
    cpu = max(0, status.cpu - spec.reserve.cpu) if status.cpu else None
    # What is set apart in huge pages is for those who ask for them.
    apart = sum(size * huge_pages.apart(host, size) for size in huge_pages.sizes_of(host))
    memory = max(0, status.memory - spec.reserve.memory - apart) if status.memory else None
    return Bounds(
        cpu_guarantee=cpu,
        memory_guarantee=memory,
        cpu=None if cpu is None else int(cpu * spec.overcommit.cpu),
        memory=None if memory is None else int(memory * spec.overcommit.memory),
    )


def taken(host: Host, instances: Iterable[Instance], *, but: str = "") -> Share:
    """What those of *instances* take that are on *host* and count, but for the one with the id *but*."""
    mine = (
        share_of(item.spec, len(item.status.cpus))
        for item in instances
        if item.status.host == host.id and item.id != but and counts(item)
    )
    return sum(mine, NOTHING)


def shortage(host: Host, taken: Share, wanted: Share, had: Share = NOTHING, *, pinned: bool = False) -> Shortage | None:
    """Why *host*, of which others have *taken* so much, has no room for *wanted*; ``None`` when it has. What does not grow beyond what the
    instance *had* is never refused. With *pinned* its guarantee is cores of its own."""
    bounds = bounds_of(host)
    for item in _RESOURCES:
        most, asked = getattr(bounds, item.name), getattr(wanted, item.name)
        free = None if most is None else max(0, most - getattr(taken, item.name))
        if free is None or asked <= max(free, getattr(had, item.name)):
            continue
        if pinned and item is _RESOURCES[0]:
            item = _OWN
        fits = free // item.step * item.step
        least = "would fit" if fits else "nothing of it is left"
        more = "" if item.name.endswith("_guarantee") else "; `lamella host set --overcommit` allows more"
        return Shortage(
            message=f"host {host.name} has {item.text(free)} of {item.text(most or 0)} {item.what} left,"
            f" and {item.text(asked)} are asked for",
            hint=(f"{item.option(item.text(fits))} {least}" if fits else least)
            + f"; `lamella ps` tells who runs there{more}",
            field=item.field,
        )
    return None


def check(host: Host, instances: Iterable[Instance], instance: Instance, had: Share = NOTHING) -> None:
    """That *host* has room for *instance*, which had *had* of it until now.

    :raise NoRoom: when it has not; it says of what, how much is left, and what would fit.
    """
    others = taken(host, instances, but=instance.id)
    wanted = share_of(instance.spec, len(instance.status.cpus))
    short = shortage(host, others, wanted, had, pinned=instance.spec.cpu_pin)
    if short is not None:
        raise NoRoom(short.message, hint=short.hint, field=short.field)


def lines(host: Host, instances: Iterable[Instance]) -> list[Line]:
    """What the host has promised in all, for the contract of each that runs there."""
    bounds, given = bounds_of(host), taken(host, instances)
    found: list[Line] = []
    for subject, held, ceilings, whole, most, text in (
        ("cores", given.cpu_guarantee, given.cpu, bounds.cpu_guarantee, bounds.cpu, format_cpu),
        ("memory", given.memory_guarantee, given.memory, bounds.memory_guarantee, bounds.memory, format_size),
    ):
        if whole and most is not None:
            found.append(
                Line(
                    subject=f"host's {subject}",
                    value=f"{text(held)} of {text(whole)} guaranteed ({held / whole:.2f}), ceilings of {text(ceilings)}"
                    f" handed out ({ceilings / whole:.2f} times, {most / whole:g} at most)",
                    enforced_by="admission: at create, start and set",
                )
            )
    return found


def said(share: Share) -> str:
    """*share* for a person."""
    parts = [f"{item.text(amount)} {item.what}" for item in _RESOURCES if (amount := getattr(share, item.name))]
    return ", ".join(parts)
