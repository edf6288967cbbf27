"""A run of the engine: its lines as they come, its secret on a pipe, its end when we are cancelled or it stands still."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.linux.processes import Child, spawn
from lamella.model.errors import Unavailable

# The secret is read from here: the far end of a pipe.
SECRET_FD = 3
SECRET_FILE = f"/dev/fd/{SECRET_FD}"
# How long a run that was interrupted may take to let go of its lock, in seconds.
_GRACE = 5.0
_LONGEST_LINE = 1 << 20
_KEPT_ERRORS = 16384
# How often we look whether it moves, in seconds, and what is no more than telling us how far it is, in bytes.
_LOOK = 1.0
_A_LITTLE = 64 << 10


class Ran(msgspec.Struct, kw_only=True, frozen=True):
    """``out`` is what was not taken by lines."""

    code: int
    out: bytes
    error: str


async def run(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    secret: bytes = b"",
    stdin: bytes | None = None,
    line: Callable[[bytes], None] | None = None,
    wrote: Callable[[int], None] | None = None,
    patience: float,
) -> Ran:
    """*line* is called with each line of standard output, which is kept without it; *wrote* now and then with how many bytes it has
    written, to wherever.

    :raise Unavailable: when it moved next to nothing for *patience* seconds; it was ended then.
    """
    loop = asyncio.get_running_loop()
    alive, moved = loop.time(), 0
    kept = bytearray()

    def heard(piece: bytes) -> None:
        if line is None:
            kept.extend(piece)
        else:
            line(piece)

    ours: list[int] = []
    theirs: dict[int, int] = {}
    try:
        for number in (1, 2):
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            ours.append(read_end)
            theirs[number] = write_end
        theirs[SECRET_FD] = _filled(secret)
        if stdin is not None:
            theirs[0] = await asyncio.to_thread(_in_memory, stdin)
        child = spawn(argv, environment=environment, files=theirs)
    except BaseException:
        for descriptor in ours:
            os.close(descriptor)
        raise
    finally:
        for descriptor in theirs.values():
            os.close(descriptor)
    errors = bytearray()

    def complained(piece: bytes) -> None:
        errors.extend(piece)
        del errors[:-_KEPT_ERRORS]

    reading = [
        asyncio.ensure_future(_lines(ours[0], heard)),
        asyncio.ensure_future(_lines(ours[1], complained)),
    ]
    waiting = asyncio.ensure_future(child.wait())
    try:
        while not waiting.done():
            left = alive + patience - loop.time()
            if left <= 0:
                said = errors.decode(errors="replace").strip()[-500:]
                raise Unavailable(
                    f"the backup engine has done nothing for {patience:g} s",
                    hint=said or "see to where its repository is",
                )
            await asyncio.wait({waiting}, timeout=min(left, _LOOK))
            seen = await asyncio.to_thread(_moved, child.pid)
            if seen[0] - moved > _A_LITTLE:
                alive, moved = loop.time(), seen[0]
            if wrote is not None and seen[1]:
                wrote(seen[1])
        code = await waiting
        await asyncio.gather(*reading)
        return Ran(code=code, out=bytes(kept), error=errors.decode(errors="replace").strip())
    finally:
        await asyncio.shield(_ended(child, waiting, reading))


async def _ended(child: Child, waiting: "asyncio.Future[int]", reading: "Sequence[asyncio.Future[None]]") -> None:
    """Interrupted first, so that it takes its lock away."""
    if not waiting.done():
        child.kill(signal.SIGINT)
        await asyncio.wait({waiting}, timeout=_GRACE)
        child.kill()
        await asyncio.wait({waiting}, timeout=_GRACE)
    for task in reading:
        task.cancel()
    for task in reading:
        with suppress(asyncio.CancelledError, OSError):
            await task


async def _lines(descriptor: int, heard: Callable[[bytes], None]) -> None:
    reader = asyncio.StreamReader(limit=_LONGEST_LINE)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        while True:
            try:
                piece = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError as end:
                if end.partial:
                    heard(end.partial)
                return
            except asyncio.LimitOverrunError as long:
                piece = await reader.readexactly(long.consumed)
            heard(piece)
    finally:
        transport.close()


def _moved(pid: int) -> tuple[int, int]:
    """Bytes that it read and wrote, and those that it wrote: files, pipes and sockets alike (proc_pid_io(5))."""
    try:
        text = Path(f"/proc/{pid}/io").read_text()
    except OSError:
        return 0, 0
    fields = dict(line.split(": ") for line in text.splitlines())
    return int(fields["rchar"]) + int(fields["wchar"]), int(fields["wchar"])


def _filled(secret: bytes) -> int:
    """The end of a pipe that gives *secret* and then nothing; a pipe holds 64 KiB."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        os.write(write_end, secret)
    finally:
        os.close(write_end)
    return read_end


def _in_memory(content: bytes) -> int:
    descriptor = os.memfd_create("lamella-backup", os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
