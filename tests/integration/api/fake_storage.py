"""Pools, volumes and snapshots of the layer in memory: rows that are ready as soon as they are asked for."""

from typing import Any

import msgspec
from fake_part import Part
from fake_transfer import Replications, Tiering, Transferring

from lamella.model.errors import Conflict, Invalid, NotFound
from lamella.model.ids import check_name
from lamella.model.storage import PoolStatus, SnapshotSpec, SnapshotStatus, StoragePhase, VolumeStatus
from lamella.model.storage_report import Report, StorageFinding


class FakeStorage:
    """All parts of the face at once; *layer* is where the rows are."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.pools = Pools(layer)
        self.volumes = self.keys = Volumes(layer)
        self.snapshots = Snapshots(layer)
        self.inspection = Inspection(layer)
        self.transferring = Transferring(layer)
        self.tiering = Tiering(layer)
        self.replications = Replications(layer)


class Pools(Part):
    async def create(self, who: Any, project: str, body: Any, *, wait: float) -> Any:
        check_name(body.name)
        if project != "default":
            raise Invalid("pools belong to the whole layer", field="project")
        return self.new("pool", body.name, body.spec, PoolStatus(), project, body.labels)

    async def scrub(self, who: Any, project: str, name: str, body: Any, *, wait: float) -> Any:
        self.layer._find(project, "pool", name)
        return self.operation(who, project, "scrub", f"pool/{name}", Report(checked=1, bytes=2))


class Volumes(Part):
    async def create(self, who: Any, project: str, body: Any, *, wait: float, idempotency_key: str | None) -> Any:
        check_name(body.name)
        if body.source:
            self.layer._find(project, "snapshot" if "@" in body.source else "volume", body.source)
        status = VolumeStatus(size=body.spec.size, observed_generation=1)
        return self.new("volume", body.name, body.spec, status, project, body.labels)

    async def resize(self, who: Any, project: str, name: str, size: int, *, wait: float, expected: int | None) -> Any:
        row = self.layer._find(project, "volume", name)
        self.layer._expect(row, expected)
        self.changed(row, status=msgspec.structs.replace(row.status, size=size))
        return self.operation(who, project, "resize", f"volume/{name}")

    async def rename(self, who: Any, project: str, name: str, new: str) -> Any:
        check_name(new)
        return self.changed(self.layer._find(project, "volume", name), name=new)

    async def attach(self, who: Any, project: str, name: str, body: Any, *, wait: float) -> Any:
        row = self.layer._find(project, "volume", name)
        instance = self.layer._find(project, "instance", body.instance)
        return self.changed(row, status=msgspec.structs.replace(row.status, attached=[instance.id]))

    async def detach(self, who: Any, project: str, name: str, body: Any, *, wait: float) -> Any:
        row = self.layer._find(project, "volume", name)
        self.layer._find(project, "instance", body.instance)
        if not row.status.attached:
            raise NotFound(f"{name} is not attached", hint="it is free")
        return self.changed(row, status=msgspec.structs.replace(row.status, attached=[]))

    async def unlock(self, who: Any, project: str, name: str, passphrase: str) -> Any:
        row = self.layer._find(project, "volume", name)
        raise Conflict(f"volume {row.name} needs no passphrase", hint="look at it")

    async def rekey(self, who: Any, project: str, name: str, body: Any) -> Any:
        return self.layer._find(project, "volume", name)


class Snapshots(Part):
    async def create(self, who: Any, project: str, body: Any, *, wait: float, idempotency_key: str | None) -> Any:
        check_name(body.name)
        if bool(body.volume) == bool(body.instance):
            raise Invalid("a snapshot is of a volume, or of an instance", field="volume")
        of = self.layer._find(project, "volume" if body.volume else "instance", body.volume or body.instance)
        status = SnapshotStatus(phase=StoragePhase.READY, consistency="crash")
        return self.new("snapshot", f"{of.name}@{body.name}", SnapshotSpec(volume=of.id), status, project, body.labels)

    async def restore(self, who: Any, project: str, name: str, *, wait: float, body: Any = None) -> Any:
        self.layer._find(project, "snapshot", name)
        return self.operation(who, project, "restore", f"snapshot/{name}")


class Inspection(Part):
    async def check(self, who: Any, body: Any, *, wait: float) -> Any:
        finding = StorageFinding(subject="volume data", problem="it is in memory", mended=body.repair)
        return self.operation(who, "default", "fsck", "storage", Report(checked=1, findings=[finding]))
