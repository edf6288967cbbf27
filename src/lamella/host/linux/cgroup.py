"""Control groups of instances, on whichever hierarchy the host has: ``<mark>/<instance id>`` in each of them.

Version 2 is one tree; version 1 (and the hybrid layout) is a tree a controller. On a hybrid host a group is in the tree of version 2
too, named ``""``: it has no controllers, but counts what the group's processes lost to waiting. Nothing here touches a group that is
not below the mark. Calls block for microseconds, but ``kill_all`` and ``remove`` wait for processes to die: run those
in a thread.
Facts: Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst of the kernel.
"""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Limits
from lamella.host.linux import cgroup_v1, cgroup_v2
from lamella.host.linux.cgroup_files import read_text, write
from lamella.host.linux.pressure import Kind, Stall, read_stall
from lamella.model.errors import DeadlineExceeded, Unsupported

ROOT = Path("/sys/fs/cgroup")
# Seconds for processes to stand still or to die: on a busy machine they wait for a processor or a disk first.
_PATIENCE = 30.0


class GroupUsage(msgspec.Struct, frozen=True, kw_only=True):
    """``memory`` is bytes without the page cache that the kernel would give back first."""

    cpu_seconds: float
    memory: int
    processes: int


class Cgroups:
    """All groups of one layer. *root* is where the hierarchies are mounted, *mark* the name of the layer's own group.

    :raise Unsupported: when there is no cgroup hierarchy at *root*.
    """

    def __init__(self, root: Path, mark: str) -> None:
        self.root = root
        self.mark = mark
        self.trees: dict[str, Path]
        if (root / "cgroup.controllers").exists():
            self.version = 2
            self.trees = {"": root}
        else:
            self.version = 1
            self.trees = cgroup_v1.trees(root)
            if not self.trees:
                raise Unsupported(
                    f"there are no control groups at {root}",
                    hint="mount cgroup2 there, or start the layer in its room, which makes a view of its own",
                )
            beside = cgroup_v1.beside(root)
            if beside is not None:
                self.trees[""] = beside

    def group(self, id: str) -> "Cgroup":
        return Cgroup(self, id)

    def ids(self) -> set[str]:
        """Names of the groups that are there below the mark, in any hierarchy."""
        found: set[str] = set()
        for tree in self.trees.values():
            with suppress(FileNotFoundError), os.scandir(tree / self.mark) as entries:
                found.update(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        return found

    def prepare(self) -> None:
        """Make the layer's own group, with every controller handed down to its children.

        :raise Unsupported: when the host does not hand a controller down to it.
        """
        if self.version == 2:
            cgroup_v2.hand_down(self.root)
        for name, tree in self.trees.items():
            (tree / self.mark).mkdir(exist_ok=True)
            if name == "cpuset":
                cgroup_v1.inherit_cpuset(tree, tree / self.mark)
        if self.version == 2:
            cgroup_v2.hand_down(self.root / self.mark)

    def remove(self) -> None:
        """Remove every group below the mark and the mark's own, killing what is left in them."""
        for id in self.ids():
            self.group(id).remove()
        _remove_trees([tree / self.mark for tree in self.trees.values()], 5.0)


class Cgroup:
    """The group of one instance (or of one purpose of the layer's own, such as its shims)."""

    def __init__(self, cgroups: Cgroups, id: str) -> None:
        self._cgroups = cgroups
        self.id = id

    @property
    def name(self) -> str:
        """``/<mark>/<id>``, as OCI runtimes want it in ``cgroupsPath``."""
        return f"/{self._cgroups.mark}/{self.id}"

    def path(self, controller: str) -> Path:
        """The directory that holds the files of *controller* (version 2: the one there is).

        :raise Unsupported: when this host has no such controller.
        """
        trees = self._cgroups.trees
        tree = trees.get("" if self._cgroups.version == 2 else controller)
        if tree is None:
            raise Unsupported(
                f"this host has no {controller} cgroup controller", hint="enable it on the kernel command line"
            )
        return tree / self._cgroups.mark / self.id

    def paths(self) -> list[Path]:
        """Its directories, one a hierarchy (controllers that are mounted together share one)."""
        trees = dict.fromkeys(self._cgroups.trees.values())
        return [tree / self._cgroups.mark / self.id for tree in trees]

    def procs_files(self) -> list[Path]:
        """Where a pid is written so that it is in the group, one file a hierarchy."""
        return [path / "cgroup.procs" for path in self.paths()]

    def exists(self) -> bool:
        return any(path.is_dir() for path in self.paths())

    def create(self, limits: Limits) -> None:
        """Make the group in every hierarchy and set *limits*; one that is there already is kept and set."""
        self._cgroups.prepare()
        for path in self.paths():
            path.mkdir(exist_ok=True)
        tree = self._cgroups.trees.get("cpuset")
        if tree is not None:
            cgroup_v1.inherit_cpuset(tree / self._cgroups.mark, self.path("cpuset"))
        self.update(limits)

    def update(self, limits: Limits) -> None:
        """Set all three limits; ``None`` lifts one.

        :raise Conflict: when more memory is in use than the new limit, and the kernel cannot give it back.
        :raise Unsupported: when a limit is asked that no controller here can hold.
        """
        if self._cgroups.version == 2:
            cgroup_v2.write_limits(self.path(""), limits)
        else:
            cgroup_v1.write_limits(self._v1_paths(), limits)

    def read_limits(self) -> Limits:
        """The limits that the kernel has now."""
        if self._cgroups.version == 2:
            return cgroup_v2.read_limits(self.path(""))
        return cgroup_v1.read_limits(self._v1_paths())

    def usage(self) -> GroupUsage:
        """What its processes use and used; zeros when the group is gone."""
        cpu, memory, processes = (
            cgroup_v2.usage(self.path("")) if self._cgroups.version == 2 else cgroup_v1.usage(self._v1_paths())
        )
        return GroupUsage(cpu_seconds=cpu, memory=memory, processes=processes or len(self.pids()))

    def oom_kills(self) -> int:
        """How many processes the kernel killed here because the memory limit was reached."""
        if self._cgroups.version == 2:
            return cgroup_v2.oom_kills(self.path(""))
        return cgroup_v1.oom_kills(self._v1_paths())

    def pressure(self, resource: Kind) -> Stall | None:
        """What its processes lost to waiting for *resource*; ``None`` where this host does not count that, and when the group is gone."""
        return None if self.counted is None else read_stall(self.counted / f"{resource}.pressure")

    @property
    def counted(self) -> Path | None:
        """Its directory where pressure is counted; ``None`` where this host has no tree of version 2."""
        tree = self._cgroups.trees.get("")
        return None if tree is None else tree / self._cgroups.mark / self.id

    def gather(self) -> None:
        """Bring into the tree that counts pressure who came into the group without it: an OCI runtime on a hybrid host knows only the
        trees of version 1. Their children come by themselves. Elsewhere there is nothing to do."""
        counted = self.counted
        if self._cgroups.version == 2 or counted is None:
            return
        controller = next(name for name in self._cgroups.trees if name)
        there = set(read_text(counted / "cgroup.procs").split())
        # One of another pid namespace is shown as 0, which written means the writer.
        for pid in set(read_text(self.path(controller) / "cgroup.procs").split()) - there - {"0"}:
            with suppress(OSError):
                write(counted / "cgroup.procs", pid)

    def pids(self) -> set[int]:
        """Processes in the group and in groups below it, as seen from this pid namespace."""
        found: set[int] = set()
        for directory in _descend(self.paths()):
            found.update(int(line) for line in read_text(directory / "cgroup.procs").split())
        return found - {0}

    def freeze(self) -> None:
        """Stop every process; returns when the kernel says that all stand still.

        :raise Unsupported: without a freezer.
        :raise DeadlineExceeded: when they did not stand still within half a minute.
        """
        if self._cgroups.version == 2:
            cgroup_v2.freeze(self.path(""), frozen=True)
        else:
            cgroup_v1.freeze(self.path("freezer"), frozen=True)
        deadline = time.monotonic() + _PATIENCE
        while not self.is_frozen():
            if time.monotonic() > deadline:
                self.thaw()
                raise DeadlineExceeded(
                    f"the processes of {self.id} did not stand still within {_PATIENCE:g} s", hint="try again"
                )
            time.sleep(0.001)

    def thaw(self) -> None:
        if self._cgroups.version == 2:
            cgroup_v2.freeze(self.path(""), frozen=False)
        elif "freezer" in self._cgroups.trees:
            cgroup_v1.freeze(self.path("freezer"), frozen=False)

    def is_frozen(self) -> bool:
        if self._cgroups.version == 2:
            return cgroup_v2.is_frozen(self.path(""))
        return "freezer" in self._cgroups.trees and cgroup_v1.is_frozen(self.path("freezer"))

    def kill_all(self, timeout: float = _PATIENCE) -> None:
        """SIGKILL every process and wait until none is left.

        :raise DeadlineExceeded: when some outlive it, which means that they wait in the kernel for a device.
        """
        deadline = time.monotonic() + timeout
        pause = 0.0005
        while pids := self.pids():
            killer = self._cgroups.version == 2 and cgroup_v2.kill(self.path(""))
            if not killer:
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            with suppress(OSError, Unsupported):
                self.thaw()
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"processes {sorted(pids)} of {self.id} outlive SIGKILL", hint="they wait in the kernel"
                )
            time.sleep(pause)
            pause = min(pause * 2, 0.02)

    def remove(self, timeout: float = _PATIENCE) -> None:
        """Kill what is left and remove the group everywhere; gone already is fine.

        :raise DeadlineExceeded: when the kernel keeps it busy.
        """
        if not self.exists():
            return
        self.kill_all(timeout)
        _remove_trees(self.paths(), timeout)

    def _v1_paths(self) -> dict[str, Path]:
        return {name: tree / self._cgroups.mark / self.id for name, tree in self._cgroups.trees.items()}


def _descend(tops: Iterable[Path]) -> list[Path]:
    """Every directory below *tops*, parents first."""
    found: list[Path] = []
    for top in tops:
        for directory, _, _ in os.walk(top):
            found.append(Path(directory))
    return found


def _remove_trees(tops: list[Path], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    for directory in reversed(_descend(tops)):
        while True:
            try:
                directory.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise DeadlineExceeded(f"cgroup {directory} cannot be removed: {error.strerror}") from error
                time.sleep(0.002)
