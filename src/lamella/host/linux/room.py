"""The layer's room: a mount and a network namespace that a tiny holder process keeps, for every daemon that comes and goes.

The daemon joins the mount namespace before it has any thread, so what one daemon mounted the next one sees. Mounts of the host
come in (propagation ``slave``), none of ours goes out. Where the host mixes cgroup versions, the room has a pure version 1
view of the same groups, because ``crun`` refuses the mixture, and the tree of version 2 under another name; the host's own view is
untouched.

The network namespace is bound to a file that only the room sees. So whoever is in the room has both, and a holder that is killed
is replaced by another in the same room: while the daemon lives by the daemon, else by the next one, through any shim in there.
When only microVMs are left, which are not in the room, their links lead back to its network; they need no mount of it.
"""

import asyncio
import fcntl
import logging
import os
import select
import signal
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from lamella.host.compute.driver import Home
from lamella.host.linux import binaries, cgroup, mounts, syscalls
from lamella.host.linux.processes import (
    all_pids,
    bears_mark,
    environment,
    first_readable,
    keep_descriptors,
    marked,
    spawn,
    start_time,
)
from lamella.model.errors import Internal, LamellaError, Unsupported

CGROUP = cgroup.ROOT
PRESSURE = CGROUP / "pressure"

TAP = os.makedev(10, 200)  # /dev/net/tun: its path is no longer told when the room that it was opened in is gone
TUNGETDEVNETNS = 0x54E3  # linux/if_tun.h

# How long after a failure to replace the holder it is tried again, in seconds.
AGAIN = 5.0

log = logging.getLogger("lamella.room")


class Room:
    """The room of one layer. All methods block for milliseconds and belong before the event loop, but ``netns`` and ``holder``."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._file = home.run / "room"
        self._pin = home.run / "room.net"

    def holder(self) -> int | None:
        """The pid of the living holder, checked by its start time and mark; ``None`` when there is none."""
        try:
            pid, _, started = self._file.read_text().strip().partition(" ")
        except OSError:
            return None
        if not pid.isdecimal() or start_time(int(pid)) is None or str(start_time(int(pid))) != started:
            return None
        return int(pid) if bears_mark(int(pid), self._home.mark) else None

    @property
    def netns(self) -> Path:
        """The layer's network namespace.

        :raise Internal: when the room was not made.
        """
        return Path(f"/proc/{self._living()}/ns/net")

    def ensure(self) -> int:
        """Find the holder, or start one: in the room that is there, else in a new one. Returns its pid.

        :raise Unsupported: when this machine does not let us make namespaces.
        """
        pid = self.holder()
        if pid is not None:
            return pid
        self._home.run.mkdir(parents=True, exist_ok=True)
        # A holder that no file names was started by a daemon that died before it could write it down.
        former = marked_holders(self._home.mark)
        pid = self._start_beside()
        if pid is None and (network := _network_of_a_tap(marked(self._home.mark))) is not None:
            try:
                pid = self._start("--unshare", "mnt", "--slave", "--join", "4", files={4: network})
            finally:
                os.close(network)
            self._furnish(pid)
        if pid is None:
            pid = self._start("--unshare", "mnt,net", "--slave", "--loopback")
            # Written down only when it is furnished: a holder that no file names is killed by the next who comes.
            self._furnish(pid)
        for left in former:
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        # The room outlives a shortage of memory: whoever made the shortage ends first.
        with suppress(OSError):
            Path(f"/proc/{pid}/oom_score_adj").write_text("-1000")
        new = self._file.with_suffix(".new")
        new.write_text(f"{pid} {start_time(pid)}\n")
        new.rename(self._file)
        return pid

    @asynccontextmanager
    async def kept(self) -> AsyncGenerator[None]:
        """While inside, a holder that ends is replaced at once. The process has joined the room."""
        watch = asyncio.create_task(self._keep(), name="room")
        try:
            yield
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch

    async def _keep(self) -> None:
        while True:
            try:
                await self._holder_ended()
                log.error("the holder of the room was ended by somebody; another one takes its place")
                await asyncio.to_thread(self.ensure)
            except (LamellaError, OSError) as error:
                log.error("the room has no holder: %s", error)
                await asyncio.sleep(AGAIN)

    async def _holder_ended(self) -> None:
        pid = self.holder()
        if pid is None:
            return
        try:
            watched = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            # The number is held now: is it still the one that was meant?
            if self.holder() == pid:
                await first_readable([watched])
        finally:
            os.close(watched)
        _reap(pid)

    def _start_beside(self) -> int | None:
        """Start a holder of the room that one of us is still in: this process, or what outlived the holder, such as a shim."""
        for pid in (os.getpid(), *marked(self._home.mark)):
            if not any(entry.point == str(self._pin) and entry.kind == "nsfs" for entry in mounts.table(pid)):
                continue
            opened: list[int] = []
            try:
                for path in (f"/proc/{pid}/root{self._pin}", f"/proc/{pid}/ns/mnt"):
                    opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                return self._start("--join", "4", "--join", "5", files={4: opened[0], 5: opened[1]})
            except OSError as error:
                # It may have ended meanwhile; then the next one tells the way.
                log.warning("the room cannot be entered by process %d: %s", pid, error)
            finally:
                for descriptor in opened:
                    os.close(descriptor)
        return None

    def _start(self, *how: str, files: Mapping[int, int] | None = None) -> int:
        ready, theirs = os.pipe()
        errors, their_errors = os.pipe()
        try:
            child = spawn(
                [str(binaries.own("lamella-pause")), *how, "--ready", "3", "--mark", self._home.mark],
                environment=environment(self._home.mark),
                files={2: their_errors, 3: theirs, **(files or {})},
                session=True,
            )
        finally:
            os.close(theirs)
            os.close(their_errors)
        try:
            select.select([ready], [], [], 10)
            os.set_blocking(ready, False)
            if os.read(ready, 1) == b"1":
                child.release()
                return child.pid
            said = os.read(errors, 4096).decode(errors="replace").strip()
        except BlockingIOError:
            child.kill()
            said = "it did not get ready within 10 s"
        finally:
            os.close(ready)
            os.close(errors)
        raise Unsupported(
            f"the room cannot be made: {said}", hint="Lamella needs root and CAP_SYS_ADMIN on this machine"
        )

    def _furnish(self, pid: int) -> None:
        """Make the cgroup view inside and bind the network, from a process of its own: ours stays where it is until it joins."""
        errors, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                enter(pid)
                view_cgroups(self._home.mark)
                # Last: by it a room is known that is furnished.
                self._pin.touch(mode=0o600)
                syscalls.mount(f"/proc/{pid}/ns/net", str(self._pin), None, syscalls.MS_BIND)
                os._exit(0)
            except BaseException as error:
                os.write(theirs, str(error).encode())
                os._exit(1)
        os.close(theirs)
        with os.fdopen(errors, "rb") as file:
            said = file.read().decode(errors="replace")
        if os.waitpid(child, 0)[1] != 0:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise Unsupported(f"the room cannot be made: {said}", hint="boot the host with cgroup version 2 alone")

    def join(self) -> None:
        """Make the room's mount namespace this process's own, and its inherited descriptors too. Before any thread.

        :raise Internal: when the process has threads already, or there is no room.
        """
        if len(list(Path("/proc/self/task").iterdir())) > 1:
            raise Internal("the room must be joined before any thread is started")
        keep_descriptors()
        here = Path.cwd()
        enter(self._living())
        with suppress(OSError):
            os.chdir(here)

    def destroy(self) -> None:
        """End the holder; the namespaces go with the last process in them. Gone already is fine."""
        pid = self.holder()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 5
            while start_time(pid) is not None and time.monotonic() < deadline:
                time.sleep(0.002)
            _reap(pid)
        # For us, when we are in the room ourselves, it is a mount; for everybody else a plain file.
        with suppress(OSError):
            syscalls.umount(str(self._pin))
        self._pin.unlink(missing_ok=True)
        self._file.unlink(missing_ok=True)

    def _living(self) -> int:
        pid = self.holder()
        if pid is None:
            raise Internal("the room is not there", hint="start the daemon again")
        return pid


def _network_of_a_tap(pids: Iterable[int]) -> int | None:
    """A descriptor of the network namespace in which one of *pids* has a TAP: a microVM's QEMU keeps it alive by nothing else."""
    for pid in pids:
        with suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                if entry.stat().st_rdev == TAP:
                    return _network(pid, int(entry.name))
    return None


