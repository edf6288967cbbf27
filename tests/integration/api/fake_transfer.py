"""Imports, exports, moves, tiers and replications of the layer in memory."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from fake_part import Part

from lamella.model.errors import NotFound
from lamella.model.ids import check_name
from lamella.model.replication import ReplicationPhase, ReplicationSpec, ReplicationStatus
from lamella.model.replication_requests import ExportedDigest
from lamella.model.storage import VolumeStatus


class Transferring(Part):
    async def bring(self, who: Any, project: str, body: Any, *, wait: float) -> Any:
        check_name(body.name)
        status = VolumeStatus(size=body.spec.size, observed_generation=1)
        self.new("volume", body.name, body.spec, status, project, body.labels)
        return self.operation(who, project, "import", f"volume/{body.name}")

    async def export(self, who: Any, project: str, name: str, *, format: str) -> AsyncIterator[bytes]:
        self.layer._find(project, "snapshot" if "@" in name else "volume", name)
        for _ in range(3):
            yield bytes(4096)

    async def digest(self, who: Any, project: str, name: str, *, format: str) -> ExportedDigest:
        self.layer._find(project, "snapshot" if "@" in name else "volume", name)
        return ExportedDigest(sha256="0" * 64, size=3 * 4096)

    async def move(self, who: Any, project: str, name: str, body: Any, *, wait: float) -> Any:
        self.layer._find(project, "volume", name)
        self.layer._find("default", "pool", body.pool)
        return self.operation(who, project, "move", f"volume/{name}")


class Tiering(Part):
    async def set(self, who: Any, project: str, name: str, policy: Any) -> Any:
        return self.layer._find(project, "volume", name)


class Replications(Part):
    async def create(self, who: Any, project: str, body: Any) -> Any:
        name = body.name or body.volume
        check_name(name)
        source = self.layer._find(project, "volume", body.volume)
        self.layer._find("default", "pool", body.pool)
        spec = ReplicationSpec(volume=source.id, target=source.id, pool=body.pool, mode=body.mode, every=body.every)
        return self.new("replication", name, spec, ReplicationStatus(), project, body.labels)

    async def pause(self, who: Any, project: str, name: str, *, paused: bool) -> Any:
        row = self.layer._find(project, "replication", name)
        return self.changed(row, spec=msgspec.structs.replace(row.spec, paused=paused))

    async def promote(self, who: Any, project: str, name: str, *, force: bool) -> Any:
        row = self.layer._find(project, "replication", name)
        if row.status.phase is ReplicationPhase.PROMOTED:
            raise NotFound(f"{name} was promoted before", hint="nothing is left to do")
        return self.changed(row, status=msgspec.structs.replace(row.status, phase=ReplicationPhase.PROMOTED))
