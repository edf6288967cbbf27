"""Who answers on the socket of a synchronous replica: the replica itself, or, once that is written down, a sink.

Writes go to both halves of a quorum (QEMU's ``quorum`` block driver, ``vote-threshold`` 2): the source's own node, and an NBD client
of this socket with ``reconnect-delay``. While nobody answers here the client keeps its requests, and so the writer waits: it neither
fails nor is told that something is safe that is not. A server that died is started again and the kept requests run anew. When it
cannot be, the controller first writes down that the replica is behind, and then has the *sink* answer: it acknowledges and forgets, so
that the source goes on alone. The graph of the open volume never changes.

The replica syncs each write before it acknowledges it (``writethrough``): its death loses nothing. Neither server ever answers a
read: nothing stale can be read through them.
"""

import asyncio
import json
import os
import socket
from pathlib import Path

from lamella.host.compute.driver import Limits
from lamella.host.linux import binaries
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.linux.processes import Child, bears_mark, command_line, environment, first_readable, read_all, spawn
from lamella.host.storage.driver import Node
from lamella.host.storage.process.qsd import GROUP, TOP
from lamella.model.errors import Unavailable

EXPORT = "replica"
_TOP = int(TOP.rpartition("/")[2])
# Seconds for a server to answer on its socket, and for requests to be kept while nobody does.
_START = 10.0
_KEEP = 30 * 86400


def no_reads(node: Node) -> Node:
    """*node*, but reads fail (QEMU's blkdebug)."""
    refuse = {"event": "none", "iotype": "read", "errno": 5, "once": False}
    return {"driver": "blkdebug", "inject-error": [refuse], "image": node}


def sink(size: int) -> Node:
    return {"driver": "null-co", "size": size}


def client(path: str, size: int) -> Node:
    """The replica as the storage process opens it; *size* of its bytes, for both of a quorum have to be alike."""
    node: Node = {
        "driver": "nbd",
        "server": {"type": "unix", "path": path},
        "export": EXPORT,
        "reconnect-delay": _KEEP,
    }
    return {"driver": "raw", "size": size, "file": node}


def both(node: Node, path: str, size: int) -> Node:
    """*node* and the replica behind *path*: a write is acknowledged by both or not at all; reads are *node*'s."""
    return {"driver": "quorum", "vote-threshold": 2, "read-pattern": "fifo", "children": [node, client(path, size)]}


class Server:
    """The socket *name* below *top* (``<run>/storage``), and the process behind it, which outlives us and bears *mark*."""

    def __init__(self, top: Path, name: str, mark: str) -> None:
        self._top = top
        self._place = top / "replicas" / name
        self._mark = mark
        # As the storage process and the server see it, for whom the descriptor 9 is *top*: sockets' paths may not be long.
        self.path = f"{TOP}/replicas/{name}/nbd"
        self._child: Child | None = None
        self.role = ""

    @property
    def _pid_file(self) -> Path:
        return self._place / "pid"

    def adopt(self) -> None:
        """Find the process that a former daemon left, if it is there."""
        try:
            pid, role = self._pid_file.read_text().split()
            if not bears_mark(int(pid), self._mark) or self.path.encode() not in b" ".join(command_line(int(pid))):
                return
            self._child, self.role = Child(int(pid)), role
        except (OSError, ValueError):
            return

    @property
    def alive(self) -> bool:
        return self._child is not None and _alive(self._child)

    async def ended(self) -> None:
        """Wait until the process is gone."""
        if self._child is not None:
            await _ended(self._child)

    async def serve(self, node: Node, role: str) -> None:
        """Have *node* answer, as *role*; whoever answered before is gone first.

        :raise Unavailable: when it cannot be opened.
        """
        await self.stop()
        self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
        errors, theirs = os.pipe()
        top = os.open(self._top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        blockdev = json.dumps({**no_reads(node), "node-name": EXPORT})
        address = f"addr.type=unix,addr.path={self.path},max-connections=0"
        export = f"type=nbd,id=replica,node-name={EXPORT},name={EXPORT},writable=on,writethrough=on"
        argv = [
            str(binaries.tool("qemu-storage-daemon")),
            "--blockdev",
            blockdev,
            "--nbd-server",
            address,
            "--export",
            export,
        ]
        try:
            child = spawn(argv, environment=environment(self._mark), files={2: theirs, _TOP: top}, session=True)
        except BaseException:
            os.close(errors)
            raise
        finally:
            os.close(theirs)
            os.close(top)
        self._child, self.role = child, role
        group = Cgroups(ROOT, self._mark).group(GROUP)
        group.create(Limits())
        for file in group.procs_files():
            file.write_text(str(child.pid))
        draft = self._pid_file.with_suffix(".new")
        draft.write_text(f"{child.pid} {role}")
        draft.rename(self._pid_file)
        try:
            await self._answers(child, errors)
        except BaseException:
            await self.stop()
            raise

    async def _answers(self, child: Child, errors: int) -> None:
        kept = False
        try:
            async with asyncio.timeout(_START):
                while True:
                    if not _alive(child):
                        kept = True
                        said = (await read_all(errors)).decode(errors="replace").strip()
                        raise Unavailable(f"the replica cannot be opened: {said[-300:]}", hint="see to its pool")
                    if _connects(self._place):
                        return
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise Unavailable("the replica did not open in time", hint="see to its pool") from None
        finally:
            if not kept:
                os.close(errors)

    async def stop(self) -> None:
        """Nobody answers; whoever writes waits."""
        child, self._child, self.role = self._child, None, ""
        if child is not None:
            child.kill()
            await _ended(child)
            child.release()
        (self._place / "nbd").unlink(missing_ok=True)
        self._pid_file.unlink(missing_ok=True)


async def _ended(child: Child) -> None:
    try:
        watched = child.watch()
    except ProcessLookupError:
        return
    try:
        await first_readable([watched])
    finally:
        os.close(watched)
    _alive(child)


def _alive(child: Child) -> bool:
    try:
        return child.poll() is None
    except ChildProcessError:
        # A former daemon's child: not ours to reap, but its state is there to read.
        try:
            state = Path(f"/proc/{child.pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
        except OSError:
            return False
        return state not in (b"Z", b"X")


def _connects(place: Path) -> bool:
    directory = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"/proc/self/fd/{directory}/nbd")
    except OSError:
        return False
    finally:
        os.close(directory)
    return True
