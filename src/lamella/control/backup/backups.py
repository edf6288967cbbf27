"""Backups: of a volume, of all volumes of an instance at one instant, or of the layer's own state."""

from lamella.control.backup.lookup import (
    LAYER,
    LAYER_PROJECT,
    base_of,
    check_layer,
    find_backup,
    let_go_of_snapshots,
    repository_to_use,
)
from lamella.control.backup.repositories import LAYER_BESIDE, PATIENCE, Repositories
from lamella.control.backup.state import DumpStore
from lamella.control.events import record
from lamella.control.lookup import find_instance, need_project
from lamella.control.storage.asking import Hosts, ask
from lamella.control.storage.attaching import check_idle, check_usable
from lamella.control.storage.keeper import Keeper
from lamella.control.storage.lookup import find_volume
from lamella.control.storage.operations import Job, Operations
from lamella.model.backup import Backup, BackupSource, BackupSpec, BackupStatus, InstanceRecord, Repository
from lamella.model.backup_bodies import BackupCreate, BackupMounted
from lamella.model.backup_requests import BackUp, BackUpInstance, BackUpLayer, MountBackup, UnmountBackup
from lamella.model.errors import Conflict, Invalid, LamellaError, error_for
from lamella.model.ids import check_name
from lamella.model.operation import Operation, OperationPhase
from lamella.model.quantity import format_size
from lamella.model.requests import Principal
from lamella.model.resource import Condition, new_resource, now
from lamella.model.storage import Snapshot, SnapshotSpec, SnapshotStatus, StoragePhase, Volume
from lamella.store.store import Audit, Store, Transaction

VERB = "backup"
# How long a snapshot may take to be there, in seconds.
SNAPSHOT = 3600.0
# Of a volume's name so much goes into a backup's, which has the time behind it.
_STEM = 47


