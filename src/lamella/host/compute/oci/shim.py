"""conmon: the small process between a container and everybody else. It outlives the daemon, keeps the container's streams,
writes its log, and its exit code to a file named after the instance.

Facts about it come from its source, release 2.1.6. It tells the result of ``create`` as a line of JSON on the descriptor that
``_OCI_SYNCPIPE`` names; it writes the exit file before it ends; its attach socket and control pipe lie in the bundle.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.compute.oci.layout import LOG_BOUND, Place, Places
from lamella.host.linux import binaries
from lamella.host.linux.processes import (
    all_pids,
    command_line,
    environment,
    read_all,
    read_pid,
    readable,
    spawn,
    start_time,
)
from lamella.model.errors import CannotRun, Internal, Invalid, LamellaError, Unavailable, Unsupported

NOT_RUNNABLE = ("permission denied", "not permitted", "is a directory", "exec format")
LONGEST_SOCKET_DIRECTORY = 80


class Report(msgspec.Struct):
    """What conmon says of the runtime's ``create``."""

    pid: int | None = None
    data: int | None = None
    message: str = ""


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """Where conmon and the runtime are; ``runtime_name`` is ``crun`` or ``runc``."""

    conmon: Path
    runtime: Path

    @property
    def runtime_name(self) -> str:
        return self.runtime.name


def arguments(place: Place, places: Places, tools: Tools, *, terminal: bool, stdin: bool) -> list[str]:
    """The whole command line. Half of the log's bound is conmon's, the other half is what a former run left."""
    argv = [str(tools.conmon), "--api-version", "1", "--cid", place.id, "--cuuid", place.id, "--name", place.id]
    argv += ["--runtime", str(tools.runtime), "--runtime-arg", f"--root={places.runtime}"]
    if tools.runtime_name == "crun":
        argv += ["--runtime-arg", "--cgroup-manager=cgroupfs"]
    argv += ["--bundle", str(place.bundle), "--full-attach", "--exit-dir", str(places.exits)]
    argv += ["--container-pidfile", str(place.pid), "--conmon-pidfile", str(place.shim_pid)]
    argv += ["--log-path", f"k8s-file:{place.log}", "--log-size-max", str(LOG_BOUND // 2), "--no-sync-log"]
    if terminal:
        # Without the second, the first client who leaves would hang up the terminal.
        argv += ["--terminal", "--leave-stdin-open"]
    if stdin or terminal:
        argv.append("--stdin")
    return argv


async def create(
    place: Place, places: Places, tools: Tools, mark: str, *, terminal: bool, stdin: bool, timeout: float = 60.0
) -> int:
    """Start conmon and let it create the container; returns the container's pid.

    :raise CannotRun: when the command is not there or may not be run.
    :raise Unsupported: when the runtime refuses; its own words are in the message.
    """
    sync, their_sync = os.pipe()
    errors, their_errors = os.pipe()
    short = place.bundle if len(str(place.bundle)) < LONGEST_SOCKET_DIRECTORY else Path("/tmp")
    # conmon leaves a file named `oom` in its working directory when the memory limit was reached: let that be the bundle.
    argv = [str(binaries.tool("env")), f"--chdir={place.bundle}"]
    argv += arguments(place, places, tools, terminal=terminal, stdin=stdin)
    shown = environment(mark, _OCI_SYNCPIPE="3", TMPDIR=str(short))
    try:
        child = spawn(argv, environment=shown, files={2: their_errors, 3: their_sync}, session=True)
    except BaseException:
        os.close(sync)
        os.close(errors)
        raise
    finally:
        os.close(their_sync)
        os.close(their_errors)
    said = asyncio.create_task(read_all(errors))
    try:
        async with asyncio.timeout(timeout):
            report = await _report(sync)
            code = await child.wait()
            if report is None:
                words = (await said).decode(errors="replace").strip()
                raise Internal(f"conmon ended with {code} and made no container: {words or 'it said nothing'}")
    except TimeoutError:
        raise Internal(f"the container was not made within {timeout:g} s", hint="see the host's load") from None
    finally:
        os.close(sync)
        said.cancel()
        with suppress(asyncio.CancelledError):
            await said
        await child.end()
    pid = report.data if report.data is not None else report.pid
    if pid is None or pid <= 0:
        raise refusal(report.message)
    return pid


async def _report(sync: int) -> Report | None:
    """One line; ``None`` when conmon ended without one."""
    os.set_blocking(sync, False)
    line = b""
    while not line.endswith(b"\n"):
        try:
            piece = os.read(sync, 65536)
        except BlockingIOError:
            await readable(sync)
            continue
        if not piece:
            break
        line += piece
    try:
        return msgspec.json.decode(line, type=Report)
    except msgspec.DecodeError:
        return None


def refusal(message: str) -> LamellaError:
    """What the runtime's complaint means. The runtimes word it differently; the system's own words are in all of them."""
    said = " ".join(line.strip() for line in message.splitlines() if line.strip()) or "it gave no reason"
    low = said.lower()
    about_command = "executable" in low or "exec " in low or "exec:" in low
    if about_command and ("not found" in low or "no such file" in low):
        return CannotRun(f"the command is not in the instance: {said}", exit_code=127)
    if about_command and (any(words in low for words in NOT_RUNNABLE)):
        return CannotRun(f"the command cannot be run: {said}", exit_code=126)
    if "chdir" in low or "cwd" in low:
        return Invalid(
            f"the working directory cannot be used: {said}", hint="use one that exists", field="working_directory"
        )
    return Unsupported(f"the container runtime refuses: {said}", hint="lamella doctor says what this host can do")


class Shim:
    """One living conmon, watched by a pidfd: when it ends, the container has ended and the exit file is written, or it was killed."""

    def __init__(self, place: Place, pid: int, pidfd: int, ended: Callable[["Shim"], None]) -> None:
        self.place = place
        self.pid = pid
        self.ended = asyncio.Event()
        self._pidfd = pidfd
        self._tell = ended
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._end)

    @classmethod
    def find(cls, place: Place, ended: Callable[["Shim"], None]) -> "Shim | None":
        """The conmon that the bundle's pid file names, when it lives and is really this instance's."""
        pid = read_pid(place.shim_pid)
        if pid is None:
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        # The pid is held now, so what we read is of the process that we watch.
        if not belongs(pid, place):
            os.close(pidfd)
            return None
        return cls(place, pid, pidfd, ended)

    def _end(self) -> None:
        self.close()
        self.ended.set()
        self._tell(self)

    def kill(self, number: int) -> None:
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def end_strays(place: Place, timeout: float = 30.0) -> None:
    """Kill every conmon and runtime that still works on this bundle, whether a file names it or not. Blocks until they are gone.

    :raise Unavailable: when one does not go.
    """
    deadline = time.monotonic() + timeout
    while strays := [pid for pid in all_pids() if belongs(pid, place) and start_time(pid) is not None]:
        if time.monotonic() > deadline:
            raise Unavailable(f"processes {strays} of {place.id} do not end", hint="they wait in the kernel: see dmesg")
        for pid in strays:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def belongs(pid: int, place: Place) -> bool:
    """Whether *pid* was started with this bundle as an argument: its conmon, or a runtime at work on it."""
    return str(place.bundle).encode() in command_line(pid)


def write_start(place: Place) -> bool:
    """What ``crun start`` does, without a process: a byte into the pipe on which the container waits. False: ask the runtime."""
    try:
        fd = os.open(place.start_fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        place.start_fifo.unlink(missing_ok=True)
        return os.write(fd, b"\0") == 1
    except OSError:
        return False
    finally:
        os.close(fd)
