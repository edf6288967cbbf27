"""A client of qemu-guest-agent: one line of JSON there, one back (QEMU's ``docs/interop/qemu-ga-ref``).

The guest is not trusted: what it sends is bounded, taken apart by types, and a guest that floods or lies is cut off. A call that is
given up leaves an answer behind that nobody waits for; so it ends the conversation, and whoever wants more begins another.
"""

import asyncio
import base64
import binascii
import os
import posixpath
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self, TypeVar

import msgspec
from msgspec import Meta

from lamella.host.compute.guest.lines import LARGEST_LINE, LineChannel
from lamella.host.compute.guest.socket import open_socket
from lamella.model.errors import (
    Conflict,
    Corrupt,
    DeadlineExceeded,
    Forbidden,
    Internal,
    Invalid,
    LamellaError,
    NoRoom,
    NotFound,
    Unavailable,
    Unsupported,
)

Answer = TypeVar("Answer")

PATIENCE = 10.0
LARGEST_INPUT = 4 << 20
"""Bytes of input that guest-exec is given; they travel in one line."""
LARGEST_OUTPUT = 16 << 20
"""Bytes of each output that the agent keeps (GUEST_EXEC_MAX_OUTPUT in qga/commands.c)."""

_LARGEST_RESULT = 2 * LARGEST_OUTPUT * 4 // 3 + LARGEST_LINE
_PIECE = 256 << 10
_DELIMITER = b"\xff"
_SHUTDOWN_PATIENCE = 2.0
_FREEZE_PATIENCE = 60.0

_LIES = "its qemu-guest-agent is broken or hostile"

Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class QgaError(Internal):
    """The guest's agent refused for a reason that is none of the usual ones. The message is what it said."""


class Command(msgspec.Struct, frozen=True):
    name: str
    enabled: bool = True


class Info(msgspec.Struct, frozen=True):
    """``supported_commands`` holds those, too, that its administrator has switched off."""

    version: str
    supported_commands: list[Command] = []

    def can(self, command: str) -> bool:
        return any(known.name == command and known.enabled for known in self.supported_commands)


class OsInfo(msgspec.Struct, frozen=True, rename="kebab"):
    """``id`` is os-release's (``debian``), or ``mswindows``."""

    id: str = ""
    name: str = ""
    pretty_name: str = ""
    version_id: str = ""
    kernel_release: str = ""
    machine: str = ""


class IpAddress(msgspec.Struct, frozen=True, rename="kebab"):
    ip_address: str
    ip_address_type: str
    prefix: Annotated[int, Meta(ge=0, le=128)]


class Statistics(msgspec.Struct, frozen=True, rename="kebab"):
    rx_bytes: Count = 0
    tx_bytes: Count = 0


class Interface(msgspec.Struct, frozen=True, rename="kebab"):
    name: str
    hardware_address: str = ""
    ip_addresses: list[IpAddress] = []
    statistics: Statistics = Statistics()


class _Started(msgspec.Struct, frozen=True):
    pid: Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]


class _Status(msgspec.Struct, frozen=True, rename="kebab"):
    exited: bool
    exitcode: Annotated[int, Meta(ge=-(1 << 31), le=(1 << 32) - 1)] | None = None
    signal: Annotated[int, Meta(ge=0, le=255)] | None = None
    out_data: str = ""
    err_data: str = ""
    out_truncated: bool = False
    err_truncated: bool = False


class Ended(msgspec.Struct, kw_only=True, frozen=True):
    """How a process in the guest ended: ``code`` 0 to 255, 128 + N after signal N. ``truncated``: it wrote more than the agent keeps."""

    code: int
    out: bytes
    err: bytes
    truncated: bool = False


class _Piece(msgspec.Struct, frozen=True, rename="kebab"):
    count: Count
    buf_b64: str
    eof: bool


class _Wrote(msgspec.Struct, frozen=True):
    count: Count
    eof: bool = False


class _Problem(msgspec.Struct, frozen=True):
    desc: str
    kind: str = msgspec.field(name="class", default="")


class _Reply(msgspec.Struct, frozen=True):
    value: msgspec.Raw | msgspec.UnsetType = msgspec.field(name="return", default=msgspec.UNSET)
    error: _Problem | None = None


class _Synchronized(msgspec.Struct, frozen=True):
    number: int = msgspec.field(name="return")