class Backups:
    """Intent for backups."""

    def __init__(
        self,
        store: Store,
        keeper: Keeper,
        operations: Operations,
        hosts: Hosts,
        repositories: Repositories,
        dump: DumpStore,
    ) -> None:
        self._store, self._keeper, self._operations, self._hosts = store, keeper, operations, hosts
        self._repositories, self._dump = repositories, dump
        operations.add(VERB, self._back_up, ended=_over)

    async def open(self) -> None:
        """Snapshots of backups that a former daemon did not finish go."""
        for id in await self._store.write(let_go_of_snapshots):
            self._keeper.drive(id)

    async def create(
        self, who: Principal, project: str, body: BackupCreate, *, wait: float, policy: str = ""
    ) -> Operation:
        """:raise Conflict: when a backup of the volume is being made already."""
        if body.volume and body.instance:
            raise Invalid("a backup is of a volume, or of an instance", hint="name one of them", field="volume")
        if body.name:
            check_name(body.name)

        def write(tx: Transaction) -> Operation:
            need_project(tx, project)
            repository = repository_to_use(tx, project, body.repository)
            volumes, instance = _chosen(tx, project, body)
            if not volumes:
                check_layer(project, repository)
            rows = _rows(tx, project, body, repository, volumes, policy)
            if volumes:
                snapshot = _snapshot(rows[0], volumes, instance, body.consistent)
                for row in rows[: len(volumes)]:
                    row.status.snapshot = snapshot.id
                tx.insert(snapshot)
            for row in rows:
                tx.insert(row)
            kind = "instance" if body.instance else "volume" if body.volume else LAYER
            subject = f"{kind}/{body.instance or body.volume or LAYER}"
            tx.audit(Audit(principal=who.name, verb=VERB, subject=f"{subject} in {project}"))
            arguments = {"backups": " ".join(row.id for row in rows), "repository": repository.id}
            return self._operations.intend(tx, who, project, VERB, subject, arguments)

        operation = await self._store.write(write)
        self._operations.start(operation)
        return await self._operations.finish(operation, wait)

    async def _back_up(self, job: Job) -> str:
        repository: Repository = await self._store.by_id(job.arguments["repository"])
        rows: list[Backup] = [await self._store.by_id(id) for id in job.arguments["backups"].split()]
        instance = await self._store.read(lambda tx: _record_of(tx, rows))
        try:
            for row in rows:
                if row.spec.of is BackupSource.LAYER:
                    await self._layer(row, repository, job)
                elif row.spec.of is BackupSource.INSTANCE and instance is not None:
                    await self._instance(row, repository, instance, job)
                else:
                    await self._volume(row, repository, job)
        finally:
            for id in await self._store.write(let_go_of_snapshots):
                self._keeper.drive(id)
        if repository.project == LAYER_PROJECT and all(row.spec.of is not BackupSource.LAYER for row in rows):
            await self._beside(job, repository)
        return " ".join(row.name for row in rows)

    async def _volume(self, row: Backup, repository: Repository, job: Job) -> None:
        await self._keeper.settle(row.status.snapshot, SNAPSHOT, job.tell)
        snapshot: Snapshot = await self._store.by_id(row.status.snapshot)
        if snapshot.status.phase is not StoragePhase.READY:
            told = next((item for item in snapshot.status.conditions if not item.status), None)
            raise Conflict(
                f"the snapshot for backup {row.name} is {snapshot.status.phase}: {told.message if told else ''}"
            )
        volume: Volume = await self._store.by_id(row.spec.volume)
        base = await self._store.read(lambda tx: base_of(tx, row))
        # Where the volume is, its content is read: any host that can reach the repository may write to it.
        agent = await self._hosts.reach(volume.status.host or repository.status.host, patience=PATIENCE)
        request = BackUp(backup=row, repository=repository, volume=volume, snapshot=snapshot.id, base=base)
        seen: BackupStatus = await ask(agent, request, BackupStatus, job.tell)
        seen.taken_at = snapshot.status.taken_at or seen.taken_at
        await self._store.write(lambda tx: _made(tx, row.id, seen))

    async def _layer(self, row: Backup, repository: Repository, job: Job) -> None:
        agent = await self._hosts.reach(repository.status.host, patience=PATIENCE)
        request = BackUpLayer(backup=row, repository=repository, store=await self._dump())
        seen: BackupStatus = await ask(agent, request, BackupStatus, job.tell)
        await self._store.write(lambda tx: _made(tx, row.id, seen))

    async def _instance(self, row: Backup, repository: Repository, record: InstanceRecord, job: Job) -> None:
        agent = await self._hosts.reach(repository.status.host, patience=PATIENCE)
        request = BackUpInstance(backup=row, repository=repository, record=record)
        seen: BackupStatus = await ask(agent, request, BackupStatus, job.tell)
        await self._store.write(lambda tx: _made(tx, row.id, seen))

    async def _beside(self, job: Job, repository: Repository) -> None:
        """The layer's own state goes along, so that the repository alone is enough; the backup is none the worse without.

        Not into a project's own repository: the store and the keys of hosts open every project's volumes."""

        def write(tx: Transaction) -> Backup:
            body = BackupCreate(repository=repository.id)
            return tx.insert(_rows(tx, LAYER_PROJECT, body, repository, [], LAYER_BESIDE)[0])

        row = None
        try:
            row = await self._store.write(write)
            await self._layer(row, repository, job)
            await self._repositories.forget_old(repository, prune=False)
        except LamellaError as failure:
            id, said = row.id if row is not None else "", failure
            await self._store.write(lambda tx: _failed(tx, id, said))

    async def delete(self, who: Principal, project: str, name: str) -> None:
        """Forgotten by the repository first, then by the layer; its room is given back by a prune."""
        backup, repository = await self._look(project, name, exactly=True)
        if backup.status.phase is StoragePhase.PENDING:
            raise Conflict(f"backup {backup.name} is being made", hint="lamella operation ls")
        if backup.status.mounted:
            raise Conflict(f"backup {backup.name} is mounted", hint=f"lamella backup unmount {backup.name}")
        if repository is not None:
            await self._repositories.forget(repository, [backup])

        def write(tx: Transaction) -> list[str]:
            if tx.by_id(backup.id) is not None:
                tx.delete(backup.id)
            tx.audit(Audit(principal=who.name, verb="delete", subject=f"backup/{project}/{backup.name}"))
            return let_go_of_snapshots(tx)

        for id in await self._store.write(write):
            self._keeper.drive(id)

    async def mount(self, who: Principal, project: str, name: str) -> BackupMounted:
        """Its files in a directory of a host, read-only, until it is unmounted."""
        backup, repository = await self._look(project, name)
        if repository is None:
            raise Conflict(f"the repository of backup {backup.name} is forgotten", hint="create it anew with its key")
        agent = await self._hosts.reach(repository.status.host, patience=PATIENCE)
        path: str = await ask(agent, MountBackup(backup=backup, repository=repository), str)
        host = await self._store.write(lambda tx: _mounted(tx, who, backup.id, path))
        return BackupMounted(path=path, host=host)

    async def unmount(self, who: Principal, project: str, name: str) -> None:
        backup, repository = await self._look(project, name)
        host = repository.status.host if repository is not None else backup.status.host
        agent = await self._hosts.reach(host, patience=PATIENCE)
        await ask(agent, UnmountBackup(backup=backup), None)
        await self._store.write(lambda tx: _mounted(tx, who, backup.id, ""))

    async def _look(self, project: str, name: str, *, exactly: bool = False) -> tuple[Backup, Repository | None]:
        def look(tx: Transaction) -> tuple[Backup, Repository | None]:
            backup = find_backup(tx, project, name)
            if exactly and name not in (backup.name, backup.id):
                raise Conflict(f"{name} names a volume with backups, not one of them", hint=f"name one: {backup.name}")
            return backup, tx.by_id(backup.spec.repository)

        return await self._store.read(look)


