"""Frames of an interactive process, the same from the guest's agent to the terminal of the person who watches.

``ProcessStream`` is what a driver's ``exec`` and ``attach`` give, what the agent interface carries between hosts, what the
API sends over a WebSocket, and what the client library reads.
"""

from typing import Annotated, Protocol

import msgspec
from msgspec import Meta


class Stdin(msgspec.Struct, tag="stdin", array_like=True):
    data: bytes


class StdinEnd(msgspec.Struct, tag="eof", array_like=True):
    """No more input: the process reads end of file."""


class Resize(msgspec.Struct, tag="resize", array_like=True):
    rows: Annotated[int, Meta(ge=1, le=65535)]
    columns: Annotated[int, Meta(ge=1, le=65535)]


class Signal(msgspec.Struct, tag="signal", array_like=True):
    """A POSIX signal by number, to the process."""

    number: Annotated[int, Meta(ge=1, le=64)]


class Stdout(msgspec.Struct, tag="stdout", array_like=True):
    data: bytes


class Stderr(msgspec.Struct, tag="stderr", array_like=True):
    data: bytes


class Exit(msgspec.Struct, tag="exit", array_like=True):
    """The last frame: 0 to 255; 128 + N after signal N; 124 when its time was up. ``reason`` is set when it never ran."""

    code: int
    reason: str = ""


ToProcess = Stdin | StdinEnd | Resize | Signal
FromProcess = Stdout | Stderr | Exit

LARGEST_DATA = 64 << 10


class ProcessStream(Protocol):
    """Both directions of one process's standard streams. Not more than one task reads and one writes."""

    async def send(self, frame: ToProcess) -> None:
        """Hand *frame* over; waits while the process does not read (that is the back-pressure).

        :raise Unavailable: when the other end is gone.
        """
        ...

    async def receive(self) -> FromProcess | None:
        """The next frame; ``None`` after :class:`Exit`, or when the other end went away without one."""
        ...

    async def close(self) -> None:
        """Let go. An exec'd process is killed, an instance's own process lives on. Safe to call twice."""
        ...


class ExecSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A process to run beside an instance's own. ``timeout`` is seconds, after which it is killed and exits 124.

    ``user`` is ``name|uid[:group|gid]``, resolved inside; environment is added to the instance's own.
    """

    command: Annotated[
        list[Annotated[str, Meta(max_length=131072, pattern=r"^[^\x00]*$")]], Meta(min_length=1, max_length=4096)
    ]
    environment: dict[
        Annotated[str, Meta(min_length=1, pattern=r"^[^=\x00]+$")], Annotated[str, Meta(pattern=r"^[^\x00]*$")]
    ] = {}
    working_directory: Annotated[str, Meta(pattern=r"^[^\x00]*$")] | None = None
    user: Annotated[str, Meta(pattern=r"^[^\x00]*$")] | None = None
    terminal: bool = False
    stdin: bool = False
    rows: Annotated[int, Meta(ge=1, le=65535)] = 24
    columns: Annotated[int, Meta(ge=1, le=65535)] = 80
    timeout: Annotated[float, Meta(gt=0, le=604800)] | None = None
