"""What every pool can do: the Protocol of storage drivers, and the handle by which others use a volume.

Found by the entry-point group ``lamella.storage``. Verbs are idempotent and crash-safe.
"""

from pathlib import Path
from typing import Protocol

import msgspec

from lamella.model.storage import PoolStatus, VolumeForm


class Base(msgspec.Struct, kw_only=True, frozen=True):
    """What a new block volume begins as: the raw disk of an image, *size* bytes, never written while a volume stands on it."""

    path: Path
    size: int


class VolumeHandle(msgspec.Struct, kw_only=True, frozen=True):
    """A volume as a compute driver finds it: ``path`` is a directory (filesystem), or a file or device (block).

    ``format`` is of a block volume: ``raw``, or ``qcow2`` over ``base``, which whoever opens it has to open too.
    """

    id: str
    form: VolumeForm
    path: Path
    size: int = 0
    format: str = "raw"
    base: Base | None = None


class StorageDriver(Protocol):
    """One pool on one host; the constructor is called as ``Driver(path)``."""

    name: str

    async def open(self) -> PoolStatus:
        """Make the pool ready and say what room it has.

        :raise Unavailable: when its path cannot be used.
        """
        ...

    async def status(self) -> PoolStatus: ...

    async def inventory(self) -> set[str]:
        """Ids of the volumes that are here."""
        ...

    async def create(self, id: str, form: VolumeForm, size: int, *, base: Base | None = None) -> VolumeHandle:
        """Make it, empty or as a clone of *base*, and durable; an existing one of that id is returned.

        *size* is bytes, thin; 0 lets the driver choose for block (the size of *base*) and is no bound for filesystem.

        :raise NoRoom: when the pool is full.
        :raise Invalid: when *size* is smaller than *base*.
        """
        ...

    async def handle(self, id: str) -> VolumeHandle:
        """:raise NotFound: when there is no such volume here."""
        ...

    async def used(self, id: str) -> int:
        """Bytes that it takes in the pool."""
        ...

    async def delete(self, id: str) -> None:
        """Remove it; gone already is fine. Nothing of a half-done deletion is ever taken for a volume."""
        ...
