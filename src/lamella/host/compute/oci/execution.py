"""A process beside a container's own: started by the runtime's ``exec``, its streams held by the daemon.

The runtime stays as the parent and ends with the process's exit code. Its own complaints go to a file, not among the
process's words; a pid file that is not there says that the process never ran.
"""

import array
import asyncio
import fcntl
import os
import shutil
import signal
import socket
import struct
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.compute.oci import shim
from lamella.host.compute.oci.spec import Process
from lamella.host.linux.processes import (
    Child,
    command_line,
    environment,
    first_readable,
    parent,
    read_pid,
    readable,
    spawn,
    writable,
)
from lamella.model.errors import CannotRun
from lamella.model.stream import (
    LARGEST_DATA,
    Exit,
    FromProcess,
    Resize,
    Signal,
    Stderr,
    Stdin,
    StdinEnd,
    Stdout,
    ToProcess,
)

TIMED_OUT = 124
PID_WAIT = 60.0


class ExecStream:
    """A :class:`~lamella.model.stream.ProcessStream` over pipes or over one terminal."""

    def __init__(
        self, child: Child, folder: Path, *, stdin: int, outputs: dict[int, type[Stdout] | type[Stderr]], terminal: bool
    ) -> None:
        self._child = child
        self._folder = folder
        self._stdin = stdin
        self._outputs = outputs
        self._terminal = terminal
        self._deadline: float | None = None
        self._timed_out = False
        self._finished = False
        self._closed = False
        self._on_close: Callable[[], None] | None = None
        self._end = child.watch()
        for fd in {*outputs, *([stdin] if stdin >= 0 else [])}:
            os.set_blocking(fd, False)

    def on_close(self, call: Callable[[], None]) -> None:
        """Have *call* called when it is let go of."""
        self._on_close = call

    def limit(self, seconds: float | None) -> None:
        """Kill it when it still runs *seconds* from now."""
        self._deadline = None if seconds is None else time.monotonic() + seconds

    async def send(self, frame: ToProcess) -> None:
        match frame:
            case Stdin(data=data):
                await self._write(data)
            case StdinEnd():
                if self._terminal:
                    await self._write(b"\x04")
                else:
                    self._close_stdin()
            case Resize(rows=rows, columns=columns):
                if self._terminal and self._stdin >= 0:
                    set_size(self._stdin, rows, columns)
            case Signal(number=number):
                await self._signal(number)

    async def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and self._stdin >= 0:
            try:
                view = view[os.write(self._stdin, view) :]
            except BlockingIOError:
                await writable(self._stdin)
            except OSError:
                # It closed its input: what a pipe's writer would learn by SIGPIPE is no error here.
                self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin >= 0 and self._stdin not in self._outputs:
            os.close(self._stdin)
        self._stdin = -1

    async def receive(self) -> FromProcess | None:
        if self._finished or self._closed:
            return None
        while True:
            # Asked before the read: what it wrote before its end is in the pipes then. What a child of it writes later is
            # not waited for.
            ended = self._child.poll() is not None
            frame = self._read()
            if frame is not None:
                return frame
            if ended:
                break
            await self._wait()
        self._finished = True
        code, reason = self._result()
        return Exit(code, reason)

    def _read(self) -> Stdout | Stderr | None:
        for fd, kind in list(self._outputs.items()):
            try:
                data = os.read(fd, LARGEST_DATA)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if data:
                # The other one first, next time.
                self._outputs[fd] = self._outputs.pop(fd)
                return kind(data)
            del self._outputs[fd]
            if fd == self._stdin:
                self._stdin = -1
            os.close(fd)
        return None

    async def _wait(self) -> None:
        """Until there is something to read, the process has ended, or its time is up and it was killed."""
        try:
            async with asyncio.timeout(None if self._deadline is None else max(0.0, self._deadline - time.monotonic())):
                await first_readable([*self._outputs, self._end])
        except TimeoutError:
            self._timed_out = True
            self._deadline = None
            await self._force()

    async def _force(self) -> None:
        """Kill the process; the runtime above it then ends by itself, and is killed when it does not."""
        await self._signal(signal.SIGKILL)
        try:
            async with asyncio.timeout(5):
                await self._child.wait()
        except TimeoutError:
            await self._child.end()

    async def _signal(self, number: int) -> None:
        pid = await self._pid()
        if pid is not None and self._child.running:
            with suppress(ProcessLookupError, PermissionError):
                if number == signal.SIGKILL and os.getpgid(pid) == pid:
                    os.killpg(pid, number)
                else:
                    os.kill(pid, number)
        elif number == signal.SIGKILL:
            self._child.kill(number)

    async def _pid(self) -> int | None:
        """The process's pid. The runtime writes it down a moment after the process began, so its first words may be here before."""
        deadline = time.monotonic() + PID_WAIT
        while (pid := read_pid(self._folder / "pid")) is None:
            if self._child.poll() is not None or time.monotonic() > deadline:
                return None
            await asyncio.sleep(0.005)
        return pid

    def _result(self) -> tuple[int, str]:
        code = self._child.poll() or 0
        if self._timed_out:
            return TIMED_OUT, "its time was up"
        complaint = words(self._folder / "log")
        if code != 0 and complaint:
            error = shim.refusal(complaint)
            return (error.exit_code if isinstance(error, CannotRun) else 126), error.message
        return code, ""

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if self._child.running:
                await asyncio.shield(self._force())
        finally:
            self._close_stdin()
            for fd in self._outputs:
                os.close(fd)
            self._outputs.clear()
            os.close(self._end)
            shutil.rmtree(self._folder, ignore_errors=True)
            if self._on_close is not None:
                self._on_close()


