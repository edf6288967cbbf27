"""Version 1 of the cgroup files: a tree a controller. *paths* maps a controller to the group's directory."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from lamella.host.compute.driver import Limits
from lamella.host.linux.cgroup_files import read_number, read_table, read_text, write
from lamella.model.errors import Conflict, Unsupported

PERIOD = 100_000
UNLIMITED = 1 << 60


def trees(root: Path) -> dict[str, Path]:
    """Every version 1 hierarchy below *root* by controller; those that are mounted together name the same directory.

    The version 2 tree of a hybrid layout is not among them: it has ``cgroup.controllers``.
    """
    found: dict[str, Path] = {}
    if not root.is_dir():
        return found
    for entry in sorted(root.iterdir()):
        if not (entry / "cgroup.procs").exists() or (entry / "cgroup.controllers").exists():
            continue
        # `cpu` may be a link to `cpu,cpuacct`: the link's name is the controller's, the directory is the same.
        for controller in entry.name.split(","):
            found.setdefault(controller, entry.resolve())
    return found


def beside(root: Path) -> Path | None:
    """The version 2 tree of a hybrid layout, where groups can be made in it."""
    with suppress(OSError):
        found = (entry for entry in sorted(root.iterdir()) if (entry / "cgroup.controllers").exists())
        return next((entry for entry in found if os.access(entry, os.W_OK)), None)
    return None


def inherit_cpuset(parent: Path, child: Path) -> None:
    """Give a fresh cpuset group what its parent has: without CPUs and nodes no process may enter it."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not read_text(child / name).strip():
            write(child / name, read_text(parent / name).strip())


def write_limits(paths: dict[str, Path], limits: Limits) -> None:
    """:raise Conflict: when more memory is in use than asked. :raise Unsupported: when a controller is missing."""
    for value, controller in ((limits.cpu, "cpu"), (limits.memory, "memory"), (limits.pids, "pids")):
        if value is not None and controller not in paths:
            raise Unsupported(f"this host has no {controller} cgroup controller, so that limit cannot be held")
    if "cpu" in paths:
        write(paths["cpu"] / "cpu.cfs_period_us", PERIOD)
        write(paths["cpu"] / "cpu.cfs_quota_us", -1 if limits.cpu is None else max(1000, limits.cpu * PERIOD // 1000))
    if "memory" in paths:
        _write_memory(paths["memory"], -1 if limits.memory is None else limits.memory)
    if "pids" in paths:
        write(paths["pids"] / "pids.max", "max" if limits.pids is None else limits.pids)


def _write_memory(path: Path, value: int) -> None:
    """Memory and memory+swap, in the order in which the kernel takes them: the second is never below the first."""
    plain, swap = path / "memory.limit_in_bytes", path / "memory.memsw.limit_in_bytes"
    files = [plain, swap] if swap.exists() else [plain]
    now = read_number(plain) or 0
    if value < 0 or value > now:
        files.reverse()
    try:
        for file in files:
            write(file, value)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        used = read_number(path / "memory.usage_in_bytes") or 0
        raise Conflict(
            f"the instance uses {used} bytes of memory, more than the new limit of {value}",
            hint="free memory inside, choose a higher limit, or restart it",
            field="memory",
        ) from error


def read_limits(paths: dict[str, Path]) -> Limits:
    cpu = memory = pids = None
    if "cpu" in paths:
        quota = read_number(paths["cpu"] / "cpu.cfs_quota_us")
        period = read_number(paths["cpu"] / "cpu.cfs_period_us") or PERIOD
        cpu = None if quota is None or quota < 0 else quota * 1000 // period
    if "memory" in paths:
        memory = read_number(paths["memory"] / "memory.limit_in_bytes")
        memory = memory if memory is not None and 0 <= memory < UNLIMITED else None
    if "pids" in paths:
        pids = read_number(paths["pids"] / "pids.max")
    return Limits(cpu=cpu, memory=memory, pids=pids)


def usage(paths: dict[str, Path]) -> tuple[float, int, int]:
    """CPU seconds, bytes of memory without inactive page cache, processes."""
    nanoseconds = (read_number(paths["cpuacct"] / "cpuacct.usage") or 0) if "cpuacct" in paths else 0
    memory = 0
    if "memory" in paths:
        memory = read_number(paths["memory"] / "memory.usage_in_bytes") or 0
        memory -= read_table(paths["memory"] / "memory.stat").get("total_inactive_file", 0)
    processes = (read_number(paths["pids"] / "pids.current") or 0) if "pids" in paths else 0
    return nanoseconds / 1e9, max(0, memory), processes


def oom_kills(paths: dict[str, Path]) -> int:
    return read_table(paths["memory"] / "memory.oom_control").get("oom_kill", 0) if "memory" in paths else 0


def freeze(path: Path, *, frozen: bool) -> None:
    write(path / "freezer.state", "FROZEN" if frozen else "THAWED")


def is_frozen(path: Path) -> bool:
    return read_text(path / "freezer.state").strip() == "FROZEN"
