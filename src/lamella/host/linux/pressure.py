"""What processes lost to waiting: the pressure files (PSI) of a group or of the whole host.

Facts: Documentation/accounting/psi.rst of the kernel.
"""

from pathlib import Path
from typing import Literal

import msgspec

from lamella.host.linux.cgroup_files import read_text

Kind = Literal["cpu", "memory", "io"]

PROC = Path("/proc/pressure")


class Stall(msgspec.Struct, frozen=True):
    """Seconds in total, since the group was made, in which *some* of its processes waited, and in which all of them did (*full*; ``None``
    where that is not counted). Of processors, *some* counts waiting behind one another too, *full* behind others alone."""

    some: float
    full: float | None


def read_stall(file: Path) -> Stall | None:
    """What a pressure file says; ``None`` when the group is gone, and where this kernel does not count (``psi=0``, before 4.20)."""
    try:
        return parse_stall(read_text(file))
    except OSError:
        return None


def parse_stall(text: str) -> Stall | None:
    """The totals, in microseconds there. Kernels before 5.13 have no line ``full`` for processors."""
    totals: dict[str, float] = {}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        total = rest.rpartition("total=")[2].strip()
        if total.isdecimal():
            totals[kind] = int(total) / 1e6
    if "some" not in totals:
        return None
    return Stall(some=totals["some"], full=totals.get("full"))
