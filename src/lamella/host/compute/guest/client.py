"""The host's side of one guest: every verb of the agent, as a method (docs/guest-protocol.md)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

from lamella.host.compute.guest.setup import GuestHello, GuestNetwork, GuestProcess, GuestSetup, GuestState
from lamella.model.files import FileInfo
from lamella.model.stream import ExecSpec, ProcessStream
from lamella.model.usage import LogEntry, Usage


class GuestClient:
    """One conversation with one agent. Not more than one at a time: a new one ends the last, and the guest's execs with it.

    Every verb raises :class:`Unavailable` when the channel is gone, :class:`DeadlineExceeded` when the guest does not answer in time,
    :class:`Corrupt` when what it says breaks the protocol, and otherwise what the guest answered (:class:`NotFound`, :class:`Conflict`, …).
    """

    hello: GuestHello

    @classmethod
    async def connect(cls, path: Path, *, timeout: float = 30.0) -> Self:
        """Talk to the agent behind the Unix socket at *path* (QEMU's chardev); waits up to *timeout* seconds for it to answer."""
        raise NotImplementedError

    @classmethod
    async def over(cls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, timeout: float = 30.0) -> Self:
        """Talk over a pair of pipes or a socket that is open already."""
        raise NotImplementedError

    @property
    def closed(self) -> asyncio.Event:
        """Set when the channel is gone, whoever ended it."""
        raise NotImplementedError

    async def configure(self, setup: GuestSetup) -> None:
        """Make the guest the instance: mount, name, network. Once a boot.

        :raise Conflict: when it has been configured.
        """
        raise NotImplementedError

    async def start(self, process: GuestProcess) -> GuestState:
        """Run the instance's command.

        :raise Invalid: when it cannot be run (no such file, no such user); the guest is then EXITED with 126 or 127 and a reason.
        :raise Conflict: when it was started before.
        """
        raise NotImplementedError

    async def state(self) -> GuestState: ...  # type: ignore[empty-body]

    async def wait_exit(self) -> GuestState:
        """Return when the command has ended."""
        raise NotImplementedError

    async def acknowledge_exit(self) -> None:
        """The host has the exit code and the log: the guest syncs and powers off (the channel then ends)."""
        raise NotImplementedError

    async def signal(self, number: int) -> None:
        """Send a POSIX signal to the instance's own process."""
        raise NotImplementedError

    async def shutdown(self, signal: int, timeout: float) -> GuestState:
        """Ask with *signal*, after *timeout* seconds kill; returns the final state. The guest powers off on :meth:`acknowledge_exit`."""
        raise NotImplementedError

    async def exec(self, spec: ExecSpec) -> ProcessStream:
        """A process beside the instance's own. What cannot be run answers ``Exit(126 or 127, reason)``."""
        raise NotImplementedError

    async def attach(self) -> ProcessStream:
        """The instance's own process, from configured on: nothing that it writes after this call is missed."""
        raise NotImplementedError

    def logs(self, after_offset: int = 0) -> AsyncIterator[tuple[int, LogEntry]]:
        """Output from byte *after_offset* on, each piece with the offset of its first byte; follows until the command has ended.

        The next piece's offset is larger than this one's end where output was lost (no host was there to take it).
        """
        raise NotImplementedError

    async def acknowledge_logs(self, offset: int) -> None:
        """Everything before byte *offset* is safe with the host."""
        raise NotImplementedError

    async def stat(self, path: str) -> FileInfo: ...  # type: ignore[empty-body]

    async def list_directory(self, path: str) -> list[FileInfo]: ...  # type: ignore[empty-body]

    def read_file(self, path: str) -> AsyncIterator[bytes]:
        raise NotImplementedError

    async def write_file(
        self, path: str, data: AsyncIterator[bytes], *, mode: int = 0o644, uid: int = 0, gid: int = 0
    ) -> None:
        raise NotImplementedError

    async def make_directory(self, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        raise NotImplementedError

    async def usage(self) -> Usage: ...  # type: ignore[empty-body]

    async def freeze(self, deadline: float) -> None:
        """Hold writes to the data disk until :meth:`thaw`, at most *deadline* seconds."""
        raise NotImplementedError

    async def thaw(self) -> None:
        raise NotImplementedError

    async def reseed(self, entropy: bytes) -> None:
        """Mix *entropy* into the kernel's pool and make it reseed now (after a clone or a restore)."""
        raise NotImplementedError

    async def set_hostname(self, hostname: str) -> None:
        raise NotImplementedError

    async def set_time(self) -> None:
        """Set the guest's clock to the host's."""
        raise NotImplementedError

    async def set_network(self, network: GuestNetwork, nameservers: list[str]) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        """End the conversation; the guest and its own process live on. Safe to call twice."""
        raise NotImplementedError
