"""Whose equal pages may be one. Pure.

KSM knows no projects: whatever takes part is held against everything else that does (mm/ksm.c has one tree of pages a NUMA node, or
one for all). So that no page is ever shared across projects, machines of one project alone take part at a time.
"""

from collections.abc import Sequence

import msgspec

from lamella.model.host import SamePages


class Machine(msgspec.Struct, kw_only=True, frozen=True):
    """One that runs: ``memory`` in bytes, and whether it takes part now."""

    id: str
    project: str
    memory: int
    merged: bool = False


def participants(policy: SamePages | None, machines: Sequence[Machine]) -> frozenset[str]:
    """Ids of those that are to take part."""
    match policy:
        case SamePages.ALL:
            return frozenset(machine.id for machine in machines)
        case SamePages.SAME_PROJECT:
            project = chosen(machines)
            return frozenset(machine.id for machine in machines if machine.project == project)
        case _:
            return frozenset()


def chosen(machines: Sequence[Machine]) -> str | None:
    """The project whose turn it is: that which takes part already, while it has two machines to compare; else that with the most memory in
    machines, of those that have two; else of all. ``None`` when nothing runs."""
    memory: dict[str, int] = {}
    count: dict[str, int] = {}
    for machine in machines:
        memory[machine.project] = memory.get(machine.project, 0) + machine.memory
        count[machine.project] = count.get(machine.project, 0) + 1
    taking = {machine.project for machine in machines if machine.merged}
    return max(
        sorted(memory),
        key=lambda project: (count[project] > 1, taking == {project}, memory[project]),
        default=None,
    )
