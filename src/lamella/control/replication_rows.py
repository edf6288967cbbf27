"""Rows of replications and of their volumes, as transactions change them: nobody is asked here."""

import msgspec

from lamella.control.events import record
from lamella.control.storage.conditions import USABLE, drop, put
from lamella.model.errors import Conflict, LamellaError, NotFound
from lamella.model.replication import Replication, ReplicationPhase, ReplicationStatus
from lamella.model.resource import Condition, new_resource, now
from lamella.model.storage import StoragePhase, Volume, VolumeSpec, VolumeStatus
from lamella.store.store import Transaction

# The condition of a replication whose host refuses it.
ACCEPTED = "Accepted"
# Seconds that an age may grow by before it is written down, beside doubling.
_AGE = 2.0


def find(tx: Transaction, project: str, name: str) -> Replication:
    """By name or id, or by the name of its volume.

    :raise NotFound: with the command that makes one.
    """
    found = tx.get("replication", project, name)
    if found is None:
        named = tx.get("volume", project, name)
        found = replication_of(tx, named.id) if named is not None else tx.by_id(name)
    if found is None or found.kind != "replication" or found.project != project:
        raise NotFound(
            f"no replication is called {name!r} in project {project}",
            hint=f"make one: lamella replication create {name} --to pool:NAME",
        )
    return found


def replication_of(tx: Transaction, volume_id: str) -> Replication | None:
    """The replication that has the volume as its source and was not promoted."""
    for item in tx.list("replication"):
        if item.spec.volume == volume_id and item.status.promoted_at is None and item.deleted_at is None:
            return item
    return None


def target_of(volume: Volume, name: str, pool: str) -> Volume:
    """The replica's row: nobody may open it before it is promoted."""
    spec: VolumeSpec = msgspec.structs.replace(volume.spec, pool=pool, source=None, owner=None, tier=None)
    why = f"it is the replica of {volume.name}"
    hint = f"promote it first: lamella replication promote {volume.name}"
    unusable = Condition(type=USABLE, status=False, reason="replica", message=why, hint=hint, since=now())
    status = VolumeStatus(
        phase=StoragePhase.READY,
        host=volume.status.host,
        size=volume.status.size,
        conditions=[unusable],
        observed_generation=1,
    )
    return new_resource("volume", name, spec, status, project=volume.project)


def check_lives(row: Replication) -> None:
    """:raise Conflict: when it has ended."""
    if row.status.promoted_at is not None or row.deleted_at is not None:
        raise Conflict(f"replication {row.name} has ended", hint=f"lamella replication rm {row.name}")


def seen(tx: Transaction, id: str, generation: int, seen: ReplicationStatus) -> None:
    """What its host saw is written down, when it says something new."""
    row: Replication | None = tx.by_id(id)
    if row is None:
        return
    before = row.status
    seen.host, seen.observed_generation = before.host, generation
    same = msgspec.structs.replace(seen, rpo=before.rpo, worst=before.worst, conditions=before.conditions) == before
    # An age that only grows is written down each time that it has doubled, and not every two seconds.
    same = same and (seen.rpo or 0.0) <= 2 * (before.rpo or 0.0) + _AGE
    if same and [c.message for c in seen.conditions] == [c.message for c in before.conditions]:
        return
    for condition in seen.conditions:
        condition.since = now()
    if seen.phase is not before.phase:
        why = seen.conditions[0].message if seen.conditions else ""
        record(
            tx, row, f"replication.{seen.phase.value}", f"{row.name} is {seen.phase.value}{f': {why}' if why else ''}"
        )
    row.status = seen
    tx.update(row)


def promoted(tx: Transaction, row: Replication, seen: VolumeStatus, who: str) -> None:
    """The replica took its source's place."""
    current: Replication | None = tx.by_id(row.id)
    source: Volume | None = tx.by_id(row.spec.volume)
    target: Volume | None = tx.by_id(row.spec.target)
    if current is None or target is None:
        return
    if current.status.promoted_at is not None and not any(item.type == USABLE for item in target.status.conditions):
        return
    current.status.phase, current.status.promoted_at = ReplicationPhase.PROMOTED, current.status.promoted_at or now()
    target.status.size, target.status.used, target.status.key = seen.size, seen.used, seen.key
    target.status.conditions = drop(target.status.conditions, USABLE)
    tx.update(target)
    if source is not None:
        replaced = Condition(
            type=USABLE,
            status=False,
            reason="replaced",
            message=f"its replica {target.name} took its place",
            hint=f"use {target.name}; this one: lamella volume rm {source.name}",
        )
        source.status.conditions = put(source.status.conditions, replaced)
        tx.update(source)
    record(tx, tx.update(current), "replication.promoted", f"{who} promoted {target.name}")


def taken_back(tx: Transaction, id: str) -> None:
    """It was not ended."""
    row = tx.by_id(id)
    if row is not None:
        row.deleted_at = None
        tx.update(row)


def removed(tx: Transaction, id: str) -> None:
    """It has ended; a replica that was not promoted went with it."""
    row: Replication | None = tx.by_id(id)
    if row is None:
        return
    if row.status.promoted_at is None and tx.by_id(row.spec.target) is not None:
        tx.delete(row.spec.target)
    record(tx, row, "replication.removed", f"replication {row.name} has ended")
    tx.delete(id)


def refused(tx: Transaction, id: str, error: LamellaError) -> None:
    """Its host does not do what is asked, and says why."""
    row: Replication | None = tx.by_id(id)
    if row is None or any(item.message == error.message for item in row.status.conditions):
        return
    if row.status.observed_generation == 0:
        row.status.phase = ReplicationPhase.FAILED
    refusal = Condition(type=ACCEPTED, status=False, reason=error.code, message=error.message, hint=error.hint)
    row.status.conditions = put(row.status.conditions, refusal)
    record(tx, tx.update(row), "replication.refused", f"replication {row.name}: {error.message}")
