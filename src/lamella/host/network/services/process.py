"""Processes of dnsmasq: started, found again, told, ended.

Each runs in an empty room (``lamella-jailer``) as a user of its own, with what it needs of the network and no other capability; it sees its
files, read-only. All of them are in the layer's group ``network`` and nobody's children: they outlive the daemon. What runs is read from
the kernel alone: a process of the group is known by its arguments and its network namespace.
"""

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
from lamella.host.linux.processes import Child, bears_mark, command_line, environment, parent, spawn, start_time
from lamella.host.network.namespace import Seat
from lamella.host.network.services.plan import FILES, PROGRAM, Service
from lamella.model.errors import Unavailable

GROUP = "network"
# Its user and group. No instance has this id: their ranges begin above it (control/addressing.py).
USER = 0x6FFF_FF01

# linux/capability.h: NET_BIND_SERVICE, NET_ADMIN, NET_RAW.
_CAPABILITIES = (10, 12, 13)
# Whoever writes more than a file may have is ended: far more than its log has before it is shortened.
_LIMITS = ("core=0", "nofile=1024", "memlock=65536", f"fsize={64 << 20}", f"as={512 << 20}")
_LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
_LOADER = Path("/lib64/ld-linux-x86-64.so.2")
_DEVICES = ("/dev/null", "/dev/urandom")
_OUTPUT = 3
# In seconds: how long the jailer may take, and a process to die.
_PATIENCE = 20.0


class Running(msgspec.Struct, kw_only=True, frozen=True):
    """A dnsmasq that runs; *namespace* is the inode of its network namespace."""

    pid: int
    arguments: tuple[str, ...]
    namespace: int


def program() -> Path | None:
    """dnsmasq on this host, or ``None``."""
    with suppress(Unavailable):
        return binaries.tool("dnsmasq").resolve()
    return None


def group(home: Home) -> Cgroup:
    return Cgroups(ROOT, home.mark).group(GROUP)


def running(home: Home) -> list[Running]:
    """Every dnsmasq of this layer, without those that it forks for a question by TCP."""
    pids = {
        pid for pid in group(home).pids() if command_line(pid)[:1] == [PROGRAM.encode()] and bears_mark(pid, home.mark)
    }
    found: list[Running] = []
    for pid in pids:
        words = [word.decode(errors="replace") for word in command_line(pid)[:-1]]
        with suppress(OSError):
            if parent(pid) not in pids and start_time(pid) is not None:
                inode = Path(f"/proc/{pid}/ns/net").stat().st_ino
                found.append(Running(pid=pid, arguments=tuple(words), namespace=inode))
    return found


def namespace_of(seat: Seat, service: Service) -> int:
    """The inode of the namespace where *service* belongs."""
    netns = service.site.netns
    return os.fstat(seat.home).st_ino if netns is None else netns.stat().st_ino


class Begun(msgspec.Struct, frozen=True):
    """The jailer that starts one, and the pipe in which it says how that went."""

    jailer: Child
    pipe: int


def prepare(home: Home, directory: Path, service: Service) -> list[str]:
    """What is to be run so that it starts. Blocks.

    :raise Unavailable: when a program is missing.
    """
    found = program()
    if found is None:
        raise Unavailable("dnsmasq is not installed", hint="apt install dnsmasq-base")
    room = directory / "room"
    room.mkdir(mode=0o700, exist_ok=True)
    joined = group(home)
    joined.create(Limits())
    options = ["--room", str(room), "--user", str(USER), "--network", "keep", "--output", str(_OUTPUT)]
    options += [word for file in joined.procs_files() for word in ("--cgroup", str(file))]
    options += [word for capability in _CAPABILITIES for word in ("--capability", str(capability))]
    options += [word for limit in _LIMITS for word in ("--limit", limit)]
    options += [word for device in _DEVICES for word in ("--device", f"{device}:{device}")]
    shown = {found: Path(PROGRAM), _LIBRARIES: _LIBRARIES, _LOADER.resolve(): _LOADER, directory / "files": Path(FILES)}
    options += [word for source, target in shown.items() for word in ("--bind", f"{source}:{target}")]
    return [str(binaries.own("lamella-jailer")), *options, "--", *service.arguments]


def begin(seat: Seat, argv: list[str], home: Home, directory: Path, service: Service) -> Begun:
    """Start it in its namespace, from the thread of the layer's, which others wait for: it is not awaited here but by :func:`told`.

    :raise OSError: when there is no such namespace, or nothing can be run.
    """
    netns = service.site.netns
    if netns is None:
        return _spawn(argv, home, directory)
    descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with seat.visit(descriptor):
            return _spawn(argv, home, directory)
    finally:
        os.close(descriptor)


def _spawn(argv: list[str], home: Home, directory: Path) -> Begun:
    ours, theirs = os.pipe()
    log = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = spawn(
            argv,
            environment={**environment(home.mark), "LD_LIBRARY_PATH": str(_LIBRARIES)},
            files={1: theirs, 2: log, _OUTPUT: log},
            session=True,
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
        os.close(log)
    return Begun(child, ours)


def told(begun: Begun, directory: Path, service: Service) -> int:
    """Wait until it has been executed; its pid. Blocks for some 10 ms.

    :raise Unavailable: when it could not be; why is in the error.
    """
    try:
        # Its pid comes when it has been executed, the end of the pipe when it could not be.
        readable, _, _ = select.select([begun.pipe], [], [], _PATIENCE)
        said = os.read(begun.pipe, 64) if readable else b""
        if not said:
            begun.jailer.kill()
        os.waitpid(begun.jailer.pid, 0)
        begun.jailer.release()
    finally:
        os.close(begun.pipe)
    if not said.strip().isdigit():
        raise Unavailable(f"dnsmasq of network {service.name} could not be started: {last_words(directory)}")
    return int(said)


def write(directory: Path, files: dict[str, str]) -> None:
    """Put *files* where a process of this directory reads them, each whole or not at all."""
    place = directory / "files"
    place.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name, text in files.items():
        new = place / f"{name}.new"
        new.write_text(text)
        new.chmod(0o644)
        new.replace(place / name)


def last_words(directory: Path) -> str:
    """The end of what a process of this directory said."""
    try:
        return (directory / "log").read_text(errors="replace").strip()[-300:]
    except OSError:
        return ""


def shorten(directory: Path, largest: int = 1 << 20) -> None:
    """Empty a log that guests made long; it is written by appending."""
    with suppress(OSError):
        if (directory / "log").stat().st_size > largest:
            os.truncate(directory / "log", 0)


def reads_again(pid: int, pidfd: int) -> None:
    """Have it read its files again. One that has only just been executed has yet to read them: a signal, which it does not catch yet,
    would be its end.

    :raise ProcessLookupError: when it has ended.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError as error:
        raise ProcessLookupError(pid) from error
    caught = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:")), 0)
    if caught >> (signal.SIGHUP - 1) & 1:
        signal.pidfd_send_signal(pidfd, signal.SIGHUP)


def end(pids: Iterable[int]) -> None:
    """Kill them and wait until they are gone. Blocks."""
    for pid in pids:
        with suppress(ProcessLookupError):
            finish(os.pidfd_open(pid))


def finish(pidfd: int) -> None:
    """Kill the process of *pidfd*, wait until it is gone with all that it had open, and close it. Blocks."""
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], _PATIENCE)
    finally:
        os.close(pidfd)
