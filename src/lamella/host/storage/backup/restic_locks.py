"""Locks that dead processes left in a repository are ours to remove; those of the living are not.

``restic unlock`` would send SIGHUP to the pid in a lock to find out whether it lives (internal/restic/lock_unix.go of 0.14), which may be
somebody else's by now: so we look for ourselves, and have it remove only when all of them are dead.
"""

import os
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from lamella.host.storage.backup.child import Ran
from lamella.host.storage.backup.location import Location
from lamella.model.errors import Unavailable

# restic renews a lock every five minutes, and itself takes one of this age for dead.
STALE = timedelta(minutes=30)

Raw = Callable[[Sequence[str]], Awaitable[Ran]]


class Lock(msgspec.Struct):
    """A lock as restic writes it."""

    time: datetime
    hostname: str
    pid: int = 0
    exclusive: bool = False


async def clear(raw: Raw, location: Location) -> int:
    """Remove locks of the dead; how many.

    :raise Unavailable: when somebody living has one.
    """
    dead: list[str] = []
    living: list[Lock] = []
    listed = await raw(["list", "locks", "--no-lock"])
    for id in listed.out.decode().split():
        seen = await raw(["cat", "lock", id, "--no-lock"])
        try:
            lock = msgspec.json.decode(seen.out, type=Lock)
        except msgspec.DecodeError:
            # Cut short when its owner died, or gone by now.
            dead.append(id)
            continue
        if is_dead(lock, os.uname().nodename, datetime.now(UTC)):
            dead.append(id)
        else:
            living.append(lock)
    if location.directory:
        for id in dead:
            (Path(location.directory) / "locks" / id).unlink(missing_ok=True)
    elif dead and not living:
        await raw(["unlock", "--remove-all"])
    if living and any(lock.exclusive for lock in living):
        who = next(lock for lock in living if lock.exclusive)
        raise Unavailable(
            f"the repository is being worked on by {who.hostname} (pid {who.pid}) since {who.time:%H:%M:%S}",
            hint="try again when that has ended",
        )
    return len(dead)


def is_dead(lock: Lock, host: str, now: datetime) -> bool:
    """Whether whoever made it is gone: too old, or a pid of this host that is no engine's any more."""
    if now - lock.time > STALE:
        return True
    if lock.hostname != host:
        return False
    try:
        return Path(f"/proc/{lock.pid}/comm").read_text().strip() != "restic" or _zombie(lock.pid)
    except OSError:
        return True


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True
