"""What the kernel counts of one group, read cheaply: files stay open, and each is read by one call.

Facts: Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst, Documentation/accounting/psi.rst of the kernel.
"""

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.linux.cgroup import Cgroup
from lamella.host.linux.cgroup_files import write
from lamella.host.linux.cgroup_v1 import PERIOD, UNLIMITED
from lamella.host.linux.pressure import Stall, parse_stall

_MOST = 4096
_ROOM = 128 << 10
_V1 = {
    "used": ("cpuacct", "cpuacct.usage"),
    "cpu": ("cpu", "cpu.stat"),
    "quota": ("cpu", "cpu.cfs_quota_us"),
    "memory": ("memory", "memory.usage_in_bytes"),
    "limit": ("memory", "memory.limit_in_bytes"),
    "full": ("memory", "memory.failcnt"),
    "peak": ("memory", "memory.max_usage_in_bytes"),
    "oom": ("memory", "memory.oom_control"),
}
_V2 = {
    "cpu": ("", "cpu.stat"),
    "quota": ("", "cpu.max"),
    "memory": ("", "memory.current"),
    "limit": ("", "memory.max"),
    "oom": ("", "memory.events"),
}
_PRESSURE = {f"{kind} waits": ("", f"{kind}.pressure") for kind in ("cpu", "memory", "io")}


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """Of one group at the time *at* (seconds, monotonic). Seconds of processor *used* and *throttled* (summed over processors);
    ``*_waits`` are seconds lost to waiting, ``None`` where that is not counted. *cpu_limit* is cores, memory in bytes.
    *full* is how often the memory limit was reached, *peak* the most memory since :meth:`GroupReader.lower_peak` (version 1 alone: where
    the limit with swap is the same, that one is charged first, and Linux 6.18 does not count how often it was reached).
    *received* and *sent* are bytes that passed its first NIC."""

    at: float
    used: float
    throttled: float = 0.0
    cpu_limit: float | None = None
    memory: int | None = None
    memory_limit: int | None = None
    full: int = 0
    peak: int | None = None
    oom_kills: int = 0
    cpu_waits: Stall | None = None
    memory_waits: Stall | None = None
    io_waits: Stall | None = None
    received: int | None = None
    sent: int | None = None

    @property
    def at_limit(self) -> bool:
        """Whether *peak* says that there was no room for a page more below the limit; a kernel stack is four."""
        return self.peak is not None and self.memory_limit is not None and self.peak > self.memory_limit - _ROOM


class GroupReader:
    """Reads one group again and again. *keep* holds its files open between two readings: eleven descriptors or less."""

    def __init__(self, group: Cgroup, *, version: int, keep: bool = True) -> None:
        self._paths = _files(group, version)
        self._version = version
        self._keep = keep
        self._open: dict[str, int] = {}

    def read(self, at: float) -> Counters | None:
        """What is counted now; ``None`` when the group is gone. One of its name that comes back is found again. Blocks for microseconds."""
        try:
            texts = {name: self._read(name, path) for name, path in self._paths.items()}
        except OSError:
            self.close()
            return None
        finally:
            if not self._keep:
                self.close()
        return parse_v2(texts, at) if self._version == 2 else parse_v1(texts, at)

    def lower_peak(self) -> None:
        """From now on the peak is of what comes; for the one reader whose readings are compared."""
        with suppress(OSError):
            write(self._paths["peak"], 0)

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def _read(self, name: str, path: Path) -> str:
        descriptor = self._open.get(name)
        if descriptor is None:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                # A file that this kernel lacks is no reading; a group that is gone is none at all.
                if name in _PRESSURE or path.parent.is_dir():
                    return ""
                raise
            self._open[name] = descriptor
        try:
            return os.pread(descriptor, _MOST, 0).decode(errors="replace")
        except OSError:
            if name in _PRESSURE:
                return ""
            raise


def _files(group: Cgroup, version: int) -> dict[str, Path]:
    """The files that are there to be read, by what they tell."""
    found: dict[str, Path] = {}
    for name, (controller, file) in ({} if version == 2 else _V1).items():
        with suppress(Exception):
            found[name] = group.path(controller) / file
    for name, (_, file) in (_V2 if version == 2 else {}).items():
        found[name] = group.path("") / file
    counted = group.counted
    if counted is not None:
        found |= {name: counted / file for name, (_, file) in _PRESSURE.items()}
    return found


def parse_v1(texts: dict[str, str], at: float) -> Counters | None:
    """``None`` when it is not told how much of the processors was used."""
    used = _number(texts.get("used", ""))
    if used is None:
        return None
    quota, limit = _number(texts.get("quota", "")), _number(texts.get("limit", ""))
    return Counters(
        at=at,
        used=used / 1e9,
        throttled=(_field(texts.get("cpu", ""), "throttled_time") or 0) / 1e9,
        cpu_limit=quota / PERIOD if quota is not None and quota > 0 else None,
        memory=_number(texts.get("memory", "")),
        memory_limit=limit if limit is not None and limit < UNLIMITED else None,
        full=_number(texts.get("full", "")) or 0,
        peak=_number(texts.get("peak", "")),
        oom_kills=_field(texts.get("oom", ""), "oom_kill") or 0,
        cpu_waits=_waits(texts, "cpu"),
        memory_waits=_waits(texts, "memory"),
        io_waits=_waits(texts, "io"),
    )


def parse_v2(texts: dict[str, str], at: float) -> Counters | None:
    """``None`` when it is not told how much of the processors was used."""
    cpu, memory = texts.get("cpu", ""), texts.get("oom", "")
    used = _field(cpu, "usage_usec")
    if used is None:
        return None
    quota, _, period = texts.get("quota", "").strip().partition(" ")
    return Counters(
        at=at,
        used=used / 1e6,
        throttled=(_field(cpu, "throttled_usec") or 0) / 1e6,
        cpu_limit=int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None,
        memory=_number(texts.get("memory", "")),
        memory_limit=_number(texts.get("limit", "")),
        full=_field(memory, "max") or 0,
        oom_kills=_field(memory, "oom_kill") or 0,
        cpu_waits=_waits(texts, "cpu"),
        memory_waits=_waits(texts, "memory"),
        io_waits=_waits(texts, "io"),
    )


def _waits(texts: dict[str, str], kind: str) -> Stall | None:
    return parse_stall(texts.get(f"{kind} waits", ""))


def _number(text: str) -> int | None:
    stripped = text.strip()
    return int(stripped) if stripped.lstrip("-").isdecimal() else None


def _field(text: str, name: str) -> int | None:
    """The number on the line ``name number``."""
    _, found, rest = f"\n{text}".partition(f"\n{name} ")
    return _number(rest.partition("\n")[0]) if found else None


def links(text: str) -> dict[str, tuple[int, int]]:
    """Bytes received and sent by each link of a ``/proc/PID/net/dev`` (proc(5))."""
    found: dict[str, tuple[int, int]] = {}
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        figures = rest.split()
        if colon and len(figures) >= 9:
            found[name.strip()] = (int(figures[0]), int(figures[8]))
    return found
