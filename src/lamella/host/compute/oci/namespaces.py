"""User and network namespaces for containers, a few made ahead so that nobody waits for the kernel.

A ``lamella-pause`` process makes the pair and keeps it until the pair is pinned: bound to two files of the instance in the
layer's room. From then on no process is needed to keep it. The network namespace belongs to the user namespace.
"""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

from lamella.host.compute.oci.bundle import RANGE
from lamella.host.linux import binaries, syscalls
from lamella.host.linux.processes import Child, environment, read_all, readable, spawn
from lamella.model.errors import Unsupported

SYSCTL = "net/ipv4/ip_unprivileged_port_start=0"


class Pair:
    """A fresh user and network namespace, held by a process until :meth:`pin` or :meth:`drop`."""

    def __init__(self, child: Child, hold: int) -> None:
        self._child = child
        self._hold = hold

    def pin(self, id_base: int, user: Path, net: Path) -> int:
        """Map *id_base* … +65535 into it and bind both namespaces to files. Blocks shortly; returns a descriptor of the user namespace.

        :raise OSError: when the kernel refuses the range or the mounts.
        """
        proc = Path(f"/proc/{self._child.pid}")
        for name in ("uid_map", "gid_map"):
            (proc / name).write_text(f"0 {id_base} {RANGE}\n")
        for kind, target in (("user", user), ("net", net)):
            target.touch(mode=0o600)
            syscalls.mount(str(proc / "ns" / kind), str(target), None, syscalls.MS_BIND)
        return os.open(user, os.O_RDONLY)

    async def drop(self) -> None:
        """End the process that holds it. What was pinned stays."""
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1
        await self._child.end()


class NamespacePool:
    """Keeps *size* pairs ready. They end with the daemon: each holder reads a pipe that only the daemon has open."""

    def __init__(self, mark: str, size: int = 3) -> None:
        self._mark = mark
        self._size = size
        self._ready: list[Pair] = []
        self._filling: asyncio.Task[None] | None = None

    async def take(self) -> Pair:
        """A pair, from those made ahead or made now.

        :raise Unsupported: when this host makes no user namespaces.
        """
        pair = self._ready.pop() if self._ready else await self._make()
        self.fill()
        return pair

    def fill(self) -> None:
        """See to it that there are enough, in the background."""
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fill())

    async def _fill(self) -> None:
        while len(self._ready) < self._size:
            # Whoever waits goes first: this is for the next one.
            await asyncio.sleep(0.05)
            with suppress(Unsupported):
                self._ready.append(await self._make())
                continue
            return

    async def close(self) -> None:
        if self._filling is not None:
            self._filling.cancel()
            with suppress(asyncio.CancelledError):
                await self._filling
        while self._ready:
            await self._ready.pop().drop()

    async def _make(self) -> Pair:
        ready, theirs = os.pipe()
        errors, their_errors = os.pipe()
        hold, kept = os.pipe()
        argv = [str(binaries.own("lamella-pause")), "--unshare", "user,net", "--loopback", "--sysctl", SYSCTL]
        try:
            child = spawn(
                [*argv, "--ready", "3", "--hold", "4", "--mark", self._mark],
                environment=environment(self._mark),
                files={2: their_errors, 3: theirs, 4: hold},
                session=True,
            )
        except BaseException:
            for fd in (ready, errors, kept):
                os.close(fd)
            raise
        finally:
            for fd in (theirs, their_errors, hold):
                os.close(fd)
        pair = Pair(child, kept)
        try:
            async with asyncio.timeout(10):
                await readable(ready)
            if os.read(ready, 1) == b"1":
                os.close(errors)
                return pair
            said = (await read_all(errors)).decode(errors="replace").strip()
        except TimeoutError:
            os.close(errors)
            said = "lamella-pause did not get ready within 10 s"
        except BaseException:
            os.close(errors)
            await pair.drop()
            raise
        finally:
            os.close(ready)
        await pair.drop()
        raise Unsupported(
            f"no user namespace can be made: {said}",
            hint="see /proc/sys/user/max_user_namespaces and the limits of this machine",
        )
