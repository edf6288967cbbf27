"""Storage of one host: its pools, what is open, and every request of control."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import msgspec

from lamella.host.compute.driver import MountedVolume
from lamella.host.storage.driver import StorageDriver, VolumeHandle
from lamella.model.host import Capability
from lamella.model.instance import InstanceSpec
from lamella.model.storage import Pool, Volume, VolumeMount
from lamella.model.storage_requests import AnyStorageRequest, StorageProgress


class Attachment(msgspec.Struct, kw_only=True, frozen=True):
    """One volume for one instance. ``user`` is the instance's id, ``uid`` the first of its host ids."""

    volume: Volume
    mount: VolumeMount
    user: str
    uid: int
    spec: InstanceSpec


class Storage(Protocol):
    """What the agent and its workers ask of storage; ``volumes.py`` is it."""

    async def open(self) -> list[Capability]: ...

    async def close(self) -> None: ...

    async def use_pools(self, pools: list[Pool]) -> None:
        """Open what control knows and is not open. What cannot be opened is told in ``status`` and is tried again later."""
        ...

    @property
    def pools(self) -> dict[str, StorageDriver]:
        """What is open, by name."""
        ...

    def pool(self, name: str) -> StorageDriver:
        """:raise Unavailable: when no pool of that name is open here."""
        ...

    async def attach(self, attachment: Attachment) -> MountedVolume:
        """Open the volume for an instance that is about to start or runs: mounted for a container or a module, as a file or socket for a
        machine. Again for the same one gives the same.

        :raise Conflict: when another instance has it open for writing. :raise Unavailable: when its key is locked away.
        """
        ...

    async def detach(self, user: str, volume_ids: set[str] | None = None) -> None:
        """The instance has let go of these, or of all: unmounted, written out, closed. What is gone already is fine."""
        ...

    async def attached(self) -> dict[str, set[str]]:
        """Volumes by the instance that has them open."""
        ...

    def request(self, request: AnyStorageRequest) -> AsyncIterator[StorageProgress]: ...

    def export(self, volume: Volume, snapshot: str, format: str) -> AsyncIterator[bytes]: ...

    async def root(self, volume: Volume) -> VolumeHandle:
        """The handle of a volume that its instance opens by itself."""
        ...

    @property
    def places(self) -> list[Path]:
        """Directories that a machine's room has to show so that its sockets can be reached; empty where none do."""
        ...
