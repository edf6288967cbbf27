"""haproxy of one layer: started, found again, replaced, ended.

It binds as root, then leaves every right and, by chroot(2), every file behind. A changed configuration is a new process that shares the
sockets' ports with the one before, which takes no more connections and ends with its last, or when ``hard-stop-after`` says so. They are in
the layer's group ``balance`` and nobody's children: they outlive the daemon. What runs is read from the kernel: a process of the group is
known by the file that it was given, whose name is the configuration's digest.
"""

import hashlib
import os
import select
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home, Limits
from lamella.host.linux import binaries
from lamella.host.linux.cgroup import ROOT, Cgroup, Cgroups
from lamella.host.linux.processes import bears_mark, command_line, environment, spawn, start_time
from lamella.model.errors import Unavailable

GROUP = "balance"
PROGRAM = "haproxy"
# In seconds: how long it may take to bind, and to die.
_PATIENCE = 20.0


class Running(msgspec.Struct, kw_only=True, frozen=True):
    """``file`` is the configuration that it was started with."""

    pid: int
    file: Path


def program() -> Path | None:
    """haproxy on this host, or ``None``."""
    with suppress(Unavailable):
        return binaries.tool(PROGRAM)
    return None


def group(home: Home) -> Cgroup:
    return Cgroups(ROOT, home.mark).group(GROUP)


def running(home: Home) -> list[Running]:
    """Every haproxy of this layer, also those that finish what they have."""
    found: list[Running] = []
    for pid in group(home).pids():
        words = [word.decode(errors="replace") for word in command_line(pid) if word]
        if (
            len(words) > 2
            and Path(words[0]).name == PROGRAM
            and bears_mark(pid, home.mark)
            and start_time(pid) is not None
        ):
            found.append(Running(pid=pid, file=Path(words[-1])))
    return found


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


def begin(home: Home, directory: Path, file: Path) -> int:
    """Start it in this thread's network namespace; returns its pid when it has bound its ports. Blocks for some 30 ms.

    :raise Unavailable: when it cannot be started; the end of what it said is in the error.
    """
    found = program()
    if found is None:
        raise Unavailable("haproxy is not installed", hint="apt install haproxy")
    joined = group(home)
    joined.create(Limits())
    pidfile = directory / "pid"
    pidfile.unlink(missing_ok=True)
    log = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = spawn(
            [str(found), "-D", "-f", str(file)],
            environment=environment(home.mark),
            files={1: log, 2: log},
            session=True,
        )
    finally:
        os.close(log)
    _join(joined, child.pid)
    # It forks when its ports are bound: then the one that was started ends, well.
    pidfd = child.watch()
    try:
        select.select([pidfd], [], [], _PATIENCE)
    finally:
        os.close(pidfd)
    code = child.poll()
    if code is None:
        child.kill()
        os.waitpid(child.pid, 0)
    child.release()
    pid = int(pidfile.read_text().split()[0]) if code == 0 and pidfile.exists() else 0
    if not pid:
        raise Unavailable(f"haproxy does not start: {last_words(directory)}")
    _join(joined, pid)
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


def retire(pids: Iterable[int]) -> None:
    """Have them take no more connections and end with their last."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
