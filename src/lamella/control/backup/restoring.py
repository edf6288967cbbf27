"""Backups back into volumes: a new one, which is made first like any other, or, by force, one that nobody has attached."""

from lamella.control.backup.lookup import find_backup, ready
from lamella.control.backup.repositories import PATIENCE
from lamella.control.events import record
from lamella.control.storage.asking import Hosts, ask
from lamella.control.storage.attaching import BUSY, check_idle, users
from lamella.control.storage.conditions import READY, drop, put
from lamella.control.storage.operations import Job, Operations
from lamella.control.storage.volumes import Volumes
from lamella.model.backup import Backup, BackupSource, Repository
from lamella.model.backup_bodies import BackupRestore
from lamella.model.backup_requests import RestoreBackup
from lamella.model.errors import Conflict, Forbidden, NotFound
from lamella.model.operation import Operation, OperationPhase
from lamella.model.requests import Principal
from lamella.model.resource import Condition
from lamella.model.storage import KeyWrap, StoragePhase, Volume, VolumeSpec, VolumeStatus
from lamella.model.storage_bodies import VolumeCreate
from lamella.store.store import Audit, Store, Transaction

VERB = "restore-backup"
# How long an empty volume may take to be there, in seconds.
MADE = 600.0


class Restoring:
    """Intent for restores. Passphrases are held in memory, and nowhere else."""

    def __init__(self, store: Store, operations: Operations, hosts: Hosts, volumes: Volumes) -> None:
        self._store, self._operations, self._hosts, self._volumes = store, operations, hosts, volumes
        self._passphrases: dict[str, str] = {}
        operations.add(VERB, self._restore, again=True, ended=_over)

    async def restore(self, who: Principal, project: str, name: str, body: BackupRestore, *, wait: float) -> Operation:
        """:raise Conflict: when there is a volume of that name and no *force*, or an instance has it."""

        def look(tx: Transaction) -> tuple[Backup, Volume | None]:
            backup = find_backup(tx, project, name)
            if not ready(backup) or backup.spec.of is not BackupSource.VOLUME or backup.status.note is None:
                raise Conflict(f"backup {backup.name} holds no volume", hint="lamella backup ls")
            volume = tx.get("volume", project, body.name)
            if volume is not None and not body.force:
                raise Conflict(
                    f"volume {body.name} is there", hint="--as another name, or --force to overwrite it", field="name"
                )
            return backup, volume

        backup, volume = await self._store.read(look)
        new = volume is None
        if volume is None:
            volume = await self._volumes.create(who, project, self._body(backup, body), wait=MADE)
        made = volume

        def write(tx: Transaction) -> Operation:
            current: Volume | None = tx.by_id(made.id)
            if current is None:
                raise NotFound(f"volume {body.name} was removed meanwhile")
            check_idle(tx, current)
            using = users(tx, current)
            if using or current.spec.owner is not None:
                owner = tx.by_id(current.spec.owner) if current.spec.owner is not None else using[0]
                raise Conflict(
                    f"volume {current.name} is attached to {owner.name if owner is not None else 'an instance'}",
                    hint="detach it first, or restore --as another name",
                )
            arguments = {"backup": backup.id, "volume": current.id, "new": "yes" if new else ""}
            operation = self._operations.intend(tx, who, project, VERB, f"volume/{current.name}", arguments)
            tx.claim(BUSY, current.id, operation.id)
            tx.audit(
                Audit(principal=who.name, verb=VERB, subject=f"volume/{project}/{current.name}", detail=backup.name)
            )
            return operation

        operation = await self._store.write(write)
        self._passphrases[operation.id] = body.passphrase
        self._operations.start(operation)
        return await self._operations.finish(operation, wait)

    def _body(self, backup: Backup, body: BackupRestore) -> VolumeCreate:
        note = backup.status.note
        assert note is not None
        if note.spec.encryption is KeyWrap.PASSPHRASE and not body.passphrase:
            raise Forbidden(
                f"the key of {note.volume_name} is kept by a passphrase", hint="bring it: --passphrase-stdin"
            )
        spec = VolumeSpec(
            pool=body.pool or note.spec.pool,
            form=note.spec.form,
            size=note.spec.size,
            filesystem=note.spec.filesystem,
            limits=note.spec.limits,
            encryption=note.spec.encryption,
            shred=note.spec.shred,
        )
        return VolumeCreate(name=body.name, spec=spec, passphrase=body.passphrase)

    async def _restore(self, job: Job) -> str:
        arguments = job.arguments
        backup: Backup = await self._store.by_id(arguments["backup"])
        volume: Volume = await self._store.by_id(arguments["volume"])
        repository: Repository = await self._store.by_id(backup.spec.repository)
        agent = await self._hosts.reach(volume.status.host, patience=PATIENCE)
        request = RestoreBackup(
            backup=backup,
            repository=repository,
            volume=volume,
            passphrase=self._passphrases.pop(job.operation.id, ""),
        )
        seen: VolumeStatus = await ask(agent, request, VolumeStatus, job.tell)

        def write(tx: Transaction) -> None:
            current: Volume | None = tx.by_id(volume.id)
            if current is None:
                return
            status = current.status
            status.phase, status.size, status.used, status.key = StoragePhase.READY, seen.size, seen.used, seen.key
            status.conditions = drop(status.conditions, READY)
            current.spec.size = seen.size or current.spec.size
            current = tx.update(current)
            current.status.observed_generation = current.generation
            current = tx.update(current)
            record(tx, current, "volume.restored", f"volume {current.name} is what backup {backup.name} holds")

        await self._store.write(write)
        return volume.name


def _over(tx: Transaction, operation: Operation) -> None:
    """It is free again; one that was not restored whole is of no use."""
    volume: Volume | None = tx.by_id(operation.spec.arguments["volume"])
    if volume is None:
        return
    tx.release(BUSY, volume.id, operation.id)
    if operation.status.phase is OperationPhase.FAILED:
        status = volume.status
        status.phase = StoragePhase.FAILED
        status.conditions = put(
            status.conditions,
            Condition(
                type=READY,
                status=False,
                reason=operation.status.error_code,
                message=f"it was not restored whole: {operation.status.error}",
                hint=f"restore it again with --force, or remove it: lamella volume rm {volume.name}",
            ),
        )
        tx.update(volume)
