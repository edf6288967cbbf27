"""Taking page cache back from a group, and sparing it: on version 2 with the kernel's own verb for it, on version 1 by its limit.

Without swap nothing but page cache can be taken from processes. *path* is the group's directory of the memory controller.
Facts: Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst of the kernel.
"""

import errno
import threading
from pathlib import Path

import msgspec

from lamella.host.linux.cgroup_files import read_number, read_table, read_text, write

_UNLIMITED = 1 << 60
# Of the cache that nobody has read for a while, so much is left when a limit is lowered for a moment: who needs a page then takes of that,
# and is not killed.
_LEFT = 16 << 20
# More than this is not taken at once: who asked waits for it.
_MOST = 256 << 20
_sparing = threading.Lock()


class GroupMemory(msgspec.Struct, kw_only=True, frozen=True):
    """Bytes: all that its processes use, and of that the page cache, ``cold`` where it was not read for a while. ``limit`` is ``None``
    where there is none."""

    used: int
    cache: int
    cold: int
    limit: int | None


def read(path: Path) -> GroupMemory:
    """What the group has now; zeros when it is gone."""
    if _second(path):
        limit = read_number(path / "memory.max")
        stat = read_table(path / "memory.stat")
        return GroupMemory(
            used=read_number(path / "memory.current") or 0,
            cache=stat.get("inactive_file", 0) + stat.get("active_file", 0),
            cold=max(0, stat.get("inactive_file", 0) - _written(stat, "file_dirty", "file_writeback")),
            limit=limit,
        )
    limit = read_number(path / "memory.limit_in_bytes")
    stat = read_table(path / "memory.stat")
    return GroupMemory(
        used=read_number(path / "memory.usage_in_bytes") or 0,
        cache=stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0),
        cold=max(0, stat.get("total_inactive_file", 0) - _written(stat, "total_dirty", "total_writeback")),
        limit=limit if limit is not None and limit < _UNLIMITED else None,
    )


def reclaim(path: Path, target: int) -> int:
    """Have the kernel take cold page cache until *target* bytes are left; returns how many it took. Blocks while it does.

    The limit is afterwards what it was. Fewer than asked is no error: what is written to or in use stays, and much goes in several
    calls.
    """
    before = read(path)
    amount = min(before.used - target, before.cold - _LEFT, _MOST)
    if amount <= 0:
        return 0
    if _second(path):
        _take_second(path, before, amount)
    else:
        _take_first(path, before, amount)
    return max(0, before.used - read(path).used)


def protect(path: Path, floor: int) -> None:
    """When the host runs short, take from others before this group has less than *floor* bytes; 0 takes that back.

    On version 2 a group is spared no more than the one above it: that has as much as all groups in it together.
    """
    if _second(path):
        file, value = path / "memory.low", str(floor)
    else:
        # Beyond its soft limit a group is the first from which is taken; without one it is among the last.
        file, value = path / "memory.soft_limit_in_bytes", str(floor or -1)
    now = read_number(file)
    if file.exists() and now != int(value) and not (now is not None and now >= _UNLIMITED and value == "-1"):
        write(file, value)
        if _second(path):
            _spare_above(path.parent)


def _spare_above(path: Path) -> None:
    file = path / "memory.low"
    with _sparing:
        floors = sum(read_number(low) or 0 for low in path.glob("*/memory.low"))
        if file.exists() and read_number(file) != floors:
            write(file, floors)


def _take_second(path: Path, before: GroupMemory, amount: int) -> None:
    own = path / "memory.reclaim"
    try:
        if own.exists():
            write(own, amount)
            return
        write(path / "memory.high", before.used - amount)
    except OSError as error:
        # It took what it could.
        if error.errno not in (errno.EAGAIN, errno.EINTR):
            raise
    finally:
        if not own.exists():
            write(path / "memory.high", "max")


def _take_first(path: Path, before: GroupMemory, amount: int) -> None:
    file = path / "memory.limit_in_bytes"
    held = read_text(file).strip()
    if not held or (before.limit is not None and before.used - amount >= before.limit):
        return
    try:
        write(file, before.used - amount)
    except OSError as error:
        # It took what it could, and left the limit as it was.
        if error.errno not in (errno.EBUSY, errno.EINTR):
            raise
    finally:
        write(file, -1 if before.limit is None else held)


def _second(path: Path) -> bool:
    return (path / "memory.current").exists()


def _written(stat: dict[str, int], *names: str) -> int:
    return sum(stat.get(name, 0) for name in names)
