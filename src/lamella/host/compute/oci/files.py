"""Files in a container, through the guest agent run inside it: a link can lead nowhere but to where it leads inside.

The agent is a static program, carried in as a sealed descriptor: it is in no directory of the container, and nothing inside can
change it.
"""

import asyncio
import fcntl
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.oci.execution import ExecRuntime, words
from lamella.host.compute.oci.spec import Process
from lamella.host.linux import binaries
from lamella.host.linux.processes import environment, spawn
from lamella.model.errors import Unavailable

_F_ADD_SEALS, _ALL_SEALS = 1033, 0x1 | 0x2 | 0x4 | 0x8
AGENT = "lamella-agent"
COMMAND = ["/proc/self/fd/3", "--stdio"]


class AgentProgram:
    """The agent's program in sealed memory (memfd_create(2)), read once."""

    def __init__(self) -> None:
        self._fd = -1

    def descriptor(self) -> int:
        """:raise Unavailable: when the agent was not built."""
        if self._fd < 0:
            program = binaries.own(AGENT).read_bytes()
            # Above the numbers that the spawn gives away, and not writable by anybody from here on.
            fd = os.memfd_create(AGENT, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.write(fd, program)
                os.fchmod(fd, 0o755)
                fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS)
            except BaseException:
                os.close(fd)
                raise
            self._fd = fd
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@asynccontextmanager
async def agent(
    runtime: ExecRuntime, process: Process, folder: Path, program: AgentProgram
) -> AsyncGenerator[GuestClient]:
    """An agent inside the container for as long as the context lasts.

    :raise Unavailable: when it does not come up; what the runtime said is in the message.
    """
    descriptor = await asyncio.to_thread(program.descriptor)
    await asyncio.to_thread(_write, folder, process)
    ours, theirs = socket.socketpair()
    try:
        ours.setblocking(False)
        child = spawn(
            [*runtime.arguments(folder, preserve=1), runtime.id],
            environment=environment(runtime.mark),
            files={0: theirs.fileno(), 1: theirs.fileno(), 3: descriptor},
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    try:
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            client = await GuestClient.over(reader, writer, timeout=30.0)
        except Unavailable as error:
            said = words(folder / "log")
            raise Unavailable(f"the agent does not start in the instance: {said or error.message}") from error
        try:
            yield client
        finally:
            await client.close()
    finally:
        with suppress(OSError):
            ours.close()
        # The agent ends at the end of its input, and the runtime that waits for it then: killed first, the runtime would
        # leave a zombie to the container's own process.
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                await child.wait()
        await child.end()
        await asyncio.to_thread(_remove, folder)


def _write(folder: Path, process: Process) -> None:
    folder.mkdir(mode=0o700, parents=True)
    (folder / "process.json").write_bytes(msgspec.json.encode(process))


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
