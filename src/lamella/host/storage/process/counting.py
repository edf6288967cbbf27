"""How much an open volume is used. QEMU 7.2 counts nothing for exports, but each volume's file is served by a thread of its own, and the
kernel counts what that thread reads from and writes to /dev/fuse (proc(5), ``io``: rchar, wchar, syscr). A write is a read for it.

Which thread is whose the program does not tell (``query-iothreads`` is of QEMU's machines alone): it is the one that was not there
before the volume's ``iothread`` was made. That is written down, for the next daemon. What a volume's socket carries is not counted: the
main thread serves all sockets.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.linux.processes import start_time
from lamella.host.storage.blocks import Counted

_FUTEX = "202"
_LOOKS = 20


class Served(msgspec.Struct, kw_only=True, frozen=True):
    """The thread of one volume, and when its process began: ids are given to others again."""

    process: int
    began: int
    thread: int


async def born(process: int, make: Callable[[], Awaitable[bool]]) -> Served | None:
    """The thread that *make* starts in *process*; ``None`` when it says that it starts none, or others started at once and stay.

    One at a time for each process.
    """
    before = _threads(process)
    if not await make():
        return None
    for _ in range(_LOOKS):
        fresh = {thread for thread in _threads(process) - before if _waits(process, thread)}
        if len(fresh) == 1:
            return Served(process=process, began=start_time(process) or 0, thread=fresh.pop())
        # Those that connect to a socket end at once.
        await asyncio.sleep(0.005)
    return None


def _threads(process: int) -> set[int]:
    try:
        return {int(name) for name in os.listdir(f"/proc/{process}/task")}  # noqa: PTH208
    except OSError:
        return set()


def _waits(process: int, thread: int) -> bool:
    """For files, as an ``iothread`` does, and not for work, as those of the pool do."""
    with suppress(OSError):
        return Path(f"/proc/{process}/task/{thread}/syscall").read_text().split()[0] not in (_FUTEX, "running")
    return False


def write(place: Path, served: Served) -> None:
    fresh = place.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(served))
    fresh.rename(place)


def read(place: Path) -> Counted | None:
    """``None`` when there is no such thread any more, or the kernel does not count."""
    try:
        served = msgspec.json.decode(place.read_bytes(), type=Served)
        if start_time(served.process) != served.began:
            return None
        text = Path(f"/proc/{served.process}/task/{served.thread}/io").read_text()
    except (OSError, msgspec.MsgspecError):
        return None
    lines = dict(line.split(": ") for line in text.splitlines())
    return Counted(bytes=int(lines["rchar"]) + int(lines["wchar"]), operations=int(lines["syscr"]))
