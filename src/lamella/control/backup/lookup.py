"""Finding repositories, backups and policies, or saying how to get them."""

from typing import Any

from lamella.control.storage.lookup import snapshots_of
from lamella.model.backup import Backup, BackupPolicy, BackupSource, Repository
from lamella.model.errors import Conflict, NotFound
from lamella.model.resource import now
from lamella.model.storage import Snapshot, StoragePhase, Volume
from lamella.store.store import Transaction

# Where what belongs to the whole layer is.
LAYER_PROJECT = "default"
# What its own state is called among what is backed up.
LAYER = "layer"


def find_repository(tx: Transaction, project: str, name: str) -> Repository:
    """By name or id: what is done to it as a whole (verified, pruned, forgotten) is asked in its own project.

    :raise NotFound: with the command that makes one.
    """
    hint = f"make it: lamella backup repository create {name} --to PLACE"
    if project != LAYER_PROJECT and tx.get("repository", LAYER_PROJECT, name) is not None:
        hint = f"it is the layer's: ask in project {LAYER_PROJECT}"
    return _find(tx, "repository", project, name, hint)


def repository_to_use(tx: Transaction, project: str, name: str) -> Repository:
    """As :func:`find_repository`, to put backups into: those of the project ``default`` serve all.

    :raise NotFound: with the command that makes one.
    """
    try:
        return find_repository(tx, project, name)
    except NotFound:
        return find_repository(tx, LAYER_PROJECT, name)


def check_layer(project: str, repository: Repository) -> None:
    """The state of the layer opens every project's volumes: it is for who administers the layer, not for who has a project.

    :raise Conflict: when *repository* is a project's own, or the project is not the layer's.
    """
    if {project, repository.project} != {LAYER_PROJECT}:
        raise Conflict(
            f"the state of the layer is backed up in project {LAYER_PROJECT}, into a repository of it",
            hint=f"lamella --project {LAYER_PROJECT} backup create --to REPOSITORY",
        )


def find_backup(tx: Transaction, project: str, name: str) -> Backup:
    """By name or id. The name of a volume is its newest one.

    :raise NotFound: with the command that lists them.
    """
    try:
        return _find(tx, "backup", project, name, "lamella backup ls lists them")
    except NotFound:
        of_it = [item for item in tx.list("backup", project=project) if item.spec.volume_name == name and ready(item)]
        if not of_it:
            raise
        return newest(of_it)


def find_instance_backup(tx: Transaction, project: str, name: str) -> Backup:
    """By name or id. The name of an instance is its newest one.

    :raise NotFound: with the command that makes one. :raise Conflict: when it is of something else, or not whole.
    """
    found = tx.get("backup", project, name) or tx.by_id(name)
    if found is not None and found.kind == "backup" and found.project == project:
        if found.spec.of is not BackupSource.INSTANCE or not ready(found):
            raise Conflict(f"backup {name} is not of an instance", hint="lamella backup restore, without --instance")
        return found
    of_it = [
        item
        for item in tx.list("backup", project=project)
        if item.spec.of is BackupSource.INSTANCE and item.spec.instance == name and ready(item)
    ]
    if not of_it:
        raise NotFound(f"there is no backup of instance {name}", hint=f"lamella backup create {name} --instance")
    return newest(of_it)


def find_repository_of(tx: Transaction, backup: Backup) -> Repository:
    """:raise Conflict: when the layer has forgotten it."""
    repository: Repository | None = tx.by_id(backup.spec.repository)
    if repository is None:
        raise Conflict(
            f"the repository of backup {backup.name} is forgotten",
            hint="open it again: lamella backup repository create NAME --to PLACE --key-file KEY",
        )
    return repository


def find_policy(tx: Transaction, project: str, name: str) -> BackupPolicy:
    """By the name of what it backs up, which is its own, or by id.

    :raise NotFound: with the command that makes one.
    """
    if name != LAYER:
        volume = tx.get("volume", project, name)
        found = policy_of(tx, volume.id) if volume is not None else None
        if found is not None:
            return found
    return _find(tx, "policy", project, name, f"set it: lamella backup policy set {name} --to REPOSITORY --daily 7")


def policy_of(tx: Transaction, volume: str) -> BackupPolicy | None:
    """That of the volume with this id, whatever either is called."""
    return next((item for item in tx.list("policy") if item.spec.volume == volume), None)


