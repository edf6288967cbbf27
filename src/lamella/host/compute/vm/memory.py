"""The memory of a machine as an ELF core: written by QEMU through a descriptor, streamed from a file, and kept when the guest crashed."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import msgspec

from lamella.host.compute.qemu.monitor import Monitor
from lamella.host.compute.qemu.places import sync_directory
from lamella.model.errors import Internal, NotFound, Unavailable

MOST_KEPT = 2
DEADLINE = 600.0
_PIECE = 1 << 20
_SUFFIX = ".core"


class _Progress(msgspec.Struct):
    status: str


async def write_memory(monitor: Monitor, fd: int) -> None:
    """Have QEMU write the guest's memory to the file *fd*; the guest stands still meanwhile.

    :raise Internal: when QEMU cannot write it (the disk is full, say).
    :raise Unavailable: when it takes longer than ten minutes, or QEMU ends.
    """
    async with monitor.named_fd(fd) as name:
        await monitor.execute("dump-guest-memory", {"paging": False, "protocol": f"fd:{name}", "detach": True})
        try:
            async with asyncio.timeout(DEADLINE):
                while True:
                    status = (await monitor.ask(_Progress, "query-dump")).status
                    if status == "completed":
                        return
                    if status == "failed":
                        raise Internal(
                            "QEMU could not write the memory out", hint="see whether the host's disk is full"
                        )
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise Unavailable(f"the memory was not written within {DEADLINE:g} s") from None


async def keep(monitor: Monitor, state: Path) -> Path:
    """Write the memory of a guest that crashed to a file in *state*; the newest ``MOST_KEPT`` are kept."""
    name = datetime.now(UTC).strftime("crash-%Y%m%dT%H%M%S.%f")
    new = state / f"{name}.new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        await write_memory(monitor, fd)
        await asyncio.to_thread(os.fsync, fd)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    final = state / f"{name}{_SUFFIX}"
    new.replace(final)
    sync_directory(state)
    for old in kept(state)[:-MOST_KEPT]:
        old.unlink(missing_ok=True)
    return final


def kept(state: Path) -> list[Path]:
    """The crashes that are kept in *state*, oldest first."""
    return sorted(state.glob(f"crash-*{_SUFFIX}"))


def forget_half_written(state: Path) -> None:
    """Remove what a daemon that died left half written."""
    for path in state.glob("crash-*.new"):
        path.unlink(missing_ok=True)


async def stream_crash(state: Path) -> AsyncIterator[bytes]:
    """:raise NotFound: when no crash is kept."""
    files = kept(state)
    if not files:
        raise NotFound(
            "no crash of this machine is kept",
            hint="ask for one with on_crash dump before it crashes; without it, dump the memory as it is now",
        )
    with files[-1].open("rb") as file:
        async for piece in _pieces(file):
            yield piece


async def stream_now(monitor: Monitor, state: Path) -> AsyncIterator[bytes]:
    """The memory as it is now. It goes to the disk first: the guest waits for the disk, not for whoever reads."""
    fd = os.open(state, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w+b") as file:
        await write_memory(monitor, fd)
        os.lseek(fd, 0, os.SEEK_SET)
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        async for piece in _pieces(file):
            yield piece


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(os.read, file.fileno(), _PIECE):
        yield piece
