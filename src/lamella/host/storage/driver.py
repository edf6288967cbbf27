"""What every pool can do: the Protocol of storage drivers, and the values that cross it.

Found by the entry-point group ``lamella.storage``. Verbs are idempotent and safe to run again after a crash at any line. A driver
knows where bytes lie and nothing of who uses them: volumes.py opens a volume's node in the storage process, for the instances
that it is attached to, and limits, encryption and live moves happen there, for every driver alike.
"""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from lamella.model.storage import Feature, PoolStatus, VolumeForm
from lamella.model.storage_requests import StorageFinding

# Arguments of QEMU's blockdev-add, children nested, without node names: {"driver": "raw", "file": {…}}. The value of a key that ends
# in ``-secret`` is the path of a file that holds the secret: the storage process makes the object and puts its id there.
Node = dict[str, Any]


class Base(msgspec.Struct, kw_only=True, frozen=True):
    """What a new block volume begins as: the raw disk of an image, *size* bytes, never written while a volume stands on it."""

    path: Path
    size: int


class Layer(msgspec.Struct, kw_only=True, frozen=True):
    """One file of a chain: ``format`` is ``raw`` or ``qcow2``."""

    path: Path
    format: str


class Source(msgspec.Struct, kw_only=True, frozen=True):
    """The snapshot of another volume of the same pool."""

    volume: str
    snapshot: str


class Extent(msgspec.Struct, kw_only=True, frozen=True):
    """Bytes of a block volume. ``zero`` ones read as zeros."""

    offset: int
    length: int
    zero: bool = False


class VolumeHandle(msgspec.Struct, kw_only=True, frozen=True):
    """A volume as a compute driver finds it: ``path`` is a directory (filesystem), or a file or device (block).

    ``format`` is of a block volume: ``raw``, or ``qcow2`` over the layers ``below`` (nearest first, each over the next) and, under all,
    ``base``. Whoever opens it has to open those too, read-only. ``path`` is empty where no file is (a Ceph image): then only the
    storage process opens it.
    """

    id: str
    form: VolumeForm
    path: Path
    size: int = 0
    format: str = "raw"
    below: list[Layer] = []
    base: Base | None = None


class StorageDriver(Protocol):
    """One pool on one host; the constructor is called as ``Driver(path, options)`` (``PoolSpec.path`` and ``.options``), acts on
    nothing and starts nothing.

    All ids are of volumes (``vol_…``) and snapshots (``snap_…``). A verb that a pool has no :class:`Feature` for raises
    :class:`Unsupported`.
    """

    name: str
    features: frozenset[Feature]

    async def open(self) -> PoolStatus:
        """Make the pool ready (directories, a connection), finish or undo what a crash left half done, and say what room it has.

        :raise Invalid: when path or options are wrong. :raise Unavailable: when it cannot be used; the sentence says what is missing.
        """
        ...

    async def close(self) -> None: ...

    async def status(self) -> PoolStatus:
        """:raise Unavailable: when the pool does not answer."""
        ...

    async def inventory(self) -> set[str]:
        """Ids of the volumes that are here."""
        ...

    async def create(
        self, id: str, form: VolumeForm, size: int, *, base: Base | None = None, source: Source | None = None
    ) -> VolumeHandle:
        """Make it, empty or as a clone of *base* or *source*, and durable; an existing one of that id is returned.

        *size* is bytes, thin; 0 lets the driver choose for block (the size of *base* or *source*) and is no bound for filesystem.
        An empty one reads as zeros, whatever lay there before.

        :raise NoRoom: when the pool is full. :raise Invalid: when *size* is smaller than what it begins as.
        :raise NotFound: when there is no such *source*.
        """
        ...

    async def handle(self, id: str) -> VolumeHandle:
        """:raise NotFound: when there is no such volume here."""
        ...

    async def node(self, id: str, snapshot: str | None = None) -> Node:
        """How the storage process opens a block volume for writing, or one of its snapshots for reading.

        :raise NotFound: when there is no such volume or snapshot here.
        """
        ...

    async def used(self, id: str) -> int:
        """Bytes that it takes in the pool, its snapshots included."""
        ...

    async def resize(self, id: str, size: int) -> VolumeHandle:
        """Grow or shrink one that nobody has open; what is beyond *size* is lost, what is new reads as zeros.

        :raise Unsupported: when this driver cannot shrink. :raise NoRoom: when the pool is full.
        """
        ...

    async def resized(self, id: str, size: int) -> None:
        """The storage process has resized it while it was open: write down what has to be."""
        ...

    async def snapshot(self, id: str, snapshot: str) -> None:
        """Keep what it is now. Nobody has it open, or the pool has ``LIVE_SNAPSHOT`` and nothing is in flight; an existing one of that
        id is left as it is."""
        ...

    async def snapshots(self, id: str) -> list[str]:
        """Ids, oldest first."""
        ...

    async def drop(self, id: str, snapshot: str) -> None:
        """Let the snapshot go; gone already is fine. Nobody has the volume open, or ``LIVE_SNAPSHOT``; for a layered pool see
        :class:`Layered`.

        :raise Conflict: when volumes stand on it; they are named.
        """
        ...

    async def restore(self, id: str, snapshot: str) -> None:
        """The volume, which nobody has open, becomes what it was, size and all; later snapshots stay.

        Cut short it may be some of both, until it is asked again: nobody opens it before.
        """
        ...

    async def delete(self, id: str, *, shred: bool = False) -> None:
        """Remove it with its snapshots; gone already is fine. Nothing of a half-done deletion is ever taken for a volume.

        :raise Conflict: when other volumes stand on one of its snapshots; they are named.
        """
        ...

    async def delta(self, id: str, since: str, until: str | None = None) -> list[Extent] | None:
        """What changed from snapshot *since* to *until* (or now), in order; ``None`` when this driver cannot tell."""
        ...

    async def check(self, *, repair: bool) -> list[StorageFinding]:
        """Look at everything that is not open for what is broken: half-made things, headers, chains, leaked clusters."""
        ...

    async def scrub(self, *, repair: bool) -> tuple[int, list[StorageFinding]]:
        """Read everything; returns bytes read and what differed from its checksum or copy.

        :raise Unsupported: when nothing tells a flipped bit from a written one here.
        """
        ...


