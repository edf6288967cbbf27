"""A conversation with one QEMU over QMP: commands with deadlines, files given to it, and the events that somebody asked for.

Sources: QEMU's ``docs/interop/qmp-spec`` and the QMP reference manual of 7.2.
"""

import asyncio
import itertools
import logging
import os
import socket
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Self, TypeVar, cast

import msgspec
from qemu.qmp import ConnectError, ExecuteError, QMPClient, QMPError
from qemu.qmp.events import EventListener
from qemu.qmp.protocol import Runstate

from lamella.model.errors import Internal, Unavailable

Answer = TypeVar("Answer")

PATIENCE = 20.0
MOST_EVENTS = 64
# It tells at length of every connection that ends, which here is how microVMs end.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class Refused(Internal):
    """QEMU answered with an error. ``kind`` is its class (``GenericError``, ``DeviceNotFound``, …), ``reason`` its sentence."""

    def __init__(self, command: str, kind: str, reason: str) -> None:
        super().__init__(f"QEMU refused {command}: {reason}")
        self.kind = kind
        self.reason = reason


class Event(msgspec.Struct, kw_only=True, frozen=True):
    """Something that QEMU told without being asked. ``data`` is the event's own (QMP reference manual)."""

    name: str = msgspec.field(name="event")
    data: dict[str, object] = {}


class Events:
    """The newest events of the names that were asked for; no more than ``MOST_EVENTS`` wait to be read, older ones are forgotten.

    A guest can make QEMU send events without end, so an event says that one should look, not what there is.
    """

    def __init__(self, client: QMPClient) -> None:
        self._client = client
        self._waiting: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._came = asyncio.Event()

    def put(self, event: Event) -> None:
        self._waiting.append(event)
        self._came.set()

    async def next(self) -> Event:
        """The oldest event that was not read yet.

        :raise Unavailable: when QEMU is gone.
        """
        while not self._waiting:
            if self._client.runstate is not Runstate.RUNNING:
                raise Unavailable("QEMU ended the conversation")
            self._came.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._came.wait()
        return self._waiting.popleft()


class _Status(msgspec.Struct):
    status: str
    running: bool


class _Balloon(msgspec.Struct):
    actual: int


class _Kvm(msgspec.Struct):
    enabled: bool
    present: bool


class _Processor(msgspec.Struct):
    index: int = msgspec.field(name="cpu-index")
    thread: int = msgspec.field(name="thread-id")


class _FdSet(msgspec.Struct):
    fdset: int = msgspec.field(name="fdset-id")


