"""One ``qemu-storage-daemon`` under supervision: started, adopted, watched, ended.

It runs in the cgroup ``storage`` of the layer, bears the mark, has /dev/null and its log as standard files and one descriptor of ours
(``<run>/storage``, through which it finds sockets whose paths would be too long), and only the capabilities that it is given. This
program has no seccomp sandbox of its own (QEMU's ``-sandbox`` is not in it).
"""

import asyncio
import logging
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home, Limits
from lamella.host.compute.qemu.launch import listening
from lamella.host.compute.qemu.monitor import PATIENCE, Monitor, Refused
from lamella.host.compute.qemu.places import boot_id, write_durably
from lamella.host.linux import binaries
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.linux.processes import Child, bears_mark, environment, marked, readable, spawn, start_time
from lamella.model.errors import Unavailable

log = logging.getLogger("lamella.host.storage")

GROUP = "storage"
# Where the process finds <run>/storage.
_TOP, _MONITOR = 9, 10
TOP = f"/proc/self/fd/{_TOP}"

_PROGRAM = "qemu-storage-daemon"
# Seconds after which one that answers nothing hangs.
_HANGS = 30.0
_HANGS_STILL = 5.0


def running(mark: str, top: Path) -> set[int]:
    """Every process of this program that bears *mark* and was given the directory *top*."""
    found: set[int] = set()
    for pid in marked(mark):
        with suppress(OSError):
            # Its first words are those of setpriv, until that has become it.
            named = f"/{_PROGRAM}\0".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
            if named and Path(f"/proc/{pid}/fd/{_TOP}").samefile(top):
                found.add(pid)
    return found


