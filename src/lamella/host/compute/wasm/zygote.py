"""The fork server of one daemon: lamella-wasm, with wasmtime loaded and an empty room around it.

It ends with the daemon; what it forked does not. One that died is replaced when it is next needed.
"""

import array
import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from lamella.host.compute.wasm import order as orders
from lamella.host.compute.wasm.library import Library
from lamella.host.compute.wasm.monitor import Connection, Lost
from lamella.host.linux import binaries
from lamella.host.linux.cgroup import Cgroup
from lamella.host.linux.processes import Child, environment, read_all, spawn
from lamella.model.errors import Unavailable

logger = logging.getLogger(__name__)

READY_DEADLINE = 20.0


class Zygote:
    """*room* is an empty directory, *group* the control group of all monitors."""

    def __init__(self, library: Library, room: Path, group: Cgroup, mark: str) -> None:
        self._library = library
        self._room = room
        self._group = group
        self._mark = mark
        self._child: Child | None = None
        self._socket: socket.socket | None = None
        self._starting = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    async def open(self) -> None:
        """:raise Unavailable: when it does not start; its words are in the error."""
        async with self._starting:
            if self._child is not None and self._child.poll() is None:
                return
            await self._end()
            await self._start()

    async def renew(self) -> None:
        """What it was asked was not answered: it has died, or it ends now, and another begins."""
        async with self._starting:
            await self._end()
            await self._start()

    async def _start(self) -> None:
        self._room.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        said_end, saying = os.pipe()
        errors_end, errors = os.pipe()
        try:
            child = spawn(
                [str(binaries.own("lamella-wasm")), str(self._library.path), str(self._room)],
                environment=environment(self._mark),
                files={0: theirs.fileno(), 1: saying, 2: errors},
            )
        except BaseException:
            ours.close()
            os.close(said_end)
            os.close(errors_end)
            raise
        finally:
            theirs.close()
            os.close(saying)
            os.close(errors)
        # Monitors live in the zygote's group: what an instance may use is for its worker alone.
        for file in self._group.procs_files():
            file.write_text(str(child.pid))
        said = asyncio.ensure_future(read_all(said_end))
        words = asyncio.ensure_future(read_all(errors_end))
        try:
            async with asyncio.timeout(READY_DEADLINE):
                ready = await said == b"ready\n"
                text = (await words).decode(errors="replace").strip()
        except BaseException:
            ours.close()
            said.cancel()
            words.cancel()
            await child.end()
            raise
        if not ready:
            ours.close()
            code = await child.wait()
            raise Unavailable(f"lamella-wasm did not start: {text or f'it ended with {code}'}")
        # It takes a request in microseconds: who sends waits for that, but not for ever.
        ours.settimeout(5)
        self._child, self._socket = child, ours

    def ask(self, mode: int, order: bytes, fds: Sequence[int], *, groups: int, directories: int) -> Connection:
        """Have a monitor forked that is given *order* and *fds* (after order and connection); the connection to it.

        Blocks for microseconds; after :meth:`open`, in any thread.

        :raise Unavailable: when there is no zygote.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = os.memfd_create("order", os.MFD_CLOEXEC)
        try:
            os.write(memory, order)
            numbers = array.array("i", [memory, theirs.fileno(), *fds])
            message = orders.request(mode, groups=groups, directories=directories)
            if self._socket is None:
                raise Unavailable("the fork server of WebAssembly instances is not there", hint="try again")
            try:
                self._socket.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
            except OSError as error:
                raise Lost("the fork server of WebAssembly instances has gone", hint="try again") from error
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(memory)
            theirs.close()
        return Connection(ours)

    async def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._child is not None:
            child, self._child = self._child, None
            # Its end of the socket tells it; what it forked goes on.
            try:
                async with asyncio.timeout(2):
                    await child.wait()
            except TimeoutError:
                await child.end()

    async def close(self) -> None:
        async with self._starting:
            await self._end()
