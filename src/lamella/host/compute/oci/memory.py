"""What a container has of its host's memory, and taking back the page cache that it left lying.

Its processes' own memory stays theirs: without swap the kernel has nowhere to put it. What is taken back is read from disk again by who
needs it, and the ceiling is afterwards what it was.
"""

import os

from lamella.host.linux import cgroup_memory
from lamella.host.linux.cgroup import Cgroup
from lamella.host.memory.driver import Held

# Below this much cold cache it is not worth the reading.
LEAST = 32 << 20


def held(group: Cgroup, *, paused: bool) -> Held:
    """What the group has now. Blocks while files are read."""
    path = group.path("memory")
    seen = cgroup_memory.read(path)
    stall = group.pressure("memory")
    return Held(
        held=seen.used,
        ceiling=_whole() if seen.limit is None else seen.limit,
        # The kernel counts a host's page cache as available already.
        resident=max(0, seen.used - seen.cache),
        used=None if paused else seen.used - seen.cold,
        silent="it is paused" if paused else "",
        waited=0.0 if stall is None else stall.some,
        means="its page cache (there is no swap: nothing else can be taken)",
        evidence=os.fspath(path),
    )


def hold(group: Cgroup, target: int, floor: int) -> None:
    """Have cold page cache above *target* bytes go, and *floor* bytes be spared by the kernel. Blocks while the kernel takes it."""
    path = group.path("memory")
    cgroup_memory.protect(path, floor)
    if cgroup_memory.read(path).used - target >= LEAST:
        cgroup_memory.reclaim(path, target)


def _whole() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
