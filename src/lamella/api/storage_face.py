"""What the API asks of the layer about storage."""

from collections.abc import AsyncIterator
from typing import Protocol

from lamella.model.operation import Operation
from lamella.model.replication import Replication, TieringPolicy
from lamella.model.replication_bodies import ReplicationCreate, VolumeImport, VolumeMove
from lamella.model.replication_requests import ExportedDigest
from lamella.model.requests import Principal
from lamella.model.storage import Pool, Snapshot, Volume
from lamella.model.storage_bodies import (
    PoolCreate,
    PoolScrub,
    SnapshotCreate,
    SnapshotRestore,
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

    async def restore(
        self, who: Principal, project: str, name: str, *, wait: float, body: SnapshotRestore | None = None
    ) -> Operation: ...


class InspectionFace(Protocol):
    async def check(self, who: Principal, body: StorageCheck, *, wait: float) -> Operation: ...


class TransferringFace(Protocol):
    async def bring(self, who: Principal, project: str, body: VolumeImport, *, wait: float) -> Operation: ...

    def export(self, who: Principal, project: str, name: str, *, format: str) -> AsyncIterator[bytes]: ...

    async def digest(self, who: Principal, project: str, name: str, *, format: str) -> ExportedDigest: ...

    async def move(self, who: Principal, project: str, name: str, body: VolumeMove, *, wait: float) -> Operation: ...


class ReplicationsFace(Protocol):
    async def create(self, who: Principal, project: str, body: ReplicationCreate) -> Replication: ...

    async def pause(self, who: Principal, project: str, name: str, *, paused: bool) -> Replication: ...

    async def promote(self, who: Principal, project: str, name: str, *, force: bool) -> Replication: ...


class TieringFace(Protocol):
    async def set(self, who: Principal, project: str, name: str, policy: TieringPolicy | None) -> Volume: ...


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

    @property
    def transferring(self) -> TransferringFace: ...

    @property
    def replications(self) -> ReplicationsFace: ...

    @property
    def tiering(self) -> TieringFace: ...
