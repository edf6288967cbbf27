"""The storage process as the rest of storage sees it: the Protocol of ``process/daemon.py``, and the values that cross it.

A volume that is open there has a stack of nodes, topmost first: ``throttle`` (its limits), ``luks`` (when it is encrypted), and what
its driver's ``node`` says. The same stack serves every way in: a file (FUSE), or an NBD socket.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import msgspec

from lamella.host.storage.driver import Extent, Layer, Node
from lamella.model.storage import IoLimits

# Told of a job's progress: bytes done, bytes in all.
Told = Callable[[int, int], None]

# The header of LUKS1 as QEMU makes it for a key of 512 bits (aes-256-xts): 8 + 8 × 504 sectors.
OVERHEAD = 2068480


class Stack(msgspec.Struct, kw_only=True, frozen=True):
    """How a volume is opened. ``key`` is the 32 random bytes of an encrypted one; it is given to the storage process over its private
    socket and is on no command line. ``group`` names the limits that are shared (empty: its own). ``machine`` is the instance that alone
    has it, where it is served to that one over NBD, by a process that has no other's volumes; shared limits do not reach into it."""

    id: str
    node: Node
    key: bytes = b""
    limits: IoLimits = msgspec.field(default_factory=IoLimits)
    group: str = ""
    machine: str = ""
    read_only: bool = False


class Ways(msgspec.Struct, kw_only=True, frozen=True):
    """Where an open volume can be reached: ``file`` is a regular file of its size, ``socket`` speaks NBD; its export is called as the
    volume's id."""

    file: Path | None = None
    socket: Path | None = None


class Counted(msgspec.Struct, kw_only=True, frozen=True):
    """What went through an open volume since it was opened, reads and writes together."""

    bytes: int
    operations: int


class BlockDaemon(Protocol):
    """One storage process, which outlives the daemon. Every verb may raise :class:`Unavailable` when it is gone; it is started again
    at once then, and everything that was open is open again, with the same ways in."""

    async def open(self) -> str:
        """Adopt the one that runs, or be ready to start one when something is opened. Returns why this host can have none, or ``""``."""
        ...

    async def close(self) -> None:
        """Let go of it; it goes on."""
        ...

    async def end(self) -> None:
        """End it, everything written out and nothing left: for a layer that is removed."""
        ...

    async def inventory(self) -> set[str]:
        """Ids of what is open."""
        ...

    async def add(self, stack: Stack) -> None:
        """Open it; the same one again is fine. One that is parked goes on, on the *stack*'s node.

        :raise Conflict: when it is open elsewhere (the lock in its format says so). :raise Unavailable: when it cannot be opened.
        """
        ...

    async def park(self, id: str) -> None:
        """Close the files of an open volume, everything written out. Its ways in stay, and whoever uses it waits until it is added again,
        however long that is and whoever ends meanwhile. Parked already is fine."""
        ...

    async def remove(self, id: str) -> None:
        """Close it with all ways in, everything written out; not open is fine."""
        ...

    async def export(self, id: str, *, socket_owner: int | None = None, writable: bool = True) -> Ways:
        """A file, or for a volume that was opened for a machine, with *socket_owner* (its uid), the socket that this user may connect to.
        The same again gives the same."""
        ...

    async def unexport(self, id: str) -> None:
        """Close all ways in."""
        ...

    async def size(self, id: str) -> int: ...

    async def resize(self, id: str, size: int) -> None:
        """Of an open one; whoever has it sees the new size."""
        ...

    async def limit(self, id: str, limits: IoLimits, group: str = "") -> None:
        """From now on."""
        ...

    async def flush(self, ids: list[str]) -> None:
        """What was acknowledged is on the disk."""
        ...

    async def switch(self, layers: dict[str, Layer]) -> float:
        """All these open volumes are written to their new, empty layers from one instant on. Returns for how many seconds nothing was
        written."""
        ...

    async def merge(self, id: str, upper: Layer, lower: Layer, told: Told | None = None, *, speed: int = 0) -> None:
        """Put *upper*'s content into *lower*, in the chain of the open volume *id*, while it is written; then *upper* is in it no more."""
        ...

    async def mirror(
        self,
        id: str,
        target: Stack,
        told: Told | None = None,
        *,
        speed: int = 0,
        same: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Copy the open volume to *target* (an empty volume of the same size) while it is written, and go over to it: *target*'s node is
        what *id* stands on from then on, for every way in. ``speed`` is bytes a second; 0 takes what leaves the writer its share.

        *same* is awaited when both are the same and every write is acknowledged by both, before the going over: whoever writes down
        which side is the truth does it there. What fails before that leaves *id* where it was."""
        ...

    async def follow(self, id: str, target: Stack, told: Told | None = None, *, speed: int = 0) -> None:
        """As :meth:`mirror`, but *id* stays where it is: *target*, which gets every write of *id* by another way already, has everything,
        synced, when this returns."""
        ...

    async def node(self, id: str) -> Node:
        """What the open volume *id* stands on.

        :raise NotFound: when it is not open.
        """
        ...

    async def machine(self, id: str) -> str:
        """The instance that alone is served the open volume *id*; empty when it is served otherwise.

        :raise NotFound: when it is not open.
        """
        ...

    async def counted(self) -> dict[str, Counted]:
        """How open volumes were used since they were opened, by id, where that can be told."""
        ...

    async def copy(
        self,
        source: Stack,
        target: Stack,
        told: Told | None = None,
        *,
        extents: list[Extent] | None = None,
        speed: int = 0,
    ) -> int:
        """Copy between two stacks, each open already or opened for this alone; a source that is open and written is copied as it is at
        this instant. Only *extents*, if they are given; holes stay holes. Returns bytes."""
        ...

    async def map(self, stack: Stack) -> list[Extent]:
        """What of it holds data and what reads as zeros."""
        ...

    async def make_luks(self, stack: Stack) -> None:
        """Write a LUKS header over *stack*'s node, for its key; whatever was in the volume is lost. Nobody has it open."""
        ...

    async def rekey(self, stack: Stack, key: bytes) -> None:
        """*key* opens the volume from now on, and *stack*'s own key no more. Nobody has it open. After a crash on the way either opens it;
        again, with a stack that either opens, finishes it."""
        ...

    async def hold(self, ids: list[str]) -> None:
        """Writers of these open volumes wait; their requests are neither lost nor failed. Held already is fine."""
        ...

    async def release(self, ids: list[str]) -> None:
        """They go on. Not held, or not open any more, is fine."""
        ...

    def on_event(self, heard: Callable[[str, str, str], None]) -> None:
        """*heard* (type, volume id, sentence) is called for what a person should know: ``volume.error``, ``storage.restarted``, …"""
        ...
