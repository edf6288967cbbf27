"""What processes have in memory, and what they would have alone: /proc/PID/smaps_rollup and ksm_merging_pages (proc(5)). Blocks."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SHARED = ("Shared_Clean", "Shared_Dirty")
_PRIVATE = ("Private_Clean", "Private_Dirty")
_HUGE = ("Private_Hugetlb", "Shared_Hugetlb")


class Memory(msgspec.Struct, kw_only=True, frozen=True):
    """Bytes of one process: ``own`` that nobody else maps, ``shared`` that others map too, ``proportional`` its share of all of it,
    ``huge`` in pages that were set apart, ``merged`` in pages that the kernel found equal to others."""

    own: int = 0
    shared: int = 0
    proportional: int = 0
    huge: int = 0
    merged: int = 0


def read(pid: int, proc: Path = Path("/proc")) -> Memory:
    """That of *pid*; nothing when it is gone."""
    try:
        fields = parse((proc / str(pid) / "smaps_rollup").read_text())
    except OSError:
        return Memory()
    merged = 0
    with suppress(OSError, ValueError):
        merged = int((proc / str(pid) / "ksm_merging_pages").read_text()) * _PAGE
    return Memory(
        own=sum(fields.get(name, 0) for name in _PRIVATE),
        shared=sum(fields.get(name, 0) for name in _SHARED),
        proportional=fields.get("Pss", 0),
        huge=sum(fields.get(name, 0) for name in _HUGE),
        merged=merged,
    )


def parse(text: str) -> dict[str, int]:
    """Bytes by the name of a line (``Pss:   668 kB``)."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[0].endswith(":") and words[1].isdecimal() and words[2] == "kB":
            found[words[0][:-1]] = int(words[1]) << 10
    return found


def alone(processes: Iterable[Memory]) -> int:
    """What the processes of one instance would take by themselves. Pages that several of them map are counted once, as those of the one
    that shares most: rather too little than too much."""
    known = list(processes)
    return sum(one.own + one.huge for one in known) + max((one.shared for one in known), default=0)


def together(processes: Iterable[Memory]) -> int:
    """What they take beside everything else."""
    return sum(one.proportional + one.huge for one in processes)