class Monitor:
    """Connected until :meth:`close`, or until QEMU ends.

    Every command raises :class:`Unavailable` when QEMU is gone or does not answer in ten seconds, and :class:`Refused` when it refuses.
    """

    def __init__(self, client: QMPClient) -> None:
        self._client = client
        self._turn = asyncio.Lock()
        self._names = itertools.count(1)

    @classmethod
    async def connect(cls, path: Path) -> Self:
        """Talk to the QEMU that listens at *path*; waits until it has started.

        :raise Unavailable: when nobody answers there.
        """
        client = QMPClient()
        # Only what is subscribed to is kept: a guest could make QEMU send events without end.
        client.events.event_filter = lambda _: False
        try:
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(f"QEMU is gone, and its monitor with it: {error.strerror}") from error
        try:
            async with asyncio.timeout(PATIENCE):
                await client.connect(f"/proc/self/fd/{directory}/{path.name}")
        except (ConnectError, TimeoutError) as error:
            raise Unavailable(f"QEMU does not answer on its monitor: {error}") from error
        finally:
            os.close(directory)
        return cls(client)

    # --- any command

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        fd: int | None = None,
        deadline: float = PATIENCE,
    ) -> object:
        """Run *command* with *arguments* (names as QMP spells them) and return what it returns.

        With *fd*, that descriptor travels with it (SCM_RIGHTS) and stays ours too. ``deadline`` is seconds and counts from the moment
        when it is our turn.

        :raise Refused: when QEMU answers with an error.
        :raise Unavailable: when QEMU is gone or does not answer in time; it may carry the command out all the same.
        """
        try:
            async with self._turn, asyncio.timeout(deadline):
                if fd is not None:
                    self._send_descriptor(fd)
                return await self._client.execute(command, None if arguments is None else dict(arguments))
        except ExecuteError as error:
            raise Refused(command, error.error_class, str(error)) from error
        except (QMPError, OSError, EOFError, TimeoutError) as error:
            raise Unavailable(f"QEMU did not answer {command}: {str(error) or 'it took too long'}") from error

    def _send_descriptor(self, fd: int) -> None:
        """What ``send_fd_scm`` of the library does, on any event loop: it reaches for a socket that uvloop does not have."""
        writer = self._client._writer  # pyright: ignore[reportPrivateUsage]
        if writer is None:
            raise Unavailable("QEMU is gone")
        number = os.dup(writer.transport.get_extra_info("socket").fileno())
        with socket.socket(fileno=number) as same:
            socket.send_fds(same, [b" "], [fd])

    async def ask(self, kind: type[Answer], command: str, arguments: Mapping[str, object] | None = None) -> Answer:
        """:meth:`execute`, its answer as *kind*."""
        return msgspec.convert(await self.execute(command, arguments), kind)

    # --- files

    async def add_fd(self, fd: int, opaque: str) -> int:
        """Give QEMU *fd*, which it then finds at ``/dev/fdset/N``; returns N. *opaque* is ours, ``query-fdsets`` shows it."""
        return msgspec.convert(await self.execute("add-fd", {"opaque": opaque}, fd=fd), _FdSet).fdset

    async def remove_fdset(self, fdset: int) -> None:
        """Let QEMU close what is in it as soon as no block node uses it; gone already is fine."""
        with suppress(Refused):
            await self.execute("remove-fd", {"fdset-id": fdset})

    @asynccontextmanager
    async def named_fd(self, fd: int) -> AsyncGenerator[str, None]:
        """Give QEMU *fd* under a name of its own; what the caller's command has not taken is closed there afterwards."""
        name = f"fd-{os.getpid()}-{next(self._names)}"
        await self.execute("getfd", {"fdname": name}, fd=fd)
        try:
            yield name
        finally:
            with suppress(Refused, Unavailable):
                await self.execute("closefd", {"fdname": name})

    # --- events

    @contextmanager
    def events(self, names: Iterable[str]) -> Generator[Events, None, None]:
        """Collect events of these *names* (``DEVICE_DELETED``, ``SHUTDOWN``, …) from now on."""
        events = Events(self._client)

        def take(message: object) -> bool:
            with suppress(msgspec.ValidationError):
                events.put(msgspec.convert(dict(cast("Mapping[str, object]", message)), Event))
            return False

        listener = EventListener(set(names), take)
        self._client.register_listener(listener)
        try:
            yield events
        finally:
            self._client.remove_listener(listener)

    # --- the few that every level needs

    async def status(self) -> str:
        """The run state: ``running``, ``paused``, ``shutdown``, …"""
        return (await self.ask(_Status, "query-status")).status

    async def stop(self) -> None:
        """Let no virtual processor run."""
        await self.execute("stop")

    async def proceed(self) -> None:
        await self.execute("cont")

    async def set_memory(self, size: int) -> None:
        """Ask the guest, through the balloon, to keep *size* bytes and no more."""
        await self.execute("balloon", {"value": size})

    async def memory(self) -> int:
        """Bytes that the guest has now, the balloon's taken off."""
        return (await self.ask(_Balloon, "query-balloon")).actual

    async def kvm(self) -> bool:
        """Whether KVM is in use."""
        return (await self.ask(_Kvm, "query-kvm")).enabled

    async def processors(self) -> list[int]:
        """Threads of the virtual processors, as QEMU's own pid namespace counts them; an emulator may have several on one."""
        found = await self.ask(list[_Processor], "query-cpus-fast")
        threads = [item.thread for item in sorted(found, key=lambda item: item.index)]
        return list(dict.fromkeys(threads))

    async def close(self) -> None:
        with suppress(QMPError, OSError, EOFError, TimeoutError):
            async with asyncio.timeout(1):
                await self._client.disconnect()