def _network(pid: int, number: int) -> int:
    process = os.pidfd_open(pid)
    try:
        tap = syscalls.descriptor_of(process, number)
        try:
            return fcntl.ioctl(tap, TUNGETDEVNETNS)
        finally:
            os.close(tap)
    finally:
        os.close(process)


def _reap(pid: int) -> None:
    """Take the end of a holder that may be a child of ours; it does not wait."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def marked_holders(mark: str) -> list[int]:
    """Processes named lamella-pause that hold a room of *mark* (the ones of instances hold with ``--hold``)."""
    found: list[int] = []
    for pid in all_pids():
        with suppress(OSError):
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            holds = b"--slave" in argv or b"--join" in argv
            if argv[0].endswith(b"/lamella-pause") and holds and bears_mark(pid, mark):
                found.append(pid)
    return found


def enter(pid: int) -> None:
    """Join the mount namespace of *pid*; the working directory becomes its root."""
    with Path(f"/proc/{pid}/ns/mnt").open() as namespace:
        syscalls.setns(namespace.fileno(), syscalls.CLONE_NEWNS)


def view_cgroups(mark: str) -> None:
    """In a mount namespace of our own: turn a mixed view of cgroups into one of version 1. Others are left as they are.

    :raise OSError: when the kernel does not let us.
    """
    entries = [entry for entry in mounts.table() if entry.point == str(CGROUP) or entry.point.startswith(f"{CGROUP}/")]
    version_1 = {entry.point: entry for entry in entries if entry.kind == "cgroup"}
    version_2 = [entry for entry in entries if entry.kind == "cgroup2"]
    if not version_1 or not version_2:
        return
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("none", str(CGROUP), None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.umount(str(CGROUP))
    syscalls.mount(mark, str(CGROUP), "tmpfs", flags, "mode=755")
    for point, entry in version_1.items():
        Path(point).mkdir()
        syscalls.mount("none", point, "cgroup", flags, ",".join(controllers(entry)))
    # The kernel counts pressure there. It has one set of options for every mount of this tree: they are repeated, not changed.
    PRESSURE.mkdir()
    options = [option for option in version_2[0].super_options if option not in ("rw", "ro")]
    syscalls.mount("none", str(PRESSURE), "cgroup2", flags, ",".join(options))


def controllers(entry: mounts.MountEntry) -> list[str]:
    """The mount options that name a version 1 hierarchy: its controllers, or ``none,name=…``."""
    names = [
        option for option in entry.super_options if option not in ("rw", "ro", "xattr", "noprefix", "clone_children")
    ]
    names = [name for name in names if not name.startswith("release_agent=")]
    return ["none", *names] if names and names[0].startswith("name=") else names
