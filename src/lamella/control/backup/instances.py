"""Instances back from their backups: the volumes with a life of their own first, then the instance, then what is its own.

Every step looks at what is there already, so the next daemon goes on where one ended; what fails leaves nothing behind.
"""

from contextlib import suppress

import msgspec

from lamella.control.backup.lookup import find_instance_backup, find_repository_of, ready
from lamella.control.backup.repositories import PATIENCE
from lamella.control.backup.restoring import Restoring
from lamella.control.instances import Instances
from lamella.control.storage.asking import Hosts, Lost, ask
from lamella.control.storage.operations import Job, Operations
from lamella.control.storage.volumes import Volumes
from lamella.model.backup import Backup, InstanceRecord, Repository
from lamella.model.backup_bodies import BackupRestore
from lamella.model.backup_requests import ReadInstance
from lamella.model.errors import Conflict, Internal, LamellaError, NotFound, error_for
from lamella.model.ids import check_name
from lamella.model.instance import Instance, InstanceSpec, Power
from lamella.model.operation import Operation, OperationPhase
from lamella.model.requests import InstanceCreate, Principal
from lamella.model.storage import Volume
from lamella.model.storage_requests import StorageProgress
from lamella.store.store import Audit, Store, Transaction

VERB = "restore-instance"
# How long an instance may take to be made, and one of its volumes to be restored, in seconds.
MADE = 3600.0
LONGEST = 7 * 86400.0


