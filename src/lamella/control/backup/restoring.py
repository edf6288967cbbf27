"""Backups back into volumes: a new one, which is made first like any other, or, by force, one that nobody has attached."""

from lamella.control.backup.lookup import find_backup, find_repository_of, ready
from lamella.control.backup.repositories import PATIENCE
from lamella.control.events import record
from lamella.control.storage.asking import Hosts, Lost, ask
from lamella.control.storage.attaching import BUSY
from lamella.control.storage.conditions import READY, drop, put
from lamella.control.storage.operations import Job, Operations
from lamella.control.storage.snapshots import check_rests
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
        """:raise Conflict: when there is a volume of that name and no *force*, or an instance that runs has it."""

        def look(tx: Transaction) -> tuple[Backup, Volume | None]:
            backup = find_backup(tx, project, name)
            if not ready(backup) or backup.status.note is None:
                raise Conflict(f"backup {backup.name} is not whole", hint="lamella backup ls tells which are")
            if backup.spec.of is not BackupSource.VOLUME:
                hint = "--instance" if backup.spec.of is BackupSource.INSTANCE else "lamella recover, on a bare machine"
                raise Conflict(f"backup {backup.name} holds no volume, but the {backup.spec.of}", hint=hint)
            find_repository_of(tx, backup)
            volume = tx.get("volume", project, body.name)
            if volume is not None and not body.force:
                raise Conflict(
                    f"volume {body.name} is there", hint="--as another name, or --force to overwrite it", field="name"
                )
            return backup, volume

        backup, volume = await self._store.read(look)
        if volume is not None:
            return await self.over(who, backup, volume, passphrase=body.passphrase, wait=wait)
        return await self.anew(who, project, backup, body, wait=wait)

    async def anew(
        self, who: Principal, project: str, backup: Backup, body: BackupRestore, *, part_of: str = "", wait: float
    ) -> Operation:
        """Into a new volume, which goes again when that fails. *part_of* is the id of the operation that asks."""
        volume = await self._volumes.create(who, project, self._body(backup, body), wait=MADE)
        try:
            arguments = {"new": "yes", "fresh": "yes", "part_of": part_of}
            return await self._begin(who, backup, volume, arguments, body.passphrase, wait)
        except Exception:
            await self._gone(volume.id)
            raise

    async def over(
        self,
        who: Principal,
        backup: Backup,
        volume: Volume,
        *,
        fresh: bool = False,
        passphrase: str = "",
        part_of: str = "",
        wait: float,
    ) -> Operation:
        """Over *volume*, which stays what it is when that fails, unless it is *fresh*: nothing in it is worth keeping.

        :raise Conflict: when an instance that runs has it, or one of the two is encrypted and the other is not.
        """
        _check_encryption(backup, volume)
        arguments = {"new": "", "fresh": "yes" if fresh else "", "part_of": part_of}
        return await self._begin(who, backup, volume, arguments, passphrase, wait)

    async def _begin(
        self, who: Principal, backup: Backup, volume: Volume, arguments: dict[str, str], passphrase: str, wait: float
    ) -> Operation:
        def write(tx: Transaction) -> Operation:
            current: Volume | None = tx.by_id(volume.id)
            if current is None:
                raise NotFound(f"volume {volume.name} was removed meanwhile")
            check_rests(tx, current)
            asked = {"backup": backup.id, "volume": current.id, **arguments}
            operation = self._operations.intend(tx, who, current.project, VERB, f"volume/{current.name}", asked)
            tx.claim(BUSY, current.id, operation.id)
            subject = f"volume/{current.project}/{current.name}"
            tx.audit(Audit(principal=who.name, verb=VERB, subject=subject, detail=backup.name))
            return operation

        operation = await self._store.write(write)
        self._passphrases[operation.id] = passphrase
        self._operations.start(operation)
        return await self._operations.finish(operation, wait)

    async def _gone(self, id: str) -> None:
        """What was made for a backup that did not come leaves nothing."""

        def write(tx: Transaction) -> None:
            volume: Volume | None = tx.by_id(id)
            if volume is not None:
                volume.status.phase = StoragePhase.FAILED
                tx.update(volume)

        await self._store.write(write)
        await self._volumes.give_up(id)

    def _body(self, backup: Backup, body: BackupRestore) -> VolumeCreate:
        note = backup.status.note
        assert note is not None
        if note.spec.encryption is KeyWrap.PASSPHRASE and not body.passphrase:
            raise Forbidden(
                f"the key of {note.volume_name} is kept by a passphrase", hint="bring it: --passphrase-file FILE"
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
        try:
            name = await self._put_back(job)
        except Lost:
            raise
        except Exception:
            self._passphrases.pop(job.operation.id, None)
            if job.arguments["new"]:
                await self._gone(job.arguments["volume"])
            raise
        self._passphrases.pop(job.operation.id, None)
        return name

    async def _put_back(self, job: Job) -> str:
        arguments = job.arguments
        backup: Backup = await self._store.by_id(arguments["backup"])
        volume: Volume = await self._store.by_id(arguments["volume"])
        repository: Repository = await self._store.by_id(backup.spec.repository)
        agent = await self._hosts.reach(volume.status.host, patience=PATIENCE)
        request = RestoreBackup(
            backup=backup,
            repository=repository,
            volume=volume,
            passphrase=self._passphrases.get(job.operation.id, ""),
            fresh=bool(arguments.get("fresh")),
        )
        seen: VolumeStatus = await ask(agent, request, VolumeStatus, job.tell)

        def write(tx: Transaction) -> None:
            current: Volume | None = tx.by_id(volume.id)
            if current is None:
                return
            status = current.status
            status.phase, status.size, status.used, status.key = StoragePhase.READY, seen.size, seen.used, seen.key
            status.conditions = drop(status.conditions, READY)
            if current.spec.owner is None:
                current.spec.size = seen.size or current.spec.size
            if backup.status.note is not None and current.spec.encryption is not None:
                # The key that came with it is wrapped as it was then.
                current.spec.encryption = backup.status.note.spec.encryption
            current = tx.update(current)
            current.status.observed_generation = current.generation
            current = tx.update(current)
            record(tx, current, "volume.restored", f"volume {current.name} is what backup {backup.name} holds")

        await self._store.write(write)
        return volume.name


def _check_encryption(backup: Backup, volume: Volume) -> None:
    """What a backup holds is written as it is: plain text under a volume that is called encrypted would be in the pool in clear.

    :raise Conflict: when one of the two is encrypted and the other is not.
    """
    note = backup.status.note
    if note is None or (note.spec.encryption is None) == (volume.spec.encryption is None):
        return
    states = ("encrypted", "not encrypted")
    of_backup, of_volume = states if volume.spec.encryption is None else reversed(states)
    raise Conflict(
        f"backup {backup.name} is {of_backup}, and volume {volume.name} is {of_volume}",
        hint="restore it to a new volume, and copy what is in it: --as NAME",
    )


def _over(tx: Transaction, operation: Operation) -> None:
    """It is free again. One that was there before is what it was; one that was lost with its machine is lost still, and a new one that
    could not be taken away again is no volume to use."""
    arguments = operation.spec.arguments
    volume: Volume | None = tx.by_id(arguments["volume"])
    tx.release(BUSY, arguments["volume"], operation.id)
    if volume is None or operation.status.phase is not OperationPhase.FAILED:
        return
    status = volume.status
    if arguments["new"] and status.phase is not StoragePhase.READY:
        # It goes.
        return
    if not arguments["new"] and not arguments.get("lost"):
        record(tx, volume, "volume.kept", f"volume {volume.name} is what it was: {operation.status.error}")
        return
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
