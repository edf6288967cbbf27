"""Processes: started cheaply, watched without polling, known again after a restart.

``spawn`` uses posix_spawn(3), which costs the same however large the daemon is: its memory is neither copied nor marked.
"""

import asyncio
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lamella.model.errors import Unavailable

MARK = "LAMELLA_MARK"
LARGEST_MESSAGE = 8192


class Child:
    """A process that we started. It is reaped by :meth:`wait` or :meth:`poll`, one of which every caller must let end."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd: int | None = os.pidfd_open(pid)
        self._status: int | None = None

    async def wait(self) -> int:
        """Its exit code; 128 + N after signal N. May be called again, and by several tasks."""
        while (code := self.poll()) is None:
            # A descriptor of our own, because the event loop keeps one reader a descriptor.
            watched = self.watch()
            try:
                await first_readable([watched])
            finally:
                os.close(watched)
        return code

    def watch(self) -> int:
        """A descriptor that can be read when the process has ended; the caller closes it.

        :raise ProcessLookupError: when it was reaped or let go already.
        """
        if self._pidfd is None:
            raise ProcessLookupError(self.pid)
        return os.dup(self._pidfd)

    @property
    def running(self) -> bool:
        """False once it was reaped or let go."""
        return self._pidfd is not None

    def poll(self) -> int | None:
        """Its exit code when it has ended."""
        if self._status is None and self._pidfd is not None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._status = code if code >= 0 else 128 - code
                self.release()
        return self._status

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; a process that ended is left in peace."""
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def release(self) -> None:
        """Stop watching it: it will outlive us, and nobody here waits for it."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    async def end(self) -> None:
        """Kill and reap, even when the caller is being cancelled."""
        self.kill()
        if self.running:
            await asyncio.shield(self.wait())


def spawn(
    argv: Sequence[str], *, environment: Mapping[str, str], files: Mapping[int, int], session: bool = False
) -> Child:
    """Start *argv* with the descriptors of *files* (theirs: ours); 0, 1 and 2 are /dev/null when not named.

    Others of ours stay ours: Python makes them so, and :func:`keep_descriptors` does it for those that we were born with.

    :raise OSError: when the program cannot be run.
    """
    actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = []
    # Ours may have the number that another of theirs gets: first all go out of the way, then to their places.
    highest = max([*files, *files.values(), 2]) + 1
    for number, (_, ours) in enumerate(files.items()):
        actions.append((os.POSIX_SPAWN_DUP2, ours, highest + number))
    for number, theirs in enumerate(files):
        actions.append((os.POSIX_SPAWN_DUP2, highest + number, theirs))
    for number in range(len(files)):
        actions.append((os.POSIX_SPAWN_CLOSE, highest + number, 0))
    for standard in range(3):
        if standard not in files:
            actions.append((os.POSIX_SPAWN_OPEN, standard, "/dev/null", os.O_RDWR, 0))
    plain = [action[:2] if action[0] == os.POSIX_SPAWN_CLOSE else action for action in actions]
    pid = os.posix_spawn(
        argv[0],
        list(argv),
        dict(environment),
        file_actions=plain,
        setsid=session,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGCHLD],
    )
    return Child(pid)


def keep_descriptors() -> None:
    """Let no descriptor that this process inherited go on to its children, but the standard three. Once, at the start."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        if int(entry.name) > 2:
            with suppress(OSError):
                os.set_inheritable(int(entry.name), False)


async def first_readable(fds: Iterable[int]) -> None:
    """Wait until one of *fds* can be read (a pidfd: until its process has ended)."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    watched = list(fds)
    for fd in watched:
        loop.add_reader(fd, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        for fd in watched:
            loop.remove_reader(fd)


async def readable(fd: int) -> None:
    """Wait until *fd* can be read."""
    await first_readable([fd])


async def writable(fd: int) -> None:
    """Wait until *fd* takes more."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(fd, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_writer(fd)


async def read_all(fd: int, limit: int = LARGEST_MESSAGE) -> bytes:
    """What comes out of the pipe *fd* until its end, up to *limit* bytes; the rest is read and thrown away. Closes *fd*."""
    kept = bytearray()
    os.set_blocking(fd, False)
    try:
        while True:
            try:
                piece = os.read(fd, 65536)
            except BlockingIOError:
                await readable(fd)
                continue
            if not piece:
                return bytes(kept)
            kept += piece[: max(0, limit - len(kept))]
    finally:
        os.close(fd)


async def run(argv: Sequence[str], *, environment: Mapping[str, str], timeout: float = 30.0) -> tuple[int, str]:
    """Run a tool to its end: exit code and what it said on stderr.

    :raise Unavailable: when it does not end in *timeout* seconds; it is killed then.
    """
    read_end, write_end = os.pipe()
    try:
        child = spawn(argv, environment=environment, files={2: write_end})
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    try:
        async with asyncio.timeout(timeout):
            said = await read_all(read_end)
            return await child.wait(), said.decode(errors="replace").strip()
    except TimeoutError:
        raise Unavailable(
            f"{Path(argv[0]).name} did not end within {timeout:g} s", hint="see the host's load"
        ) from None
    finally:
        await child.end()


def start_time(pid: int) -> int | None:
    """When *pid* started, in clock ticks since boot (field 22 of /proc/PID/stat), or ``None`` when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def parent(pid: int) -> int | None:
    """The parent of *pid* (field 4 of /proc/PID/stat), or ``None`` when *pid* is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except OSError:
        return None


def command_line(pid: int) -> list[bytes]:
    """The arguments of *pid*; none when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def bears_mark(pid: int, mark: str) -> bool:
    """Whether *pid* was started by the layer of *mark*."""
    try:
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def marked(mark: str) -> set[int]:
    """Every process that bears *mark*."""
    return {pid for pid in all_pids() if bears_mark(pid, mark)}


def all_pids() -> list[int]:
    """Every process of this pid namespace."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def read_pid(path: Path) -> int | None:
    """The number in a pid file; ``None`` when it is absent, empty or half-written."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() and int(text) > 1 else None


def environment(mark: str, **more: str) -> dict[str, str]:
    """What our tools get to see: a path, no locale, and the mark."""
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", MARK: mark, **more}


def threads_outside(pid: int, inside: Iterable[int]) -> list[int]:
    """Threads of *pid* as this pid namespace counts them, from what its own counts (proc(5), ``NSpid``); those that have ended are left
    out."""
    known: dict[int, int] = {}
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                for line in (thread / "status").read_text().splitlines():
                    if line.startswith("NSpid:"):
                        known[int(line.split()[-1])] = int(thread.name)
    return [known[thread] for thread in inside if thread in known]
