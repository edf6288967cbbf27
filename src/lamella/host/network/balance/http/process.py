"""haproxy of one layer: started, found again, replaced, ended.

It binds as root, then leaves every right and, by chroot(2), every file behind. A changed configuration is a new process that shares the
sockets' ports with the one before, which takes no more connections and ends with its last, or when ``hard-stop-after`` says so. They are in
the layer's group ``balance`` and nobody's children: they outlive the daemon. What runs is read from the kernel: a process of the group is
known by the file that it was given, whose name is the configuration's digest. Which of them serves says the file ``pid``: one that was told
to end has let go of its ports, and may have the same configuration.
"""

import hashlib
import logging
import os
import resource
import select
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home, Limits
from lamella.host.linux import binaries
from lamella.host.linux.cgroup import ROOT, Cgroup, Cgroups
from lamella.host.linux.processes import Child, bears_mark, command_line, environment, read_pid, spawn, start_time
from lamella.model.errors import Conflict, Unavailable, Unsupported

log = logging.getLogger("lamella.host.network")

GROUP = "balance"
PROGRAM = "haproxy"
# In seconds: how long it may take to bind, and to die.
_PATIENCE = 20.0
# Of all of them together; one has at most 64 threads.
_LIMITS = Limits(memory=1 << 30, pids=1024)
# How many may finish what they have; older ones are killed.
LEAVING = 4
# Connections at once, each with two descriptors; some more are for listeners and the like.
_CONNECTIONS, _OTHERS = 8000, 1000


class Running(msgspec.Struct, kw_only=True, frozen=True):
    """``file`` is the configuration that it was started with, ``since`` when, in clock ticks."""

    pid: int
    file: Path
    since: int


def program() -> Path | None:
    """haproxy on this host, or ``None``."""
    with suppress(Unavailable):
        return binaries.tool(PROGRAM)
    return None


def group(home: Home) -> Cgroup:
    return Cgroups(ROOT, home.mark).group(GROUP)


def connections() -> int:
    """How many one may have at once, with the descriptors that this host allows."""
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _CONNECTIONS if allowed < 0 else min(_CONNECTIONS, max(100, (allowed - _OTHERS) // 2))


def running(home: Home) -> list[Running]:
    """Every haproxy of this layer, also those that finish what they have; the oldest first."""
    found: list[Running] = []
    for pid in group(home).pids():
        words = [word.decode(errors="replace") for word in command_line(pid) if word]
        if (
            len(words) > 2
            and Path(words[0]).name == PROGRAM
            and bears_mark(pid, home.mark)
            and (since := start_time(pid)) is not None
        ):
            found.append(Running(pid=pid, file=Path(words[-1]), since=since))
    return sorted(found, key=lambda one: (one.since, one.pid))


def serving(directory: Path, found: Iterable[Running]) -> Running | None:
    """The one that has the ports."""
    pid = read_pid(directory / "pid")
    return next((one for one in found if one.pid == pid), None)


def write(directory: Path, text: str) -> Path:
    """Put the configuration where its name says what is in it; older ones go."""
    path = directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.cfg"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    (directory / "room").mkdir(mode=0o755, exist_ok=True)
    for old in directory.glob("*.cfg"):
        if old != path:
            old.unlink(missing_ok=True)
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
    return path


def prepare(home: Home, directory: Path, file: Path) -> list[str]:
    """What is to be run so that it starts. From now on nobody counts as the one that serves. Blocks.

    :raise Unavailable: when it is not installed.
    """
    found = program()
    if found is None:
        raise Unavailable("haproxy is not installed", hint="apt install haproxy")
    try:
        group(home).create(_LIMITS)
    except (Conflict, Unsupported) as error:
        log.warning("haproxy is started without its limits: %s", error.message)
    (directory / "pid").unlink(missing_ok=True)
    return [str(found), "-D", "-f", str(file)]


def begin(argv: list[str], home: Home, directory: Path) -> Child:
    """Start it in this thread's network namespace. Others wait for that thread: it is not awaited here but by :func:`told`.

    :raise OSError: when nothing can be run.
    """
    said = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = spawn(argv, environment=environment(home.mark), files={1: said, 2: said}, session=True)
    finally:
        os.close(said)
    _join(group(home), child.pid)
    return child


def told(begun: Child, home: Home, directory: Path) -> int:
    """Wait until it has bound its ports; its pid. Blocks for some 30 ms.

    :raise Unavailable: when it does not; the end of what it said is in the error.
    """
    # It forks when its ports are bound: then the one that was started ends, well.
    pidfd = begun.watch()
    try:
        select.select([pidfd], [], [], _PATIENCE)
    finally:
        os.close(pidfd)
    code = begun.poll()
    if code is None:
        begun.kill()
        os.waitpid(begun.pid, 0)
    begun.release()
    pid = read_pid(directory / "pid") if code == 0 else None
    if pid is None:
        raise Unavailable(f"haproxy does not start: {last_words(directory)}")
    _join(group(home), pid)
    return pid


def _join(joined: Cgroup, pid: int) -> None:
    for file in joined.procs_files():
        with suppress(ProcessLookupError):
            file.write_text(str(pid))


def last_words(directory: Path) -> str:
    try:
        return (directory / "log").read_text(errors="replace").strip()[-300:]
    except OSError:
        return ""


def retire(leaving: Iterable[Running]) -> None:
    """Have them take no more connections and end with their last; of many, the oldest end at once."""
    youngest_first = sorted(leaving, key=lambda one: (one.since, one.pid), reverse=True)
    for place, one in enumerate(youngest_first):
        with suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGUSR1 if place < LEAVING else signal.SIGKILL)


def retire_all(directory: Path, found: Iterable[Running]) -> None:
    """Nobody serves any more."""
    (directory / "pid").unlink(missing_ok=True)
    retire(found)
