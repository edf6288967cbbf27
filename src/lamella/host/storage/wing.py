"""Storage of one host: its pools, what is open, and every request of control."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import msgspec

from lamella.host.compute.driver import MountedVolume, Remembered
from lamella.host.storage.driver import Layer, StorageDriver, VolumeHandle
from lamella.model.host import Capability
from lamella.model.instance import InstanceSpec, Phase
from lamella.model.storage import Pool, PoolStatus, Volume, VolumeMount
from lamella.model.storage_requests import AnyStorageRequest, StorageProgress


class Attachment(msgspec.Struct, kw_only=True, frozen=True):
    """One volume for one instance. ``user`` is the instance's id, ``uid`` the first of its host ids."""

    volume: Volume
    mount: VolumeMount
    user: str
    uid: int
    spec: InstanceSpec


# Told of what a person should know: an event's type (``pool.low``), its subject (a pool's name, a volume's id), a sentence.
Heard = Callable[[str, str, str], None]


class Writers(Protocol):
    """The instances of this host, as snapshots and resizes need them; the agent is it. Each verb takes an instance's id and raises what
    its compute driver raises; :class:`Unsupported` when its level has no such verb."""

    async def phase(self, id: str) -> Phase:
        """What it is in now; ``STOPPED`` when there is none."""
        ...

    async def pause(self, id: str) -> None: ...

    async def resume(self, id: str) -> None: ...

    async def freeze(self, id: str, deadline: float) -> int:
        """:meth:`~lamella.host.compute.driver.Freezes.freeze`."""
        ...

    async def thaw(self, id: str) -> bool:
        """:meth:`~lamella.host.compute.driver.Freezes.thaw`."""
        ...

    async def switch(self, id: str, layers: dict[str, Layer]) -> None:
        """:meth:`~lamella.host.compute.driver.OpensDisks.switch`; a layer that is on top already stays."""
        ...

    def remember(self, id: str, memory: str) -> AbstractAsyncContextManager[Remembered]:
        """:meth:`~lamella.host.compute.driver.KeepsMemory.remember`."""
        ...

    async def forget(self, memory: str) -> None:
        """Remove the memory that was kept under that id, of whatever instance; none is fine."""
        ...

    async def resized(self, id: str, volume: str, size: int) -> None:
        """A volume that it has attached grew to *size* bytes: tell the guest, where the guest does not see it by itself."""
        ...

    async def heal(self, id: str) -> None:
        """The storage process was started again, or a pool that was full has room: a machine that stands still because of that takes its
        volumes' files anew, where they are others now, and goes on. The guest never hears of it."""
        ...

    def own_disks(self) -> dict[str, set[str]]:
        """Instances that :meth:`heal` is for and that open disks of their own, and the pools that these lie in."""
        ...


class Storage(Protocol):
    """What the agent and its workers ask of storage; ``volumes.py`` is it."""

    async def open(self) -> list[Capability]: ...

    async def close(self) -> None: ...

    async def teardown(self) -> None:
        """Close everything that is open, for good, and end the storage process: before a layer is removed."""
        ...

    async def use_pools(self, pools: list[Pool]) -> None:
        """Open what control knows and is not open. What cannot be opened is told in ``status`` and is tried again later."""
        ...

    @property
    def pools(self) -> dict[str, StorageDriver]:
        """What is open, by name."""
        ...

    @property
    def pool_names(self) -> set[str]:
        """Of what is open, and of what was asked for and cannot be opened."""
        ...

    def pool(self, name: str) -> StorageDriver:
        """:raise Unavailable: when no pool of that name is open here."""
        ...

    async def pool_status(self, name: str) -> PoolStatus:
        """How it is now, as a host tells control. Never raises: one that does not answer is ``failed``, with the reason."""
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

    def rest(self, volumes: list[Volume]) -> None:
        """The instance whose own *volumes* these are has stopped: what had to wait for that is done now, in the background."""
        ...

    async def attached(self) -> dict[str, set[str]]:
        """Volumes by the instance that has them open."""
        ...

    def use_writers(self, writers: Writers) -> None:
        """Who runs instances here. Once, before ``open``."""
        ...

    def on_event(self, heard: Heard) -> None: ...

    def request(self, request: AnyStorageRequest) -> AsyncIterator[StorageProgress]: ...

    def export(self, volume: Volume, snapshot: str, format: str) -> AsyncIterator[bytes]: ...

    async def root(self, volume: Volume) -> VolumeHandle:
        """The handle of a volume that its instance opens by itself."""
        ...

    @property
    def places(self) -> list[Path]:
        """Directories that a machine's room has to show so that its sockets can be reached; empty where none do."""
        ...
