"""What a contract says of a replica: how old it may be, how old it is, and whether that is kept. Pure but for one look."""

from datetime import datetime

from lamella.control.replication_rows import replication_of
from lamella.model.contract import Replica
from lamella.model.instance import Instance
from lamella.model.replication import Replication, ReplicationMode, ReplicationPhase, promised_age
from lamella.model.resource import now
from lamella.model.storage import Volume
from lamella.store.store import Transaction

_WHY = {
    ReplicationPhase.PENDING: "its host has not begun yet",
    ReplicationPhase.SEEDING: "there is no whole copy yet",
    ReplicationPhase.LATE: "the newest whole copy is older than two intervals",
    ReplicationPhase.DEGRADED: "writes are acknowledged with one copy alone",
    ReplicationPhase.RESYNCING: "the replica is being made whole again",
    ReplicationPhase.PAUSED: "it is paused",
    ReplicationPhase.FAILED: "its host refuses it",
}


def kept_again(tx: Transaction, instance: Instance) -> list[Replica]:
    """The replicas of the volumes that *instance* has, in its order."""
    found: list[Replica] = []
    for mount in instance.spec.volumes:
        volume: Volume | None = tx.by_id(instance.status.volumes.get(mount.volume, ""))
        row = replication_of(tx, volume.id) if volume is not None else None
        if volume is not None and row is not None:
            target: Volume | None = tx.by_id(row.spec.target)
            found.append(replica(row, volume.name, target.name if target is not None else "", now()))
    return found


def replica(row: Replication, volume: str, target: str, at: datetime) -> Replica:
    """What *row* promises and achieves at the instant *at*; a host that has gone silent makes it older, never younger."""
    spec, status = row.spec, row.status
    whole = status.phase not in (ReplicationPhase.PENDING, ReplicationPhase.SEEDING, ReplicationPhase.FAILED)
    achieved = (at - status.last).total_seconds() if status.last is not None else status.rpo
    promised = promised_age(spec, status.took)
    current = status.phase is ReplicationPhase.CURRENT
    kept = current and achieved is not None and achieved <= promised
    said = next((item.message for item in status.conditions if not item.status), "")
    late = _WHY[ReplicationPhase.LATE] if current else _WHY.get(status.phase, status.phase.value)
    return Replica(
        volume=volume,
        replication=row.name,
        replica=target,
        pool=spec.pool,
        mode=spec.mode.value,
        every=spec.every if spec.mode is ReplicationMode.ASYNC else None,
        promised=promised,
        achieved=achieved if whole else None,
        worst=max((age for age in (status.worst, achieved) if age is not None), default=None) if whole else None,
        kept=kept,
        why="" if kept else f"{late}: {said}" if said else late,
    )