def _chosen(tx: Transaction, project: str, body: BackupCreate) -> tuple[list[Volume], str | None]:
    """The volumes, and the id of the instance that they are of."""
    if body.volume:
        volume = find_volume(tx, project, body.volume)
        if volume.spec.owner is None:
            check_usable(tx, volume)
        return [volume], None
    if not body.instance:
        return [], None
    instance = find_instance(tx, project, body.instance)
    ids = [
        id for id in (instance.status.volume, *instance.status.disks.values(), *instance.status.volumes.values()) if id
    ]
    volumes: list[Volume] = [volume for id in ids if (volume := tx.by_id(id)) is not None]
    if not volumes:
        raise Conflict(f"{instance.name} has no volume", hint="there is nothing of it to back up")
    for volume in volumes:
        check_idle(tx, volume)
    return volumes, instance.id


def _rows(
    tx: Transaction, project: str, body: BackupCreate, repository: Repository, volumes: list[Volume], policy: str
) -> list[Backup]:
    """:raise Conflict: when a backup of one of *volumes* goes on, or one lies on another host than goes to *repository*."""
    going: dict[str, Backup] = {
        item.spec.volume: item for item in tx.list("backup") if item.status.phase is StoragePhase.PENDING
    }
    rows: list[Backup] = []
    instance = find_instance(tx, project, body.instance).name if body.instance else ""
    for volume in volumes or [None]:
        id, name = (volume.id, volume.name) if volume is not None else ("", LAYER)
        if volume is not None and id in going:
            raise Conflict(
                f"a backup of {name} is being made already: {going[id].name}", hint="wait until it has ended"
            )
        if volume is not None and volume.status.host not in (None, repository.status.host):
            # The repository's key is wrapped for its host, and the layer's backup in it has that host's key files alone.
            raise Conflict(
                f"volume {name} lies on another host than the one that goes to repository {repository.name}",
                hint="make a repository for its host: lamella backup repository create NAME --to PLACE --host-name HOST",
            )
        spec = BackupSpec(
            repository=repository.id,
            repository_name=repository.name,
            of=BackupSource.VOLUME if volume is not None else BackupSource.LAYER,
            volume=id,
            volume_name=name,
            instance=instance,
            policy=policy,
        )
        host = volume.status.host if volume is not None else repository.status.host
        chosen = body.name if body.name and not body.instance else _free_name(tx, project, name)
        rows.append(new_resource("backup", chosen, spec, BackupStatus(host=host), project=project, labels=body.labels))
    if instance:
        rows.append(_instance_row(tx, project, body, instance, repository, policy))
    return rows