@runtime_checkable
class Layered(Protocol):
    """A pool whose block volumes are chains of files, where a snapshot of an open volume is a new layer on top.

    A layer is written down *before* the one who has the volume open is told to write to it: an empty layer over what is there changes
    nothing, so a crash between the two loses nothing.
    """

    async def begin_layer(self, id: str, snapshot: str) -> Layer:
        """Write *snapshot* down, and give the empty layer that is to be written from now on; again for the same one gives the same.
        With an empty *snapshot* nothing is kept: what was written till now becomes an inner layer, which can be merged then."""
        ...

    async def chain(self, id: str) -> list[Layer]:
        """All layers, the one that is written first; without the image's disk at the bottom."""
        ...

    async def mergeable(self, id: str, snapshot: str) -> tuple[Layer, Layer] | None:
        """The *snapshot* is one no more, and (upper, lower) are to be merged, *upper* into *lower*; ask again after :meth:`merged`, until
        ``None``: nothing is left to merge.

        Never the layer that is written: were the power cut when it had just been merged and its lower one written on, nobody could tell
        which of the two to believe. Who wants that space back while the volume is open begins a layer with no snapshot first.

        :raise Conflict: when a volume stands on the snapshot.
        """
        ...

    async def merged(self, id: str, snapshot: str) -> None:
        """The storage process has merged those two: write it down, and remove what is not needed any more."""
        ...

    async def tidy(self, id: str) -> bool:
        """Merge what was left of snapshots that went while somebody had the volume open; ``False``: somebody has it open still."""
        ...


@runtime_checkable
class Placed(Protocol):
    """A pool that keeps something on the host while it is open (a mount, a configuration): it is told where before ``open``."""

    def place(self, directory: Path, mark: str) -> None:
        """*directory* is this pool's own in the layer's home, made by the driver when it needs it; *mark* is the layer's."""
        ...


@runtime_checkable
class Tried(Protocol):
    """A pool of which one can find out whether it stands still."""

    def try_out(self) -> None:
        """Write something small, and wait until it is on the disk. Blocks, maybe for ever.

        :raise OSError: when that is refused: then it does not stand still.
        """
        ...


@runtime_checkable
class Identified(Protocol):
    """A pool in whose place something else may lie: the empty directory below a filesystem that is not mounted."""

    async def identity(self) -> str:
        """What tells it from every other, written into it when it was first opened; empty where no pool is. Works before ``open``."""
        ...


@runtime_checkable
class Fences(Protocol):
    """A pool that several hosts can reach, and that can shut one of them out."""

    async def fence(self, id: str) -> None:
        """Whoever has the volume open, on whichever host, is shut out for good: nothing that it wrote and that was not acknowledged
        reaches the volume afterwards. Nobody has it open is fine. Called before it is opened here, never while it is.

        :raise Unavailable: when that cannot be made sure.
        """
        ...
