"""What holds a snapshot: instances that have yet to begin with its memory, volumes that stand on its disks, a template.

A pool may keep a clone as a layer over the snapshot that it began as. So a volume on whose snapshots others stand outlives its instance:
it becomes the snapshot's, and goes with that.
"""

from lamella.control.storage.lookup import snapshots_of
from lamella.model.errors import Conflict
from lamella.model.instance import Instance
from lamella.model.resource import now
from lamella.model.storage import Snapshot, StoragePhase, Volume
from lamella.store.store import Transaction

# Claims of who is about to make copies of a snapshot, by its id.
COPYING = "copying"


def awaits(instance: Instance, snapshot: str) -> bool:
    """Whether *instance* has still to begin with the memory of *snapshot* (an id)."""
    status = instance.status
    beginning = status.beginning
    return beginning is not None and beginning.snapshot == snapshot and status.epoch < beginning.epoch


def awaiting(tx: Transaction, snapshot: Snapshot) -> list[Instance]:
    """The instances that begin with the memory of *snapshot*, and have not yet."""
    instances: list[Instance] = tx.list("instance")
    return [item for item in instances if awaits(item, snapshot.id)]


def standing(tx: Transaction, snapshot: Snapshot) -> list[Volume]:
    """The volumes that began as *snapshot*, and may share blocks with it."""
    volumes: list[Volume] = tx.list("volume")
    return [volume for volume in volumes if volume.spec.source == snapshot.id]


def kept_by_template(tx: Transaction, snapshot: Snapshot) -> bool:
    owner = tx.by_id(snapshot.spec.owner) if snapshot.spec.owner is not None else None
    return owner is not None and owner.kind == "template"


def outlive(tx: Transaction, instance: Instance) -> None:
    """Of *instance*, which is to be removed: its volumes that others stand on are not its own any more."""
    status = instance.status
    for id in (status.volume, *status.disks.values()):
        volume: Volume | None = tx.by_id(id) if id else None
        if volume is not None and volume.spec.owner == instance.id and (heir := _heir(tx, volume)) is not None:
            volume.spec.owner = heir.id
            tx.update(volume)


def left_behind(tx: Transaction, volume: Volume) -> None:
    """*volume* has outlived its instance: of its snapshots those that others stand on stay until nobody does, the others go."""
    for snapshot in snapshots_of(tx, volume):
        if kept_by_template(tx, snapshot):
            continue
        if standing(tx, snapshot):
            snapshot.spec.passing = True
        else:
            snapshot.status.phase, snapshot.deleted_at = StoragePhase.DELETING, now()
        tx.update(snapshot)


def inherit(tx: Transaction, snapshot: str) -> list[str]:
    """*snapshot* (an id) is gone: the volumes that were kept for it become another one's, or go; ids of those that go."""
    going: list[str] = []
    volumes: list[Volume] = tx.list("volume")
    for volume in volumes:
        if volume.spec.owner == snapshot:
            heir = _heir(tx, volume, but=snapshot)
            volume.spec.owner = heir.id if heir is not None else None
            if heir is None:
                volume.status.phase, volume.deleted_at = StoragePhase.DELETING, now()
                going.append(volume.id)
            tx.update(volume)
    return going


def check_stays(tx: Transaction, volume: Volume) -> None:
    """:raise Conflict: when *volume* goes with its instance in a moment, and nothing can stand on it any more."""
    owner = tx.by_id(volume.spec.owner) if volume.spec.owner is not None else None
    if volume.deleted_at is not None or (owner is not None and owner.deleted_at is not None):
        raise Conflict(f"volume {volume.name} is being removed", hint="lamella snapshot ls lists what stays")


def is_left(volume: Volume) -> bool:
    """Whether *volume* has outlived its instance, for a snapshot's sake."""
    return (volume.spec.owner or "").startswith("snap_")


def _heir(tx: Transaction, volume: Volume, *, but: str = "") -> Snapshot | None:
    for snapshot in snapshots_of(tx, volume):
        if snapshot.id != but and (standing(tx, snapshot) or kept_by_template(tx, snapshot)):
            return snapshot
    return None
