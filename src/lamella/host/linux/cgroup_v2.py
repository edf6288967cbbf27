"""Version 2 of the cgroup files: one tree; *path* is the group's directory in it."""

from contextlib import suppress
from pathlib import Path

from lamella.host.compute.driver import Limits
from lamella.host.linux.cgroup_files import read_number, read_table, read_text, write
from lamella.model.errors import Conflict, Unsupported

PERIOD = 100_000
WANTED = ("cpu", "memory", "pids", "io", "cpuset")
NEEDED = {"cpu", "memory", "pids"}


def hand_down(directory: Path) -> None:
    """Enable every controller that we use for the children of *directory*.

    :raise Unsupported: when the kernel or the one who gave us this tree keeps one of the needed ones.
    """
    there = set(read_text(directory / "cgroup.controllers").split())
    enabled = set(read_text(directory / "cgroup.subtree_control").split())
    for controller in WANTED:
        if controller in there and controller not in enabled:
            with suppress(OSError):
                write(directory / "cgroup.subtree_control", f"+{controller}")
                enabled.add(controller)
    missing = NEEDED - enabled
    if missing:
        raise Unsupported(
            f"the cgroup controllers {', '.join(sorted(missing))} are not available below {directory}",
            hint="delegate them to the layer (systemd: Delegate=yes), or enable them on the kernel command line",
        )


def write_limits(path: Path, limits: Limits) -> None:
    """:raise Conflict: when more memory is in use than asked and cannot be given back."""
    quota = "max" if limits.cpu is None else str(max(1000, limits.cpu * PERIOD // 1000))
    write(path / "cpu.max", f"{quota} {PERIOD}")
    _write_memory(path, limits.memory)
    write(path / "pids.max", "max" if limits.pids is None else limits.pids)


def _write_memory(path: Path, value: int | None) -> None:
    # Writing memory.max below the usage ends in the OOM killer; memory.high only reclaims, so it goes first.
    if value is not None and (read_number(path / "memory.current") or 0) > value:
        write(path / "memory.high", value)
    used = read_number(path / "memory.current") or 0
    # Who was killed while he reclaimed (cgroup_memory.py, too) left it low.
    if (path / "memory.high").exists():
        write(path / "memory.high", "max")
    if value is not None and used > value:
        raise Conflict(
            f"the instance uses {used} bytes of memory, more than the new limit of {value}",
            hint="free memory inside, choose a higher limit, or restart it",
            field="memory",
        )
    write(path / "memory.max", "max" if value is None else value)
    if (path / "memory.swap.max").exists():
        write(path / "memory.swap.max", "max" if value is None else 0)


def read_limits(path: Path) -> Limits:
    quota, _, period = read_text(path / "cpu.max").strip().partition(" ")
    cpu = int(quota) * 1000 // int(period) if quota.isdecimal() and period.isdecimal() else None
    return Limits(cpu=cpu, memory=read_number(path / "memory.max"), pids=read_number(path / "pids.max"))


def usage(path: Path) -> tuple[float, int, int]:
    """CPU seconds, bytes of memory without inactive page cache, processes."""
    microseconds = read_table(path / "cpu.stat").get("usage_usec", 0)
    memory = (read_number(path / "memory.current") or 0) - read_table(path / "memory.stat").get("inactive_file", 0)
    return microseconds / 1e6, max(0, memory), read_number(path / "pids.current") or 0


def oom_kills(path: Path) -> int:
    return read_table(path / "memory.events").get("oom_kill", 0)


def freeze(path: Path, *, frozen: bool) -> None:
    write(path / "cgroup.freeze", 1 if frozen else 0)


def is_frozen(path: Path) -> bool:
    return read_table(path / "cgroup.events").get("frozen", 0) == 1


def kill(path: Path) -> bool:
    """Kill all at once (kernel 5.14 and later); false when this kernel cannot."""
    try:
        write(path / "cgroup.kill", 1)
    except OSError:
        return False
    return True
