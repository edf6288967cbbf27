"""What holds a snapshot: instances that have yet to begin with its memory, and volumes that stand on its disks."""

from lamella.model.instance import Instance
from lamella.model.storage import Snapshot, Volume
from lamella.store.store import Transaction


def awaiting(tx: Transaction, snapshot: Snapshot) -> list[Instance]:
    """The instances that begin with the memory of *snapshot*, and have not yet."""
    instances: list[Instance] = tx.list("instance")
    return [item for item in instances if awaits(item, snapshot.id)]


def awaits(instance: Instance, snapshot: str) -> bool:
    """Whether *instance* has still to begin with the memory of *snapshot* (an id)."""
    status = instance.status
    beginning = status.beginning
    return beginning is not None and beginning.snapshot == snapshot and status.epoch < beginning.epoch


def standing(tx: Transaction, snapshot: Snapshot) -> list[Volume]:
    """The volumes that began as *snapshot*, and may share blocks with it."""
    volumes: list[Volume] = tx.list("volume")
    return [volume for volume in volumes if volume.spec.source == snapshot.id]