def role_of(pid: int) -> str:
    """What the process was started as, for a log."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
        return next((Path(word).stem for word in words if word.endswith(".pid")), "?")
    return "?"


def kill(pid: int) -> None:
    """Kill it and wait until it is gone, for 5 s at most."""
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], 5)
        finally:
            os.close(pidfd)


async def _settled(pidfile: Path, child: int, monitor: Path) -> None:
    """Wait until the process can be spoken to. Its monitor begins in a thread of its own, and whoever is connected at that moment may be
    greeted twice, not heard, or make it crash (QEMU 7.2, monitor/qmp.c, ``monitor_qmp_setup_handlers_bh``): 1 start in 20, here, of those
    that were spoken to at once, and 1 in 3,000 of those that had written their *pidfile*. That thread does one thing after the other, so
    an answered command says that the moment is over.

    :raise Unavailable: when it ends, or takes more than ``PATIENCE`` seconds.
    """
    pidfd = os.pidfd_open(child)
    try:
        async with asyncio.timeout(PATIENCE):
            while not pidfile.exists():
                if select.select([pidfd], [], [], 0)[0]:
                    raise Unavailable("the storage process ended as soon as it began")
                await asyncio.sleep(0.002)
    except TimeoutError as error:
        raise Unavailable(f"the storage process is not there after {PATIENCE:g} s") from error
    finally:
        os.close(pidfd)
    with suppress(Unavailable, Refused):
        await _answers(monitor)
        return
    await _answers(monitor)


async def _answers(path: Path) -> None:
    monitor = await Monitor.connect(path)
    try:
        await monitor.execute("query-chardev")
    finally:
        await monitor.close()


class _Running(msgspec.Struct, kw_only=True, frozen=True):
    pid: int
    started: int
    boot: str


class Qsd:
    """The process *role*, with *capabilities* (``sys_admin``, …) and no more. *ended* is called when it ended unasked."""

    def __init__(self, home: Home, top: Path, role: str, capabilities: list[str], ended: Callable[[], None]) -> None:
        self.role = role
        self._home = home
        self._top = top
        self._capabilities = capabilities
        self._ended = ended
        self._monitor: Monitor | None = None
        self._watch: asyncio.Task[None] | None = None
        self._child: Child | None = None
        self._pidfd = -1

    @property
    def pid(self) -> int | None:
        """Of the one that runs."""
        return running.pid if (running := self._running()) else None

    def _running(self) -> _Running | None:
        try:
            found = msgspec.json.decode((self._top / f"{self.role}.json").read_bytes(), type=_Running)
        except (OSError, msgspec.MsgspecError):
            return None
        same = found.boot == boot_id() and start_time(found.pid) == found.started
        return found if same and bears_mark(found.pid, self._home.mark) else None

    async def adopt(self) -> bool:
        """Take hold of the one that runs; ``False`` when none does, or it does not answer (it is ended then)."""
        running = await asyncio.to_thread(self._running)
        if running is None:
            return False
        try:
            await self._hold(running.pid)
            await self.check(_HANGS)
        except (Unavailable, OSError) as error:
            log.warning("the storage process (%s) does not answer and is ended: %s", self.role, error)
            await self.close()
            await asyncio.to_thread(kill, running.pid)
            return False
        return True

    async def check(self, deadline: float) -> None:
        """It greets whoever comes in a thread of its own: only an answer says that the rest of it goes on.

        :raise Unavailable: when none comes in *deadline* seconds.
        """
        try:
            await self.monitor.execute("query-jobs", deadline=deadline)
        except Refused:
            return

    async def end_if_hung(self) -> bool:
        """Kill it when it runs and answers nothing, as it did not the moment before; whether it did. It has ended then, unasked."""
        watch = self._watch
        if watch is None or not self.here:
            return False
        try:
            await self.check(_HANGS_STILL)
        except Unavailable as error:
            log.error("the storage process (%s) hangs and is ended: %s", self.role, error)
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            await asyncio.wait([watch])
            return True
        return False

    async def start(self) -> None:
        """:raise Unavailable: when it cannot be started; the end of what it said is in the error."""
        await asyncio.to_thread(self._spawn)
        assert self._child is not None
        try:
            await _settled(self._top / f"{self.role}.pid", self._child.pid, self._top / f"{self.role}.monitor")
            await self._hold(self._child.pid)
        except (Unavailable, OSError) as error:
            await self._child.end()
            raise Unavailable(f"the storage process does not start: {self.last_words()}") from error

    def _spawn(self) -> None:
        socket = self._top / f"{self.role}.monitor"
        socket.unlink(missing_ok=True)
        (self._top / f"{self.role}.pid").unlink(missing_ok=True)
        group = Cgroups(ROOT, self._home.mark).group(GROUP)
        group.create(Limits())
        kept = ",".join(["-all", *(f"+{name}" for name in self._capabilities)])
        argv = [
            str(binaries.tool("setpriv")),
            f"--bounding-set={kept}",
            "--inh-caps=-all",
            "--ambient-caps=-all",
            "--no-new-privs",
            str(binaries.tool(_PROGRAM)),
            *("--chardev", f"socket,id=monitor,fd={_MONITOR},server=on,wait=off"),
            *("--monitor", "chardev=monitor"),
            *("--pidfile", f"{TOP}/{self.role}.pid"),
        ]
        words = os.open(
            self._top / f"{self.role}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        top = os.open(self._top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        monitor = listening(socket)
        try:
            child = spawn(
                argv,
                environment=environment(self._home.mark),
                files={1: words, 2: words, _TOP: top, _MONITOR: monitor.fileno()},
                session=True,
            )
        finally:
            monitor.close()
            os.close(words)
            os.close(top)
        for file in group.procs_files():
            file.write_text(str(child.pid))
        started = start_time(child.pid)
        write_durably(
            self._top / f"{self.role}.json",
            msgspec.json.encode(_Running(pid=child.pid, started=started or 0, boot=boot_id())),
        )
        self._child = child

    async def _hold(self, pid: int) -> None:
        self._pidfd = os.pidfd_open(pid)
        try:
            self._monitor = await Monitor.connect(self._top / f"{self.role}.monitor")
        except BaseException:
            os.close(self._pidfd)
            self._pidfd = -1
            raise
        self._watch = asyncio.create_task(self._wait(self._pidfd), name=f"storage {self.role}")

    async def _wait(self, pidfd: int) -> None:
        await readable(pidfd)
        log.warning("the storage process (%s) ended: %s", self.role, self.last_words())
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            await monitor.close()
        if self._child is not None:
            await self._child.end()
            self._child = None
        os.close(pidfd)
        self._pidfd = -1
        self._watch = None
        self._ended()

    @property
    def monitor(self) -> Monitor:
        """:raise Unavailable: while it does not run."""
        if self._monitor is None:
            raise Unavailable("the storage process does not run at the moment", hint="it is started again by itself")
        return self._monitor

    @property
    def here(self) -> bool:
        return self._monitor is not None

    async def take(self, spare: "Qsd") -> None:
        """Become the process *spare*, which runs and has nothing open."""
        if spare._watch is not None:
            spare._watch.cancel()
            with suppress(asyncio.CancelledError):
                await spare._watch
        self._monitor, self._pidfd, self._child = spare._monitor, spare._pidfd, spare._child
        spare._monitor, spare._pidfd, spare._child, spare._watch = None, -1, None, None
        for name in ("log", "monitor", "json", "pid"):
            (self._top / f"{spare.role}.{name}").replace(self._top / f"{self.role}.{name}")
        self._watch = asyncio.create_task(self._wait(self._pidfd), name=f"storage {self.role}")

    def last_words(self) -> str:
        try:
            return (self._top / f"{self.role}.log").read_text(errors="replace").strip()[-300:]
        except OSError:
            return ""

    async def close(self) -> None:
        """Let go of it; it goes on."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        if self._monitor is not None:
            await self._monitor.close()
            self._monitor = None
        if self._child is not None:
            self._child.release()
            self._child = None
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    async def end(self) -> None:
        """Let it write everything out and end."""
        pidfd = os.dup(self._pidfd) if self._pidfd >= 0 else -1
        child, self._child = self._child, None
        await self.close()
        if pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            try:
                async with asyncio.timeout(10):
                    await readable(pidfd)
            except TimeoutError:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        if child is not None:
            await child.end()
        for name in ("json", "monitor", "log", "pid"):
            (self._top / f"{self.role}.{name}").unlink(missing_ok=True)