def _instance_row(
    tx: Transaction, project: str, body: BackupCreate, name: str, repository: Repository, policy: str
) -> Backup:
    """Of the instance itself: the last to be made, so that it is whole when it is there."""
    spec = BackupSpec(
        repository=repository.id,
        repository_name=repository.name,
        of=BackupSource.INSTANCE,
        instance=name,
        policy=policy,
    )
    chosen = body.name or _free_name(tx, project, f"{name[: _STEM - 5]}.all")
    status = BackupStatus(host=repository.status.host)
    return new_resource("backup", chosen, spec, status, project=project, labels=body.labels)


def _record_of(tx: Transaction, rows: list[Backup]) -> InstanceRecord | None:
    """How the instance that *rows* are of was asked for.

    :raise NotFound: when it is gone.
    """
    row = next((row for row in rows if row.spec.of is BackupSource.INSTANCE), None)
    if row is None:
        return None
    instance = find_instance(tx, row.project, row.spec.instance)
    status = instance.status
    backups = {item.spec.volume: item.id for item in rows if item.spec.volume}
    return InstanceRecord(
        name=instance.name,
        labels=instance.labels,
        spec=instance.spec,
        root=backups.get(status.volume or "", ""),
        disks={device: backups[id] for device, id in status.disks.items() if id in backups},
        volumes={name: backups[id] for name, id in status.volumes.items() if id in backups},
    )


def _free_name(tx: Transaction, project: str, stem: str) -> str:
    base = f"{stem[:_STEM].rstrip('.-_')}-{now():%Y%m%d-%H%M%S}"
    name, number = base, 1
    while tx.get("backup", project, name) is not None:
        number += 1
        name = f"{base[:60]}.{number}"
    return name


def _snapshot(row: Backup, volumes: list[Volume], instance: str | None, consistent: bool) -> Snapshot:
    spec = SnapshotSpec(
        volume=None if instance is not None else volumes[0].id,
        instance=instance,
        volumes=[volume.id for volume in volumes] if instance is not None else [],
        consistent=consistent,
        owner=row.id,
    )
    name = f"{row.spec.instance or volumes[0].name}@{row.name}"
    return new_resource("snapshot", name, spec, SnapshotStatus(host=volumes[0].status.host), project=row.project)


def _made(tx: Transaction, id: str, seen: BackupStatus) -> None:
    row: Backup | None = tx.by_id(id)
    if row is None:
        return
    row.status = seen
    row = tx.update(row)
    told = f"backup {row.name}: {format_size(seen.read)} read, {format_size(seen.added)} added, {seen.took:.1f} s"
    record(tx, row, "backup.made", told)


def _failed(tx: Transaction, id: str, error: LamellaError) -> None:
    row: Backup | None = tx.by_id(id)
    if row is None or row.status.phase is not StoragePhase.PENDING:
        return
    row.status.phase = StoragePhase.FAILED
    row.status.conditions = [
        Condition(type="Ready", status=False, reason=error.code, message=error.message, hint=error.hint, since=now())
    ]
    row = tx.update(row)
    record(tx, row, "backup.failed", f"backup {row.name} was not made: {error.message}")


def _over(tx: Transaction, operation: Operation) -> None:
    """Its end, by itself or with the daemon: what is not whole is no backup."""
    if operation.status.phase is not OperationPhase.FAILED:
        return
    error = error_for(operation.status.error_code or "unavailable")
    said = error(operation.status.error or "the daemon ended meanwhile", hint=operation.status.hint)
    for id in operation.spec.arguments.get("backups", "").split():
        _failed(tx, id, said)


def _mounted(tx: Transaction, who: Principal, id: str, path: str) -> str:
    """The name of its host."""
    row: Backup | None = tx.by_id(id)
    if row is None:
        return ""
    row.status.mounted = path
    tx.update(row)
    verb = "mount" if path else "unmount"
    tx.audit(Audit(principal=who.name, verb=verb, subject=f"backup/{row.project}/{row.name}"))
    host = tx.by_id(row.status.host or "")
    return host.name if host is not None else ""
