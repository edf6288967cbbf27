"""A volume's new name, and all that follows it."""

from lamella.control.backup.lookup import name_of_policy, policy_of
from lamella.control.events import record
from lamella.model.instance import Instance
from lamella.model.storage import Volume
from lamella.store.store import Transaction


def rename(tx: Transaction, volume: Volume, new: str) -> Volume:
    """Call *volume* *new*, its snapshots and its backup policy with it, and have the instances that name it do so.

    :raise Conflict: when a name is taken.
    """
    old = volume.name
    renamed: Volume = tx.rename(volume.id, new)
    for snapshot in tx.list("snapshot", project=volume.project):
        of, _, own = snapshot.name.partition("@")
        if snapshot.spec.volume == volume.id and of == old:
            tx.rename(snapshot.id, f"{new}@{own}")
    policy = policy_of(tx, volume.id)
    if policy is not None:
        policy.spec.volume_name = new
        policy = tx.update(policy)
        name = name_of_policy(tx, volume.project, renamed)
        if name != policy.name:
            tx.rename(policy.id, name)
    for id in volume.status.attached:
        instance: Instance | None = tx.by_id(id)
        if instance is None or volume.id not in instance.status.volumes.values():
            continue
        for mount in instance.spec.volumes:
            if mount.volume in (old, volume.id):
                mount.volume = new
        named = instance.status.volumes
        instance.status.volumes = {new if id == volume.id else name: id for name, id in named.items()}
        tx.update(instance)
    record(tx, renamed, "volume.renamed", f"volume {old} is called {new} now")
    return renamed
