"""``lamella-pieces`` while it runs: a file as a directory of pieces, such a directory as a file. See native/pieces.c."""

import asyncio
import os
import signal
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from lamella.host.linux import binaries, mounts
from lamella.host.linux.blocking import blocking
from lamella.host.linux.processes import Child, environment, readable, spawn
from lamella.model.errors import Corrupt, Unavailable

# How long it may take to be there, and to write out what it holds, in seconds.
_BEGIN = 20.0
_END = 120.0


@asynccontextmanager
async def split(table: Path, source: Path, point: Path, mark: str) -> AsyncGenerator[Path]:
    """*source* below *point*, as *table* has it."""
    async with _shown(["split", str(table), str(source), str(point)], point, mark):
        yield point


@asynccontextmanager
async def fill(piece: int, size: int, target: Path, point: Path, mark: str) -> AsyncGenerator[Path]:
    """What is written below *point* goes to *target*; it is on the disk when the context ends.

    :raise Corrupt: when it could not be written out.
    """
    async with _shown(["fill", str(piece), str(size), str(target), str(point)], point, mark):
        yield point


async def join(piece: int, size: int, directory: Path, scratch: Path, file: Path, mark: str) -> Child:
    """*directory* as *file*, for as long as the process runs; it outlives the caller."""
    await blocking(_empty_file, file)
    words = ["join", str(piece), str(size), str(directory), str(scratch), str(file)]
    return await begin(words, mark)


async def begin(words: list[str], mark: str) -> Child:
    """:raise Unavailable: when it cannot show anything; the sentence says why."""
    told, theirs = os.pipe2(os.O_CLOEXEC)
    errors, their_errors = os.pipe2(os.O_CLOEXEC)
    try:
        argv = [str(binaries.own("lamella-pieces")), *words]
        child = spawn(argv, environment=environment(mark), files={1: theirs, 2: their_errors}, session=True)
    except BaseException:
        os.close(told)
        os.close(errors)
        raise
    finally:
        os.close(theirs)
        os.close(their_errors)
    try:
        os.set_blocking(told, False)
        os.set_blocking(errors, False)
        async with asyncio.timeout(_BEGIN):
            await readable(told)
        if os.read(told, 64) != b"ready\n":
            said = os.read(errors, 4096).decode(errors="replace").strip()
            raise Unavailable(f"the pieces of a volume cannot be shown: {said}", hint="does this host have /dev/fuse?")
    except BaseException as error:
        await child.end()
        if isinstance(error, TimeoutError):
            raise Unavailable("the pieces of a volume were not shown in time", hint="see the host's load") from None
        raise
    finally:
        os.close(told)
        os.close(errors)
    return child


@asynccontextmanager
async def _shown(words: list[str], point: Path, mark: str) -> AsyncGenerator[None]:
    await blocking(_empty_point, point)
    child = await begin(words, mark)
    try:
        yield
    finally:
        await asyncio.shield(_hide(child, point))
    if child.poll() != 0:
        raise Corrupt("what was restored could not be written out", hint="see the pool's room and the host's log")


async def _hide(child: Child, point: Path) -> None:
    child.kill(signal.SIGTERM)
    with suppress(TimeoutError):
        async with asyncio.timeout(_END):
            await child.wait()
    await child.end()
    await blocking(clear, point)


def clear(point: Path) -> None:
    """Take away what is mounted there, dead or alive, and the place itself."""
    mounts.release(point)
    with suppress(OSError):
        if stat.S_ISDIR(point.lstat().st_mode):
            point.rmdir()
        else:
            point.unlink()


def _empty_point(point: Path) -> None:
    mounts.release(point)
    point.mkdir(mode=0o700, parents=True, exist_ok=True)


def _empty_file(file: Path) -> None:
    mounts.release(file)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.touch(mode=0o600)
