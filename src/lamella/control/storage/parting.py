"""A volume that is gone: the snapshots that it was in go with it, or lose it."""

from lamella.control.storage.lookup import held
from lamella.model.resource import now
from lamella.model.storage import StoragePhase
from lamella.store.store import Transaction


def part_with_snapshots(tx: Transaction, volume: str) -> list[str]:
    """Of the volume *volume* (an id), of which nothing is left; ids of snapshots that were taken for it, which can go now."""
    theirs: list[str] = []
    for snapshot in tx.list("snapshot"):
        if snapshot.spec.owner == volume:
            snapshot.status.phase, snapshot.deleted_at = StoragePhase.DELETING, now()
            theirs.append(tx.update(snapshot).id)
        elif held(snapshot) == [volume]:
            tx.delete(snapshot.id)
        elif volume in held(snapshot):
            snapshot.spec.volumes.remove(volume)
            tx.update(snapshot)
    return theirs