class ExecRuntime(msgspec.Struct, frozen=True, kw_only=True):
    """How ``exec`` is asked of the runtime for one container."""

    tools: shim.Tools
    root: Path
    id: str
    mark: str

    def arguments(self, folder: Path, *, preserve: int = 0) -> list[str]:
        argv = [str(self.tools.runtime), f"--root={self.root}", f"--log={folder / 'log'}"]
        if self.tools.runtime_name == "crun":
            argv.append("--cgroup-manager=cgroupfs")
        argv += ["exec", "--process", str(folder / "process.json"), "--pid-file", str(folder / "pid")]
        if preserve:
            argv.append(f"--preserve-fds={preserve}")
        return argv


async def execute(runtime: ExecRuntime, process: Process, folder: Path, *, stdin: bool) -> ExecStream:
    """Start *process* in the container; its files lie in *folder*, which is made here and goes with the stream.

    :raise OSError: when the runtime itself cannot be run.
    """
    # Its environment is nobody else's business.
    folder.mkdir(mode=0o700, parents=True)
    (folder / "process.json").write_bytes(msgspec.json.encode(process))
    if process.terminal:
        return await _with_terminal(runtime, folder)
    return _with_pipes(runtime, folder, stdin=stdin)


def _with_pipes(runtime: ExecRuntime, folder: Path, *, stdin: bool) -> ExecStream:
    ours: list[int] = []
    theirs: dict[int, int] = {}
    try:
        for number in (0, 1, 2) if stdin else (1, 2):
            read_end, write_end = os.pipe()
            theirs[number], mine = (read_end, write_end) if number == 0 else (write_end, read_end)
            ours.append(mine)
        child = spawn([*runtime.arguments(folder), runtime.id], environment=environment(runtime.mark), files=theirs)
    except BaseException:
        for fd in ours:
            os.close(fd)
        raise
    finally:
        for fd in theirs.values():
            os.close(fd)
    outputs: dict[int, type[Stdout] | type[Stderr]] = {ours[-2]: Stdout, ours[-1]: Stderr}
    return ExecStream(child, folder, stdin=ours[0] if stdin else -1, outputs=outputs, terminal=False)


async def _with_terminal(runtime: ExecRuntime, folder: Path) -> ExecStream:
    """The runtime makes the terminal inside and hands its other side over a socket, which it finds through a descriptor."""
    directory = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"/proc/self/fd/{directory}/console")
        listener.listen(1)
        listener.setblocking(False)
        argv = [*runtime.arguments(folder), "--tty", "--console-socket", "/proc/self/fd/3/console", runtime.id]
        try:
            child = spawn(argv, environment=environment(runtime.mark), files={3: directory})
        finally:
            os.close(directory)
        arrived = asyncio.create_task(_console(listener))
        end = child.watch()
        ended = asyncio.create_task(readable(end))
        try:
            await asyncio.wait({arrived, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not arrived.done():
                return ExecStream(child, folder, stdin=-1, outputs={}, terminal=True)
            console = arrived.result()
        except BaseException:
            await child.end()
            raise
        finally:
            for task in (arrived, ended):
                task.cancel()
                with suppress(asyncio.CancelledError, OSError):
                    await task
            os.close(end)
    return ExecStream(child, folder, stdin=console, outputs={console: Stdout}, terminal=True)


async def _console(listener: socket.socket) -> int:
    await readable(listener.fileno())
    connection, _ = listener.accept()
    with connection:
        connection.setblocking(False)
        await readable(connection.fileno())
        descriptors = array.array("i")
        _, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(descriptors.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    if not descriptors:
        raise OSError("the runtime sent no terminal")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def sweep(folder: Path) -> None:
    """End what a former daemon ran beside a container: nobody holds its streams any more. Blocks shortly."""
    with suppress(FileNotFoundError):
        for left in folder.iterdir():
            pid = read_pid(left / "pid")
            above = None if pid is None else parent(pid)
            if pid is not None and above is not None and str(left / "process.json").encode() in command_line(above):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(left, ignore_errors=True)


def set_size(terminal: int, rows: int, columns: int) -> None:
    """TIOCSWINSZ (tty_ioctl(4)); a terminal that is gone is left in peace."""
    with suppress(OSError):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def words(log: Path) -> str:
    """What the runtime complained of."""
    with suppress(OSError):
        return log.read_bytes()[:4096].decode(errors="replace").strip()
    return ""