def name_of_policy(tx: Transaction, project: str, volume: Volume | None) -> str:
    """What the policy of *volume* (the layer's own state, when it is ``None``) is to be called: as that is, or, when somebody else has
    the name, by the volume's id. A policy whose volume is gone makes way."""
    if volume is not None and volume.name == LAYER:
        return volume.id
    name = volume.name if volume is not None else LAYER
    taken: BackupPolicy | None = tx.get("policy", project, name)
    if taken is None or (volume is not None and taken.spec.volume == volume.id):
        return name
    if taken.spec.volume and tx.by_id(taken.spec.volume) is None:
        tx.delete(taken.id)
        return name
    return volume.id if volume is not None else name


def ready(backup: Backup) -> bool:
    """Whether it is whole, and there."""
    return backup.status.phase is StoragePhase.READY and bool(backup.status.engine_id)


def newest(backups: list[Backup]) -> Backup:
    return max(backups, key=lambda item: (item.status.taken_at or item.created_at, item.id))


def backups_in(tx: Transaction, repository: Repository) -> list[Backup]:
    """All that are whole, the oldest first."""
    return [item for item in tx.list("backup") if item.spec.repository == repository.id and ready(item)]


def base_of(tx: Transaction, backup: Backup) -> Backup | None:
    """The newest one of the same volume in the same repository, which the next one can build on."""
    same = [
        item
        for item in tx.list("backup")
        if ready(item)
        and (item.spec.volume, item.spec.repository) == (backup.spec.volume, backup.spec.repository)
        and item.spec.of is BackupSource.VOLUME
        and item.id != backup.id
    ]
    return newest(same) if same else None


def let_go_of_snapshots(tx: Transaction) -> list[str]:
    """Ask for the end of snapshots that only backups had a use for and none has any more; their ids.

    Of each volume in each repository the newest backup's stays, so that the next one knows what changed.
    """
    backups: list[Backup] = tx.list("backup")
    newest_of: dict[tuple[str, str], Backup] = {}
    needed: set[str] = set()
    for item in backups:
        if ready(item):
            key = (item.spec.volume, item.spec.repository)
            newest_of[key] = newest([item, *([newest_of[key]] if key in newest_of else [])])
        elif item.status.phase is StoragePhase.PENDING:
            needed.add(item.status.snapshot)
    needed |= {item.status.snapshot for item in newest_of.values()}
    gone: list[str] = []
    for snapshot in tx.list("snapshot"):
        if is_ours(snapshot) and snapshot.id not in needed and snapshot.deleted_at is None:
            snapshot.status.phase, snapshot.deleted_at = StoragePhase.DELETING, now()
            gone.append(tx.update(snapshot).id)
    return gone


def part_with_backups(tx: Transaction, volume: Volume) -> list[str]:
    """Ask for the end of the snapshots that *volume* has for its next backups, before a verb that no snapshot outlives; their ids. Those
    backups read everything then. With somebody else's among them the verb is refused anyway, and all stay.

    :raise Conflict: when a backup of it is being made.
    """
    backups: list[Backup] = tx.list("backup")
    for item in backups:
        if item.status.phase is StoragePhase.PENDING and item.spec.volume == volume.id:
            raise Conflict(f"volume {volume.name} is being backed up: {item.name}", hint="wait until it has ended")
    snapshots = snapshots_of(tx, volume)
    if not all(is_ours(item) for item in snapshots):
        return []
    for snapshot in snapshots:
        if snapshot.deleted_at is None:
            snapshot.status.phase, snapshot.deleted_at = StoragePhase.DELETING, now()
            tx.update(snapshot)
    gone = [snapshot.id for snapshot in snapshots]
    for item in backups:
        if item.status.snapshot in gone:
            item.status.snapshot = ""
            tx.update(item)
    return gone


def is_ours(snapshot: Snapshot) -> bool:
    """Whether it was taken for a backup."""
    return (snapshot.spec.owner or "").startswith("bak_")


def _find(tx: Transaction, kind: str, project: str, name: str, hint: str) -> Any:
    found = tx.get(kind, project, name)
    if found is None:
        by_id = tx.by_id(name)
        found = by_id if by_id is not None and by_id.kind == kind and by_id.project == project else None
    if found is None:
        raise NotFound(f"no {kind} is called {name!r} in project {project}", hint=hint)
    return found
