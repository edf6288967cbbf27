"""The host's side of one guest: every verb of the agent, as a method (docs/guest-protocol.md)."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Self

from lamella.host.compute.guest import answers
from lamella.host.compute.guest.channel import Channel, Stream
from lamella.host.compute.guest.fields import Fields, Tag, Value, Verb, body, nanoseconds
from lamella.host.compute.guest.frames import FrameType
from lamella.host.compute.guest.process import GuestProcessStream
from lamella.host.compute.guest.setup import (
    GuestHello,
    GuestIdentity,
    GuestNetwork,
    GuestProcess,
    GuestSetup,
    GuestState,
)
from lamella.host.compute.guest.socket import open_socket
from lamella.model.errors import Corrupt, LamellaError, NoRoom, Unsupported
from lamella.model.files import FileInfo
from lamella.model.resource import now
from lamella.model.stream import ExecSpec, ProcessStream
from lamella.model.usage import LogEntry, Usage

_LARGEST_LISTING = 32 << 20
_CONFIGURE_TIMEOUT = 60.0
_POWER_TIMEOUT = 60.0
_RENEW_TIMEOUT = 120.0

_Pairs = list[tuple[Tag, Value | None]]


class GuestClient:
    """One conversation with one agent. Not more than one at a time: a new one ends the last, and the guest's execs with it.

    Every verb raises :class:`Unavailable` when the channel is gone, :class:`DeadlineExceeded` when the guest does not answer in time,
    :class:`Corrupt` when what it says breaks the protocol, and otherwise what the guest answered (:class:`NotFound`, :class:`Conflict`, …).
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.hello: GuestHello = answers.hello(channel.hello)

    @classmethod
    async def connect(cls, path: Path, *, timeout: float = 30.0) -> Self:
        """Talk to the agent behind the Unix socket at *path* (QEMU's chardev); waits up to *timeout* seconds for it to answer.

        :raise DeadlineExceeded: when it does not.
        """
        started = asyncio.get_running_loop().time()
        reader, writer = await open_socket(path, timeout=timeout)
        left = timeout - (asyncio.get_running_loop().time() - started)
        return await cls.over(reader, writer, timeout=left)

    @classmethod
    async def over(cls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, timeout: float = 30.0) -> Self:
        """Talk over a pair of pipes or a socket that is open already; it is closed when that fails."""
        channel = await Channel.open(reader, writer, timeout=timeout)
        try:
            return cls(channel)
        except BaseException:
            await channel.close()
            raise

    @property
    def closed(self) -> asyncio.Event:
        """Set when the channel is gone, whoever ended it."""
        return self._channel.closed

    async def prepare(self) -> GuestState:
        """Have a guest that waits for its setup do what it can before it: load its drivers."""
        return answers.state(await self._channel.call(Verb.PREPARE, timeout=_CONFIGURE_TIMEOUT))

    async def configure(self, setup: GuestSetup) -> None:
        """Make the guest the instance: mount, name, network. Once a boot.

        :raise Conflict: when it has been configured.
        """
        disks: _Pairs = [
            (Tag.ROOT_SERIAL, setup.root_serial),
            (Tag.DATA_SERIAL, setup.data_serial),
            (Tag.PIDS, setup.pids),
        ]
        await self._channel.call(Verb.CONFIGURE, body(*disks, *_names(setup)), timeout=_CONFIGURE_TIMEOUT)

    async def become(self, setup: GuestSetup) -> None:
        """Give a guest that was configured, but runs nothing yet, the name, network, clock and randomness of *setup*; the disks stay."""
        await self._channel.call(Verb.SET, body(*_names(setup)), timeout=_CONFIGURE_TIMEOUT)

    async def start(self, process: GuestProcess) -> GuestState:
        """Run the instance's command.

        :raise Invalid: when it cannot be run (no such file, no such user); the guest is then EXITED with 126 or 127 and a reason.
        :raise Conflict: when it was started before, or is not configured.
        """
        pairs: _Pairs = [(Tag.ARGUMENT, argument) for argument in process.command]
        pairs += [(Tag.ENVIRONMENT, f"{name}={value}") for name, value in process.environment.items()]
        pairs += [
            (Tag.WORKING_DIRECTORY, process.working_directory or "/"),
            (Tag.USER, process.user),
            (Tag.TERMINAL, int(process.terminal)),
            (Tag.STDIN, int(process.stdin)),
            (Tag.ROWS, process.rows),
            (Tag.COLUMNS, process.columns),
        ]
        return answers.state(await self._channel.call(Verb.START, body(*pairs)))

    async def state(self) -> GuestState:
        return answers.state(await self._channel.call(Verb.STATE))

    async def wait_exit(self) -> GuestState:
        """Return when the command has ended and all its output is in the log."""
        return answers.state(await self._wait(Verb.WAIT_EXIT))

    async def acknowledge_exit(self) -> None:
        """The host has the exit code and the log: the guest syncs and powers off (the channel then ends).

        :raise Conflict: when the command has not ended.
        """
        await self._channel.call(Verb.ACKNOWLEDGE_EXIT)

    async def signal(self, number: int) -> None:
        """Send a POSIX signal to the instance's own process.

        :raise Conflict: when it does not run.
        """
        await self._channel.call(Verb.SIGNAL, body((Tag.SIGNAL, number)))

    async def shutdown(self, signal: int, timeout: float) -> GuestState:
        """Ask with *signal*, after *timeout* seconds kill; returns the final state. The guest powers off on :meth:`acknowledge_exit`."""
        message = body((Tag.SIGNAL, signal), (Tag.TIMEOUT_MS, _milliseconds(timeout)))
        return answers.state(await self._wait(Verb.SHUTDOWN, message))

    async def power(self, *, reboot: bool = False) -> None:
        """Ask the init of the machine that the agent is a service of to power off or to reboot; returns when it has been asked.

        :raise Unsupported: when the agent is not a service, or found no way to ask.
        """
        if self.hello.mode != "service":
            raise Unsupported(
                "this guest's agent has no init to ask: it is none of its services", hint="stop the instance instead"
            )
        await self._channel.call(Verb.SHUTDOWN, body((Tag.REBOOT, int(reboot))), timeout=_POWER_TIMEOUT)

    async def exec(self, spec: ExecSpec) -> ProcessStream:
        """A process beside the instance's own. What cannot be run answers ``Exit(126 or 127, reason)``.

        :raise Conflict: when the instance does not run.
        """
        pairs: _Pairs = [(Tag.ARGUMENT, argument) for argument in spec.command]
        pairs += [(Tag.ENVIRONMENT, f"{name}={value}") for name, value in spec.environment.items()]
        pairs += [
            (Tag.WORKING_DIRECTORY, spec.working_directory),
            (Tag.USER, spec.user),
            (Tag.TERMINAL, int(spec.terminal)),
            (Tag.STDIN, int(spec.stdin)),
            (Tag.ROWS, spec.rows),
            (Tag.COLUMNS, spec.columns),
            (Tag.TIMEOUT_MS, None if spec.timeout is None else _milliseconds(spec.timeout)),
        ]
        return await self._process(Verb.EXEC, body(*pairs))

    async def attach(self) -> ProcessStream:
        """The instance's own process, from configured on: nothing that it writes after this call is missed."""
        return await self._process(Verb.ATTACH)

    async def logs(self, after_offset: int = 0) -> AsyncIterator[tuple[int, LogEntry]]:
        """Output from byte *after_offset* on, each piece with the offset of its first byte; follows until the command has ended.

        The next piece's offset is larger than this one's end where output was lost (no host was there to take it).
        """
        async with self._open(Verb.LOGS, body((Tag.OFFSET, after_offset))) as stream:
            while (frame := await stream.receive()) is not None:
                yield answers.log_piece(frame)
            stream.outcome()

    async def acknowledge_logs(self, offset: int) -> None:
        """Everything before byte *offset* is safe with the host."""
        await self._channel.call(Verb.ACKNOWLEDGE_LOGS, body((Tag.OFFSET, offset)))

    async def stat(self, path: str) -> FileInfo:
        """What is at *path*, a link at the end not followed.

        :raise NotFound: when nothing is.
        """
        return answers.file_info(await self._channel.call(Verb.STAT, body((Tag.PATH, path))))

    async def list_directory(self, path: str) -> list[FileInfo]:
        """:raise NoRoom: when it holds more than can be listed at once."""
        entries: list[FileInfo] = []
        size = 0
        async with self._open(Verb.LIST, body((Tag.PATH, path))) as stream:
            while (frame := await stream.receive()) is not None:
                size += frame.cost
                if size > _LARGEST_LISTING:
                    raise NoRoom(f"{path} has too many entries to list", hint="list it with a command inside")
                entries.append(answers.file_info(Fields(frame.payload)))
            stream.outcome()
        return sorted(entries, key=lambda entry: entry.path)

    async def read_file(self, path: str) -> AsyncGenerator[bytes]:
        """:raise NotFound, Conflict, Invalid: when there is nothing, a directory, or something that is no file."""
        async with self._open(Verb.READ, body((Tag.PATH, path))) as stream:
            while (frame := await stream.receive()) is not None:
                if frame.type is not FrameType.DATA:
                    raise Corrupt(
                        "the guest sent something that is not of a file", hint="its agent is broken or hostile"
                    )
                yield frame.payload[1:]
            stream.outcome()

    async def write_file(
        self, path: str, data: AsyncIterator[bytes], *, mode: int = 0o644, uid: int = 0, gid: int = 0
    ) -> None:
        """Write beside *path* and rename over it when all is there; what fails leaves nothing."""
        message = body((Tag.PATH, path), (Tag.MODE, mode), (Tag.UID, uid), (Tag.GID, gid))
        async with self._open(Verb.WRITE, message) as stream:
            async for piece in data:
                if stream.ended:
                    break
                try:
                    await stream.send_data(piece)
                except LamellaError:
                    if not stream.ended:
                        raise
            if not stream.ended:
                await stream.send_end()
            await stream.result()

    async def make_directory(self, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        """Make it with its parents; an existing directory is fine."""
        message = body((Tag.PATH, path), (Tag.MODE, mode), (Tag.UID, uid), (Tag.GID, gid))
        await self._channel.call(Verb.MAKE_DIRECTORY, message)

    async def usage(self) -> Usage:
        return answers.usage(await self._channel.call(Verb.USAGE))

    async def freeze(self, deadline: float) -> int:
        """Hold writes until :meth:`thaw`, at most *deadline* seconds: to the data disk and the volumes, or to all of a machine that it
        serves. Returns how many file systems stand still (1 from an agent that does not say)."""
        message = body((Tag.TIMEOUT_MS, _milliseconds(deadline)))
        answer = await self._channel.call(Verb.FREEZE, message, timeout=max(deadline, 1.0))
        return answer.number(Tag.COUNT, largest=1 << 16) or 1

    async def thaw(self) -> bool:
        """Whether everything stood still until now."""
        return bool((await self._channel.call(Verb.THAW)).number(Tag.HELD, largest=1))

    async def hold(self, deadline: float | None) -> None:
        """Make everything in the guest stand still but its agent and its kernel; returns when it does. Until :meth:`release` or
        :meth:`renew`, at most *deadline* seconds of the guest's own time, or ``None`` for as long as nobody says so: a hold outlives the
        conversation, and a copy of the machine wakes up held. Asked again it moves the deadline. Files may be read and written meanwhile;
        nothing can be run.

        :raise Conflict: when something does not come to stand still in ten seconds (or *deadline*); nothing is held then.
        :raise Unsupported: when the agent is an older one, or the guest's kernel is older than Linux 5.2.
        """
        await self._channel.call(Verb.HOLD, body((Tag.TIMEOUT_MS, 0 if deadline is None else _milliseconds(deadline))))

    async def release(self) -> None:
        """Let a held guest go on as it was; not held is fine."""
        await self._channel.call(Verb.RELEASE)

    async def renew(self, identity: GuestIdentity) -> None:
        """Make a held guest another machine, and then let it go. Its hold ends by no deadline any more once this was asked.

        :raise Invalid: when *identity* cannot be; nothing is changed then.
        :raise Conflict: when it is not held or its disks are frozen (nothing is changed), or when some of it could not be done: it
            stays held then, half changed, and may be asked again.
        """
        pairs: _Pairs = [
            (Tag.ENTROPY, identity.entropy),
            (Tag.HOSTNAME, identity.hostname or None),
            (Tag.TIME_NS, None if identity.time is None else nanoseconds(identity.time)),
            (Tag.FORMER_MAC, identity.former_mac or None),
            (Tag.DROP_NETWORK, int(identity.drop_network) or None),
            (Tag.PIDS, identity.pids),
        ]
        message = body(
            *pairs, *_network(identity.network), *((Tag.NAMESERVER, server) for server in identity.nameservers)
        )
        await self._channel.call(Verb.RENEW, message, timeout=_RENEW_TIMEOUT)

    async def mount(
        self, serial: str, target: str, filesystem: str, *, read_only: bool = False, place: str = ""
    ) -> None:
        """Mount the disk with this serial number, or with *place* the one behind that device of the guest's first PCI bus; a file system
        that is mounted there already grows to its disk.

        :raise NotFound: when the guest has no such disk (yet). :raise Invalid: when it cannot be mounted.
        :raise Unsupported: when the agent is an older one.
        """
        pairs: _Pairs = [(Tag.SERIAL, serial), (Tag.TARGET, target), (Tag.FILESYSTEM, filesystem)]
        pairs += [(Tag.READ_ONLY, int(read_only)), (Tag.PLACE, place or None)]
        await self._channel.call(Verb.MOUNT, body(*pairs))

    async def unmount(self, serial: str, target: str, *, place: str = "") -> None:
        """Unmount what :meth:`mount` has; not mounted is fine.

        :raise Conflict: when something inside uses it.
        """
        await self._channel.call(
            Verb.UNMOUNT, body((Tag.SERIAL, serial), (Tag.TARGET, target), (Tag.PLACE, place or None))
        )

    async def reseed(self, entropy: bytes) -> None:
        """Mix *entropy* into the kernel's pool and make it reseed now (after a clone or a restore)."""
        await self._channel.call(Verb.RESEED, body((Tag.ENTROPY, entropy)))

    async def set_hostname(self, hostname: str) -> None:
        await self._channel.call(Verb.SET, body((Tag.HOSTNAME, hostname)))

    async def set_time(self) -> None:
        """Set the guest's clock to the host's."""
        await self._channel.call(Verb.SET, body((Tag.TIME_NS, nanoseconds(now()))))

    async def set_network(self, network: GuestNetwork, nameservers: list[str]) -> None:
        message = body(*_network(network), *((Tag.NAMESERVER, server) for server in nameservers))
        await self._channel.call(Verb.SET, message)

    async def close(self) -> None:
        """End the conversation; the guest and its own process live on. Safe to call twice."""
        await self._channel.close()

    async def _wait(self, verb: Verb, message: bytes = b"") -> Fields:
        async with self._open(verb, message) as stream:
            return await stream.result()

    async def _process(self, verb: Verb, message: bytes = b"") -> ProcessStream:
        stream = await self._channel.request(verb, message)
        try:
            await stream.accepted()
        except BaseException:
            stream.close()
            raise
        return GuestProcessStream(stream)

    @contextlib.asynccontextmanager
    async def _open(self, verb: Verb, message: bytes) -> AsyncGenerator[Stream]:
        stream = await self._channel.request(verb, message)
        try:
            yield stream
        finally:
            stream.close()


def _names(setup: GuestSetup) -> _Pairs:
    pairs: _Pairs = [
        (Tag.HOSTNAME, setup.hostname),
        (Tag.ENTROPY, setup.entropy or None),
        (Tag.TIME_NS, None if setup.time is None else nanoseconds(setup.time)),
    ]
    return [*pairs, *_network(setup.network), *((Tag.NAMESERVER, server) for server in setup.nameservers)]


def _network(network: GuestNetwork | None) -> _Pairs:
    if network is None:
        return []
    return [
        (Tag.INTERFACE, network.interface),
        (Tag.MAC, network.mac),
        (Tag.ADDRESS, network.address),
        (Tag.GATEWAY, network.gateway),
        (Tag.MTU, network.mtu),
        *([(Tag.ADDRESS6, network.address6), (Tag.GATEWAY6, network.gateway6)] if network.address6 else []),
    ]


def _milliseconds(seconds: float) -> int:
    return max(1, min(round(seconds * 1000), (1 << 31) - 1))