class InstanceRestoring:
    """Intent for restores of whole instances. Passphrases are held in memory, and nowhere else."""

    def __init__(
        self,
        store: Store,
        operations: Operations,
        hosts: Hosts,
        volumes: Volumes,
        restoring: Restoring,
        instances: Instances,
    ) -> None:
        self._store, self._operations, self._hosts = store, operations, hosts
        self._volumes, self._restoring, self._instances = volumes, restoring, instances
        self._passphrases: dict[str, str] = {}
        operations.add(VERB, self._restore, again=True)

    async def restore(self, who: Principal, project: str, name: str, body: BackupRestore, *, wait: float) -> Operation:
        """A new, stopped instance called ``body.name``. A volume of it whose name is taken is called after the instance, too.

        :raise Conflict: when there is an instance of that name, or a part of the backup is gone.
        """
        check_name(body.name)
        backup = await self._store.read(lambda tx: find_instance_backup(tx, project, name))
        record = await self._record(backup)

        def write(tx: Transaction) -> Operation:
            if tx.get("instance", project, body.name) is not None:
                raise Conflict(f"instance {body.name} is there", hint="--as another name, or remove it", field="name")
            for id in (record.root, *record.disks.values(), *record.volumes.values()):
                part = tx.by_id(id) if id else None
                if id and (part is None or not ready(part)):
                    raise Conflict(
                        f"a volume that belongs to backup {backup.name} is backed up no more",
                        hint="its other volumes can be restored one by one: lamella backup ls",
                    )
            names = {old: _free(tx, project, old, body.name) for old in record.volumes}
            arguments = {
                "backup": backup.id,
                "name": body.name,
                "pool": body.pool,
                "names": msgspec.json.encode(names).decode(),
            }
            tx.audit(
                Audit(principal=who.name, verb=VERB, subject=f"instance/{project}/{body.name}", detail=backup.name)
            )
            return self._operations.intend(tx, who, project, VERB, f"instance/{body.name}", arguments)

        operation = await self._store.write(write)
        self._passphrases[operation.id] = body.passphrase
        self._operations.start(operation)
        return await self._operations.finish(operation, wait)

    async def _record(self, backup: Backup) -> InstanceRecord:
        repository: Repository = await self._store.read(lambda tx: find_repository_of(tx, backup))
        agent = await self._hosts.reach(repository.status.host, patience=PATIENCE)
        return await ask(agent, ReadInstance(backup=backup, repository=repository), InstanceRecord)

    async def _restore(self, job: Job) -> str:
        try:
            name = await self._put_back(job)
        except Lost:
            raise
        except LamellaError:
            self._passphrases.pop(job.operation.id, None)
            await self._undo(job)
            raise
        self._passphrases.pop(job.operation.id, None)
        return name

    async def _put_back(self, job: Job) -> str:
        record = await self._record(await self._store.by_id(job.arguments["backup"]))
        names: dict[str, str] = msgspec.json.decode(job.arguments["names"])
        own = [record.root, *record.disks.values()]
        total = len(record.volumes) + sum(1 for id in own if id)
        done = 0
        for old, id in record.volumes.items():
            await self._tell(job, names[old], done, total)
            await self._part(job, id, new=names[old])
            done += 1
        instance = await self._instance(job, record, names)
        pairs = [(record.root, instance.status.volume or "")]
        pairs += [(id, instance.status.disks.get(device, "")) for device, id in record.disks.items()]
        for id, volume in pairs:
            if id and volume:
                await self._tell(job, instance.name, done, total)
                await self._part(job, id, over=volume)
                done += 1
        return instance.name

    async def _tell(self, job: Job, name: str, done: int, total: int) -> None:
        await job.tell(StorageProgress(step=f"restore {name}", done=done, total=total, unit="volumes"))

    async def _part(self, job: Job, backup_id: str, *, new: str = "", over: str = "") -> None:
        """One volume, unless it is there already; one that goes on is waited for."""
        backup: Backup = await self._store.by_id(backup_id)
        operation = await self._store.read(lambda tx: _begun(tx, job.operation, backup_id))
        passphrase, who = self._passphrases.get(job.operation.id, ""), _who(job)
        if operation is not None:
            operation = await self._operations.finish(operation, LONGEST)
        elif over:
            volume: Volume = await self._store.by_id(over)
            operation = await self._restoring.over(
                who, backup, volume, fresh=True, passphrase=passphrase, part_of=job.operation.id, wait=LONGEST
            )
        else:
            body = BackupRestore(name=new, pool=job.arguments["pool"], passphrase=passphrase)
            operation = await self._restoring.anew(
                who, job.project, backup, body, part_of=job.operation.id, wait=LONGEST
            )
        status = operation.status
        if status.phase is OperationPhase.RUNNING:
            raise Internal(f"{operation.spec.subject} was not restored in time", hint="lamella operation ls")
        if status.phase is OperationPhase.FAILED:
            raise error_for(status.error_code or "internal")(status.error, hint=status.hint)

    async def _instance(self, job: Job, record: InstanceRecord, names: dict[str, str]) -> Instance:
        with suppress(NotFound):
            found: Instance = await self._store.get("instance", job.project, job.arguments["name"])
            if not _ours(found, job.operation):
                raise Conflict(f"instance {found.name} was made by somebody else meanwhile", hint="--as another name")
            return await self._instances.wait_for(found, "settled", timeout=MADE)
        spec = msgspec.convert(msgspec.to_builtins(record.spec), InstanceSpec)
        spec.power, spec.epoch, spec.attach_epoch, spec.grace = Power.STOPPED, 0, 0, None
        spec.volumes = [
            msgspec.structs.replace(mount, volume=names.get(mount.volume, mount.volume)) for mount in spec.volumes
        ]
        body = InstanceCreate(name=job.arguments["name"], labels=record.labels, spec=spec)
        return await self._instances.create(_who(job), job.project, body, wait=MADE, idempotency_key=None)

    async def _undo(self, job: Job) -> None:
        """The instance goes, and so do the volumes that were made for it."""
        who = _who(job)
        with suppress(LamellaError):
            found: Instance = await self._store.get("instance", job.project, job.arguments["name"])
            if _ours(found, job.operation):
                await self._instances.delete(who, job.project, found.name, force=True, expected=None, wait=PATIENCE)
        for volume in await self._store.read(lambda tx: _made(tx, job.operation)):
            with suppress(LamellaError):
                await self._volumes.delete(who, job.project, volume.id, force=True, expected=None, wait=PATIENCE)


def _who(job: Job) -> Principal:
    return Principal(name=job.operation.spec.principal, admin=True)


def _ours(instance: Instance, operation: Operation) -> bool:
    return instance.created_at >= operation.created_at


def _begun(tx: Transaction, parent: Operation, backup: str) -> Operation | None:
    """The operation that restores *backup* for *parent*."""
    return next((item for item in _parts(tx, parent) if item.spec.arguments["backup"] == backup), None)


def _made(tx: Transaction, parent: Operation) -> list[Volume]:
    """The volumes that were made for *parent*."""
    ids = [item.spec.arguments["volume"] for item in _parts(tx, parent) if item.spec.arguments["new"]]
    return [volume for id in ids if (volume := tx.by_id(id)) is not None]


def _parts(tx: Transaction, parent: Operation) -> list[Operation]:
    return [item for item in tx.list("operation") if item.spec.arguments.get("part_of") == parent.id]


def _free(tx: Transaction, project: str, name: str, instance: str) -> str:
    """*name*, or one after the instance when there is a volume of that name.

    :raise Conflict: when that is taken, too.
    """
    for candidate in (name, f"{instance}-{name}"[:63].rstrip("._-")):
        if tx.get("volume", project, candidate) is None:
            return candidate
    raise Conflict(f"there are volumes called {name} and {instance}-{name}", hint="--as another name, or rename them")
