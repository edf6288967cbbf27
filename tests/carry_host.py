"""The part of the host in memory (:mod:`tests.storage_host`) that moves, replicates and counts."""

from typing import Any

import msgspec

from lamella.model.errors import Conflict, NotFound
from lamella.model.replication import ReplicationMode, ReplicationPhase, ReplicationStatus, VolumeAccess
from lamella.model.replication_requests import EndReplication, MeasureAccess, ObserveReplications, Promote, Replicate
from lamella.model.resource import now
from lamella.model.storage import VolumeStatus
from lamella.model.storage_requests import ImportVolume, MoveVolume


class CarryHost:
    """``behind`` says that every replica lacks something; ``uses`` how volumes were used."""

    volumes: dict[str, dict[str, Any]]

    def __init__(self) -> None:
        self.replicas: dict[str, ReplicationStatus] = {}
        self.pairs: dict[str, tuple[str, str]] = {}
        self.places: dict[str, str] = {}
        self.uses: dict[str, VolumeAccess] = {}
        self.behind = False

    def _status(self, volume: Any) -> VolumeStatus:
        raise NotImplementedError

    def _move_volume(self, request: MoveVolume) -> VolumeStatus:
        if request.volume.id not in self.volumes:
            raise NotFound(f"there is no volume {request.volume.name} here")
        if self.volumes[request.volume.id]["snapshots"]:
            raise Conflict(f"volume {request.volume.name} has snapshots, which do not move")
        self.places[request.volume.id] = request.pool.name
        return self._status(request.volume)

    def _import_volume(self, request: ImportVolume) -> VolumeStatus:
        size = max(request.volume.spec.size, 1 << 20)
        kept = {"size": size, "used": 4096, "key": "", "data": b"file", "snapshots": {}, "limits": None}
        self.volumes.setdefault(request.volume.id, kept)
        return self._status(request.volume)

    def _replicate(self, request: Replicate) -> ReplicationStatus:
        spec = request.replication.spec
        status = self.replicas.setdefault(request.replication.id, ReplicationStatus(rpo=0.0))
        status.phase = ReplicationPhase.PAUSED if spec.paused else ReplicationPhase.CURRENT
        if spec.mode is ReplicationMode.ASYNC and not spec.paused:
            status.cycles, status.last, status.rpo, status.took = status.cycles + 1, now(), 0.0, 0.1
        kept = self.volumes[request.source.id]
        self.volumes[request.target.id] = {**kept, "key": "wrapped for the replica", "snapshots": {}}
        self.pairs[request.replication.id] = (request.source.id, request.target.id)
        return status

    def _observe_replications(self, request: ObserveReplications) -> dict[str, ReplicationStatus]:
        return {id: msgspec.structs.replace(self.replicas[id]) for id in request.ids if id in self.replicas}

    def _promote(self, request: Promote) -> VolumeStatus:
        status = self.replicas.get(request.replication.id)
        if status is None:
            raise NotFound("this host knows no such replication")
        if self.behind and not request.force and status.promoted_at is None:
            raise Conflict("the replica lacks writes", hint="or --force: they are lost then")
        status.phase, status.promoted_at = ReplicationPhase.PROMOTED, status.promoted_at or now()
        return self._status(request.target)

    def _end_replication(self, request: EndReplication) -> None:
        status = self.replicas.pop(request.replication.id, None)
        if status is not None and status.promoted_at is None:
            self.volumes.pop(self.pairs[request.replication.id][1], None)

    def _measure_access(self, request: MeasureAccess) -> dict[str, VolumeAccess]:
        return {volume.id: self.uses[volume.id] for volume in request.volumes if volume.id in self.uses}
