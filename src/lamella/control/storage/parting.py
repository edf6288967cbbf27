"""A volume that is gone: the snapshots that it was in go with it, or lose it."""

from lamella.control.storage.lookup import held
from lamella.model.resource import now
from lamella.model.storage import StoragePhase
from lamella.store.store import Transaction


def part_with_snapshots(tx: Transaction, volume: str) -> list[str]:
    """Of the volume *volume* (an id), of which nothing is left; ids of snapshots of which something is left to remove."""
    theirs: list[str] = []
    for snapshot in tx.list("snapshot"):
        if snapshot.spec.owner == volume:
            snapshot.status.phase, snapshot.deleted_at = StoragePhase.DELETING, now()
            theirs.append(tx.update(snapshot).id)
        elif held(snapshot) == [volume]:
            if snapshot.spec.memory or snapshot.status.memory:
                # Its memory lies on the host by itself.
                snapshot.spec.volumes, snapshot.spec.volume = [], None
                snapshot.status.phase, snapshot.deleted_at = StoragePhase.DELETING, now()
                theirs.append(tx.update(snapshot).id)
            else:
                tx.delete(snapshot.id)
        elif volume in held(snapshot):
            snapshot.spec.volumes.remove(volume)
            tx.update(snapshot)
    return theirs
