"""A process that qemu-guest-agent runs, as the stream of frames that the rest of the layer knows, as far as that goes.

The agent takes all input before the start and gives all output after the end, 16 MiB of each at most. There is no terminal.
"""

import asyncio
import contextlib
from collections import deque

import msgspec

from lamella.host.compute.guest.qga import LARGEST_INPUT, Ended, QgaClient, QgaError, pauses
from lamella.model.errors import Forbidden, LamellaError, NotFound, Unsupported
from lamella.model.stream import (
    LARGEST_DATA,
    ExecSpec,
    Exit,
    FromProcess,
    ProcessStream,
    Signal,
    Stderr,
    Stdin,
    StdinEnd,
    Stdout,
    ToProcess,
)

_TRUNCATED = b"lamella: qemu-guest-agent keeps no more than 16 MiB of what a command writes; the rest is lost\n"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HOW = "it needs Lamella's agent in the guest: build the disk with lamella image build --disk, or use an image with cloud-init"


def check_exec(spec: ExecSpec) -> None:
    """:raise Unsupported: when *spec* asks for what this agent cannot do."""
    wants = {
        "a terminal": spec.terminal,
        "another user than root": spec.user not in (None, "", "root", "0", "root:root", "0:0"),
    }
    lacking = [what for what, wanted in wants.items() if wanted]
    if lacking:
        raise Unsupported(f"qemu-guest-agent cannot give a command {' and '.join(lacking)}", hint=_HOW)


def command_of(spec: ExecSpec) -> tuple[str, list[str], list[str]]:
    """Program, arguments and environment (empty: the agent's own). A directory is entered by a shell."""
    program, *arguments = spec.command
    if spec.working_directory:
        program, arguments = "/bin/sh", ["-c", 'cd -- "$0" && exec "$@"', spec.working_directory, *spec.command]
    environment = [f"{name}={value}" for name, value in spec.environment.items()]
    if environment and "PATH" not in spec.environment:
        environment.append(_PATH)
    return program, arguments, environment


async def start_process(client: QgaClient, spec: ExecSpec) -> ProcessStream:
    """Run *spec*. With ``stdin`` it starts when the input has ended.

    :raise Unsupported: when it wants a terminal, another user, or more input than the agent takes.
    """
    check_exec(spec)
    stream = QgaProcessStream(client, spec)
    if not spec.stdin:
        await stream.start(None)
    return stream


class QgaProcessStream:
    """A :class:`lamella.model.stream.ProcessStream`. Signals go by a ``kill`` of the guest's; sizes of a terminal are ignored."""

    def __init__(self, client: QgaClient, spec: ExecSpec) -> None:
        self._client = client
        self._spec = spec
        self._input = bytearray()
        self._started = asyncio.Event()
        self._pid: int | None = None
        self._frames: deque[FromProcess] | None = None
        self._closed = False

    async def start(self, data: bytes | None) -> None:
        """Run it, *data* its input."""
        program, arguments, environment = command_of(self._spec)
        try:
            self._pid = await self._client.start(program, arguments, environment=environment, data=data)
        except NotFound:
            self._frames = deque([Exit(127, f"there is no command {self._spec.command[0]} in the instance")])
        except (Forbidden, QgaError) as error:
            self._frames = deque([Exit(126, f"{self._spec.command[0]} cannot be run: {error.message}")])
        finally:
            self._started.set()

    async def send(self, frame: ToProcess) -> None:
        match frame:
            case Stdin() if not self._started.is_set():
                if len(self._input) + len(frame.data) > LARGEST_INPUT:
                    raise Unsupported(f"qemu-guest-agent takes {LARGEST_INPUT >> 20} MiB of input at most", hint=_HOW)
                self._input += frame.data
            case StdinEnd() if not self._started.is_set():
                await self.start(bytes(self._input))
                self._input.clear()
            case Signal() if self._pid is not None and self._frames is None:
                await self._kill(frame.number)
            case _:
                pass

    async def receive(self) -> FromProcess | None:
        if self._frames is None:
            await self._started.wait()
        if self._frames is None:
            try:
                self._frames = deque(_frames(await self._end()))
            except LamellaError:
                self._frames = deque()
        return self._frames.popleft() if self._frames else None

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._frames is None and self._pid is not None and not self._client.closed.is_set():
            with contextlib.suppress(LamellaError):
                await self._kill(9)
        if self._frames is None:
            self._frames = deque()
        self._started.set()

    async def _end(self) -> Ended:
        assert self._pid is not None
        time = asyncio.get_running_loop().time
        deadline = None if self._spec.timeout is None else time() + self._spec.timeout
        timed_out = False
        async for _ in pauses():
            # A call that is given up ends the conversation, and the answer is given once: it is heard out.
            ended = await asyncio.shield(self._client.ended(self._pid))
            if ended is not None:
                return msgspec.structs.replace(ended, code=124) if timed_out else ended
            if deadline is not None and time() >= deadline:
                timed_out, deadline = True, None
                await self._kill(9)
        raise AssertionError("unreachable")

    async def _kill(self, number: int) -> None:
        await self._client.run("/bin/kill", [f"-{number}", str(self._pid)], timeout=10)


def _frames(ended: Ended) -> list[FromProcess]:
    pieces: list[FromProcess] = [Stdout(piece) for piece in _pieces(ended.out)]
    pieces += [Stderr(piece) for piece in _pieces(ended.err + (_TRUNCATED if ended.truncated else b""))]
    return [*pieces, Exit(ended.code)]


def _pieces(data: bytes) -> list[bytes]:
    return [data[start : start + LARGEST_DATA] for start in range(0, len(data), LARGEST_DATA)]
