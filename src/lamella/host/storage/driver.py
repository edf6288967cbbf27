"""What every pool can do: the Protocol of storage drivers, and the handle by which others use a volume.

Found by the entry-point group ``lamella.storage``. Verbs are idempotent and crash-safe.
"""

from pathlib import Path
from typing import Protocol

import msgspec

from lamella.model.storage import PoolStatus, VolumeForm


class VolumeHandle(msgspec.Struct, kw_only=True, frozen=True):
    """A volume as a compute driver finds it: ``path`` is a directory (filesystem), or a raw file or device (block)."""

    id: str
    form: VolumeForm
    path: Path
    size: int = 0
    format: str = "raw"


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

    async def create(self, id: str, form: VolumeForm, size: int) -> VolumeHandle:
        """Make it, empty and durable; an existing one of that id is returned.

        *size* is bytes, thin; 0 lets the driver choose for block and is no bound for filesystem.

        :raise NoRoom: when the pool is full.
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
