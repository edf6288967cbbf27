"""What the API asks of the layer about storage."""

from typing import Protocol

from lamella.model.operation import Operation
from lamella.model.requests import Principal
from lamella.model.storage import Pool, Snapshot, Volume
from lamella.model.storage_bodies import (
    PoolCreate,
    PoolScrub,
    SnapshotCreate,
    StorageCheck,
    VolumeAttach,
    VolumeCreate,
    VolumeDetach,
    VolumeRekey,
)


class PoolsFace(Protocol):
    async def create(self, who: Principal, project: str, body: PoolCreate, *, wait: float) -> Pool: ...

    async def scrub(self, who: Principal, project: str, name: str, body: PoolScrub, *, wait: float) -> Operation: ...


class VolumesFace(Protocol):
    async def create(
        self, who: Principal, project: str, body: VolumeCreate, *, wait: float, idempotency_key: str | None
    ) -> Volume: ...

    async def resize(
        self, who: Principal, project: str, name: str, size: int, *, wait: float, expected: int | None
    ) -> Operation: ...

    async def rename(self, who: Principal, project: str, name: str, new: str) -> Volume: ...

    async def attach(self, who: Principal, project: str, name: str, body: VolumeAttach, *, wait: float) -> Volume: ...

    async def detach(self, who: Principal, project: str, name: str, body: VolumeDetach, *, wait: float) -> Volume: ...


class KeysFace(Protocol):
    async def unlock(self, who: Principal, project: str, name: str, passphrase: str) -> Volume: ...

    async def rekey(self, who: Principal, project: str, name: str, body: VolumeRekey) -> Volume: ...


class SnapshotsFace(Protocol):
    async def create(
        self, who: Principal, project: str, body: SnapshotCreate, *, wait: float, idempotency_key: str | None
    ) -> Snapshot: ...

    async def restore(self, who: Principal, project: str, name: str, *, wait: float) -> Operation: ...


class InspectionFace(Protocol):
    async def check(self, who: Principal, body: StorageCheck, *, wait: float) -> Operation: ...


class StorageFace(Protocol):
    """Listing, reading, changing and removing go through the verbs that every kind has."""

    @property
    def pools(self) -> PoolsFace: ...

    @property
    def volumes(self) -> VolumesFace: ...

    @property
    def keys(self) -> KeysFace: ...

    @property
    def snapshots(self) -> SnapshotsFace: ...

    @property
    def inspection(self) -> InspectionFace: ...