class QgaClient:
    """One conversation. Not more than one at a time over a port.

    Every method raises :class:`Unavailable` when the conversation is over, :class:`DeadlineExceeded` when the guest does not answer in
    time and :class:`Corrupt` when it breaks the protocol (the conversation is over then). When it refuses, that is :class:`NotFound`,
    :class:`Forbidden`, :class:`Conflict`, :class:`NoRoom`, :class:`Unsupported` (the command is unknown or switched off there) or
    :class:`QgaError`.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._lines = LineChannel(reader, writer)
        self._turn = asyncio.Lock()

    @property
    def closed(self) -> asyncio.Event:
        """Set when the conversation is over, whoever ended it."""
        return self._lines.closed

    @classmethod
    async def connect(cls, path: Path, *, timeout: float = PATIENCE) -> Self:
        """Talk to the agent behind the Unix socket at *path*; waits up to *timeout* seconds for it to answer.

        :raise DeadlineExceeded: when it does not.
        """
        started = asyncio.get_running_loop().time()
        reader, writer = await open_socket(path, timeout=timeout)
        left = timeout - (asyncio.get_running_loop().time() - started)
        return await cls.over(reader, writer, timeout=left)

    @classmethod
    async def over(cls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, timeout: float) -> Self:
        """Talk over a socket that is open already; it is closed when that fails."""
        client = cls(reader, writer)
        try:
            await client._synchronize(timeout)
        except BaseException:
            await client.close()
            raise
        return client

    async def call(
        self,
        command: str,
        kind: type[Answer],
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float = PATIENCE,
        largest: int = LARGEST_LINE,
    ) -> Answer:
        """Run *command* and return its answer, which is of *kind*. ``largest`` bounds the answer in bytes."""
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        async with self._turn:
            try:
                async with asyncio.timeout(timeout):
                    line = await self._lines.ask(msgspec.json.encode(request) + b"\n", largest=largest)
            except TimeoutError:
                error = DeadlineExceeded(
                    f"qemu-guest-agent did not answer to {command} in {timeout:g} s",
                    hint="it may be starved of CPU or memory, or paused",
                )
                self._lines.end(error)
                raise error from None
            except asyncio.CancelledError:
                self._lines.end(Unavailable("the conversation with qemu-guest-agent was given up", hint="ask again"))
                raise
        return self._answer(command, line, kind)

    async def ping(self, *, timeout: float = PATIENCE) -> None:
        await self.call("guest-ping", dict, timeout=timeout)

    async def info(self) -> Info:
        """Its version and commands."""
        return await self.call("guest-info", Info)

    async def os(self) -> OsInfo:
        """The guest's operating system."""
        return await self.call("guest-get-osinfo", OsInfo)

    async def interfaces(self) -> list[Interface]:
        """The guest's network interfaces with their addresses."""
        return await self.call("guest-network-get-interfaces", list[Interface])

    async def start(
        self, path: str, arguments: Sequence[str] = (), *, environment: Sequence[str] = (), data: bytes | None = None
    ) -> int:
        """Start a program, its output captured, *data* as its input; returns its pid in the guest.

        :raise Invalid: when *data* is larger than ``LARGEST_INPUT``.
        """
        asked: dict[str, object] = {"path": path, "arg": list(arguments), "capture-output": True}
        if environment:
            asked["env"] = list(environment)
        if data is not None:
            if len(data) > LARGEST_INPUT:
                raise Invalid(
                    f"qemu-guest-agent takes {LARGEST_INPUT >> 20} MiB of input", hint="write it to a file first"
                )
            asked["input-data"] = base64.b64encode(data).decode()
        return (await self.call("guest-exec", _Started, asked)).pid

    async def ended(self, pid: int) -> Ended | None:
        """How the program that :meth:`start` started ended, told once; ``None`` while it runs."""
        status = await self.call("guest-exec-status", _Status, {"pid": pid}, largest=_LARGEST_RESULT)
        if not status.exited:
            return None
        code = 128 + status.signal if status.signal else status.exitcode or 0
        return Ended(
            code=code & 255,
            out=self._bytes(status.out_data),
            err=self._bytes(status.err_data),
            truncated=status.out_truncated or status.err_truncated,
        )

    async def run(
        self, path: str, arguments: Sequence[str] = (), *, data: bytes | None = None, timeout: float = 60.0
    ) -> Ended:
        """Start a program and wait for its end, asking less and less often.

        :raise DeadlineExceeded: when it runs longer than *timeout* seconds; it is not ended.
        """
        pid = await self.start(path, arguments, data=data)
        try:
            async with asyncio.timeout(timeout):
                async for _ in pauses():
                    if (ended := await self.ended(pid)) is not None:
                        return ended
        except TimeoutError:
            pass
        raise DeadlineExceeded(
            f"{posixpath.basename(path)} ran longer than {timeout:g} s in the guest", hint="the guest may be overloaded"
        )

    async def shutdown(self, mode: str = "powerdown") -> None:
        """Ask the guest to end: ``powerdown``, ``reboot`` or ``halt``. It does not answer when it does so."""
        try:
            await self.call("guest-shutdown", dict, {"mode": mode}, timeout=_SHUTDOWN_PATIENCE)
        except (DeadlineExceeded, Unavailable):
            return

    async def freeze(self) -> int:
        """Hold writes to all file systems until :meth:`thaw`; returns how many. Until then the agent runs nothing and opens no file."""
        return await self.call("guest-fsfreeze-freeze", int, timeout=_FREEZE_PATIENCE)

    async def thaw(self) -> int:
        return await self.call("guest-fsfreeze-thaw", int, timeout=_FREEZE_PATIENCE)

    async def frozen(self) -> bool:
        return await self.call("guest-fsfreeze-status", str) == "frozen"

    async def read_file(self, path: str) -> AsyncGenerator[bytes]:
        """The content of *path*, in pieces."""
        handle = await self.call("guest-file-open", int, {"path": path, "mode": "r"})
        try:
            while True:
                asked = {"handle": handle, "count": _PIECE}
                piece = await self.call("guest-file-read", _Piece, asked, largest=2 * _PIECE)
                if data := self._bytes(piece.buf_b64):
                    yield data
                if piece.eof or not data:
                    return
        finally:
            await self._close_file(handle)

    async def write_file(self, path: str, data: AsyncIterator[bytes]) -> None:
        """Make *path* hold *data*: made when it is not there, emptied first when it is."""
        handle = await self.call("guest-file-open", int, {"path": path, "mode": "w"})
        try:
            async for large in data:
                view = memoryview(large)
                while view:
                    asked = {"handle": handle, "buf-b64": base64.b64encode(view[:_PIECE]).decode()}
                    wrote = (await self.call("guest-file-write", _Wrote, asked)).count
                    if not 0 < wrote <= len(view):
                        raise Corrupt(f"the guest wrote {wrote} bytes of {len(view)} to {path}", hint=_LIES)
                    view = view[wrote:]
            await self.call("guest-file-flush", dict, {"handle": handle})
        finally:
            await self._close_file(handle)

    async def close(self) -> None:
        """End the conversation. Safe to call twice."""
        await self._lines.close(Unavailable("the conversation with qemu-guest-agent was closed", hint="ask again"))

    async def _close_file(self, handle: int) -> None:
        if not self.closed.is_set():
            try:
                await self.call("guest-file-close", dict, {"handle": handle})
            except LamellaError:
                return

    async def _synchronize(self, timeout: float) -> None:
        """Throw away whatever a former conversation left: only what follows the answer to our own number counts."""
        number = int.from_bytes(os.urandom(8)) >> 2
        request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}

        def ours(line: bytes) -> bool:
            try:
                return msgspec.json.decode(line, type=_Synchronized).number == number
            except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
                return False

        try:
            async with asyncio.timeout(timeout):
                await self._lines.ask(_DELIMITER + msgspec.json.encode(request) + b"\n", accepts=ours)
        except TimeoutError:
            raise DeadlineExceeded(
                f"qemu-guest-agent did not answer in {timeout:g} s", hint="does it run in the guest?"
            ) from None

    def _answer(self, command: str, line: bytes, kind: type[Answer]) -> Answer:
        try:
            reply = msgspec.json.decode(line, type=_Reply)
            if reply.error is not None:
                raise _refusal(command, reply.error)
            if reply.value is msgspec.UNSET:
                raise Corrupt(f"qemu-guest-agent answered {command} with nothing", hint=_LIES)
            return msgspec.json.decode(reply.value, type=kind)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            lie = Corrupt(f"qemu-guest-agent answered {command} with something else: {error}", hint=_LIES)
            self._lines.end(lie)
            raise lie from error

    def _bytes(self, text: str) -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            lie = Corrupt("qemu-guest-agent sent data that cannot be read", hint=_LIES)
            self._lines.end(lie)
            raise lie from error


def _refusal(command: str, problem: _Problem) -> LamellaError:
    """The error that stands for what the agent said: its reasons are errno's words (strerror(3) in the C locale) inside a sentence."""
    said = problem.desc[:500]
    if problem.kind == "CommandNotFound":
        return Unsupported(
            f"the guest's qemu-guest-agent has no {command}: {said}",
            hint="see BLACKLIST_RPC, --blacklist or --block-rpcs in its settings inside the guest",
        )
    known: LamellaError | None = next((error(said) for words, error in _REASONS if words in said), None)
    return known or QgaError(f"qemu-guest-agent refused {command}: {said}")


_REASONS: list[tuple[str, type[LamellaError]]] = [
    ("No such file or directory", NotFound),
    ("Permission denied", Forbidden),
    ("Is a directory", Conflict),
    ("Read-only file system", Conflict),
    ("No space left on device", NoRoom),
]


async def pauses(shortest: float = 0.01, longest: float = 0.5) -> AsyncIterator[None]:
    """Moments at which to look again: soon at first, then ever more seldom."""
    pause = shortest
    while True:
        yield
        await asyncio.sleep(pause)
        pause = min(pause * 1.6, longest)
