"""What a group gets of the host's processors: its weight against its neighbours, and the CPUs and memory nodes that it may use.

Weights are told in milli-cores' worth: what the kernel gives a group that nobody asked anything for is one core's (``cpu.shares`` 1024,
``cpu.weight`` 100). Where a group is in no cpuset hierarchy, its threads are told one by one (sched_setaffinity(2)), which holds for those
that they start, too. Facts: Documentation/scheduler/sched-design-CFS.rst, admin-guide/cgroup-v1/cpusets.rst, admin-guide/cgroup-v2.rst.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.linux.cgroup_files import read_number, read_text, write
from lamella.model.cpulist import format_list, parse_list

CORE = 1000
# Per version: the weight of one core, and the range that the kernel takes.
_SHARES = (1024, 2, 262_144)
_WEIGHT = (100, 1, 10_000)


class Seat(msgspec.Struct, kw_only=True, frozen=True):
    """``weight`` is milli-cores' worth, ``None`` the kernel's own; ``cpus`` and ``nodes`` are what it may use, ``None`` its parent's."""

    weight: int | None = None
    cpus: tuple[int, ...] | None = None
    nodes: tuple[int, ...] | None = None


class Held(msgspec.Struct, kw_only=True, frozen=True):
    """What the kernel says of a group: the weight in its own numbers, and where each was read. ``cpus`` is what its
    threads were told where it is in no cpuset."""

    weight: int | None
    weight_file: str
    cpus: list[int]
    nodes: list[int]
    cpus_file: str


def shares(weight: int | None) -> int:
    """``cpu.shares`` of *weight* milli-cores' worth."""
    return _scaled(weight, *_SHARES)


def weights(weight: int | None) -> int:
    """``cpu.weight`` of *weight* milli-cores' worth."""
    return _scaled(weight, *_WEIGHT)


def _scaled(weight: int | None, core: int, least: int, most: int) -> int:
    return core if weight is None else min(most, max(least, round(weight * core / CORE)))


class Group(msgspec.Struct, kw_only=True, frozen=True):
    """The directories of a group: where its weight is, and its cpuset (``None``: it has none). They are one in version 2."""

    version: int
    cpu: Path | None
    cpuset: Path | None

    @classmethod
    def find(cls, version: int, trees: dict[str, Path], name: str) -> "Group":
        """The group *name* below the mark's own directory in *trees*; a hierarchy that it is not in is left out."""
        if version == 2:
            path = trees[""] / name
            there = path if path.is_dir() else None
            bounded = there if there is not None and (there / "cpuset.cpus").exists() else None
            return cls(version=2, cpu=there, cpuset=bounded)
        found = {key: trees[key] / name for key in ("cpu", "cpuset") if key in trees and (trees[key] / name).is_dir()}
        return cls(version=1, cpu=found.get("cpu"), cpuset=found.get("cpuset"))

    @property
    def weight_file(self) -> str:
        return "cpu.weight" if self.version == 2 else "cpu.shares"

    def read(self) -> Held:
        """What it has now."""
        cpus: list[int] = []
        nodes: list[int] = []
        if self.cpuset is not None:
            effective = ".effective" if self.version == 2 else ""
            cpus = parse_list(read_text(self.cpuset / f"cpuset.cpus{effective}"))
            nodes = parse_list(read_text(self.cpuset / f"cpuset.mems{effective}"))
        elif self.cpu is not None:
            cpus = sorted(affinity(self.cpu))
        return Held(
            weight=read_number(self.cpu / self.weight_file) if self.cpu is not None else None,
            weight_file=str(self.cpu / self.weight_file) if self.cpu is not None else "",
            cpus=cpus,
            nodes=nodes,
            cpus_file=str(self.cpuset / "cpuset.cpus") if self.cpuset is not None else "",
        )

    def take(self, seat: Seat) -> None:
        """Give it *seat*; what the kernel has already is not written again. A group that goes meanwhile is fine.

        :raise OSError: when the kernel refuses it.
        """
        wanted = weights(seat.weight) if self.version == 2 else shares(seat.weight)
        with _gone():
            if self.cpu is not None and read_number(self.cpu / self.weight_file) not in (wanted, None):
                write(self.cpu / self.weight_file, wanted)
        if self.cpuset is not None:
            for file, ids in (("cpuset.cpus", seat.cpus), ("cpuset.mems", seat.nodes)):
                self._bound(self.cpuset, file, ids)
        elif self.cpu is not None:
            confine(self.cpu, seat.cpus)

    def _bound(self, path: Path, file: str, ids: tuple[int, ...] | None) -> None:
        # An empty list is the parent's in version 2; in version 1 nothing could run with it.
        text = (
            format_list(ids) if ids is not None else "" if self.version == 2 else read_text(path.parent / file).strip()
        )
        with _gone():
            if parse_list(read_text(path / file)) == parse_list(text):
                return
            if self.version == 1:
                if file == "cpuset.mems":
                    write(path / "cpuset.memory_migrate", 1)
                # No group of version 1 may have less than those below it.
                for below in sorted(path.glob("**/"), reverse=True):
                    if below != path and not set(parse_list(read_text(below / file))) <= set(parse_list(text)):
                        write(below / file, text)
            write(path / file, text)


class _gone(suppress):  # noqa: N801 - reads as what it is
    """The group was removed between two looks: ENOENT before the open, ENODEV after it."""

    def __init__(self) -> None:
        super().__init__(OSError)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENODEV)


def confine(group: Path, cpus: tuple[int, ...] | None) -> None:
    """Have every thread in *group* run on *cpus* alone (``None``: on all that there are)."""
    wanted = set(cpus) if cpus is not None else set(parse_list(read_text(Path("/sys/devices/system/cpu/online"))))
    for line in read_text(group / "cgroup.procs").split():
        with suppress(OSError):
            for thread in Path(f"/proc/{line}/task").iterdir():
                set_affinity(int(thread.name), wanted)


def affinity(group: Path) -> set[int]:
    """CPUs that any process in *group* may run on."""
    found: set[int] = set()
    for line in read_text(group / "cgroup.procs").split():
        with suppress(OSError):
            found |= os.sched_getaffinity(int(line))
    return found


def set_affinity(thread: int, cpus: set[int]) -> None:
    """Let *thread* run on *cpus* alone; one that has ended, or may not run on any of them, is fine."""
    with suppress(ProcessLookupError, OSError):
        if os.sched_getaffinity(thread) != cpus:
            os.sched_setaffinity(thread, cpus)
