"""``fork``: copies of a running instance, which go on where it is. All of them, or none.

The operation's row is the intent, with the snapshot that the copies begin as; that is taken first, then all copies are written in one
transaction. Cut off anywhere, it goes on after a restart; failed, what was made of it goes with the row that says so.
"""

from lamella.control import capacity
from lamella.control.copying import begin_as_copy, check_copyable, of_instance, origin_of, spec_of_copy
from lamella.control.events import record
from lamella.control.instances import Instances
from lamella.control.lookup import find_instance, need_project
from lamella.control.merging import merge_labels
from lamella.control.shares import NOTHING, share_of
from lamella.control.storage.asking import Hosts
from lamella.control.storage.attaching import check_idle
from lamella.control.storage.holding import COPYING, outlive
from lamella.control.storage.keeper import Keeper
from lamella.control.storage.operations import Job, Operations
from lamella.control.storage.snapshots import PATIENCE, check_running
from lamella.model.errors import Conflict, LamellaError, NoRoom, NotFound, error_for
from lamella.model.host import Host
from lamella.model.ids import check_name
from lamella.model.instance import Instance, Phase
from lamella.model.operation import Operation, OperationPhase
from lamella.model.requests import InstanceFork, Principal
from lamella.model.resource import new_resource, now
from lamella.model.storage import Snapshot, SnapshotSpec, SnapshotStatus, StoragePhase, Volume
from lamella.model.storage_requests import StorageProgress
from lamella.store.store import Audit, Store, Transaction

VERB = "fork"
# How long, in seconds, a memory may take to be written down, and a copy to begin.
LONGEST, BEGINNING = 3600.0, 600.0


class Forking:
    """Intent for copies. *seed* as for :class:`Instances`."""

    def __init__(
        self,
        store: Store,
        hosts: Hosts,
        keeper: Keeper,
        operations: Operations,
        instances: Instances,
        *,
        seed: str,
    ) -> None:
        self._store = store
        self._hosts = hosts
        self._keeper = keeper
        self._operations = operations
        self._instances = instances
        self._seed = seed
        operations.add(VERB, self._fork, again=True, ended=_ended)

    async def create(
        self,
        who: Principal,
        project: str,
        name: str,
        body: InstanceFork,
        *,
        wait: float,
        idempotency_key: str | None = None,
    ) -> Operation:
        """Ask for ``body.count`` copies of the instance *name*, which runs. The operation's ``made`` names them when it is done.

        :raise Conflict: when it does not run, or something long goes on with its disk. :raise NoRoom: when its host has none for so many.
        :raise Unsupported: when its level, or what it has beside a root disk and a NIC, cannot be copied.
        """

        def write(tx: Transaction) -> tuple[Operation, bool]:
            space = f"idempotency:{project}"
            before = tx.by_id(tx.claims(space).get(idempotency_key, "")) if idempotency_key is not None else None
            if before is not None:
                return before, False
            need_project(tx, project)
            instance = find_instance(tx, project, name)
            prefix = body.name or instance.name
            check_name(f"{prefix}-{10 * body.count}")
            snapshot = self._intend(tx, instance, body.count)
            arguments = {
                "instance": instance.id,
                "snapshot": snapshot.id,
                "count": str(body.count),
                "prefix": prefix,
                **{f"label:{key}": value for key, value in body.labels.items()},
            }
            operation = self._operations.intend(tx, who, project, VERB, f"instance/{instance.name}", arguments)
            tx.claim(COPYING, snapshot.id, operation.id)
            if idempotency_key is not None:
                tx.claim(space, idempotency_key, operation.id)
            tx.audit(Audit(principal=who.name, verb=VERB, subject=f"instance/{project}/{instance.name}"))
            return operation, True

        operation, new = await self._store.write(write)
        if new:
            self._operations.start(operation)
        return await self._operations.finish(operation, wait)

    def _intend(self, tx: Transaction, instance: Instance, count: int) -> Snapshot:
        """The row of the snapshot that the copies are to begin as."""
        if instance.deleted_at is not None:
            raise Conflict(f"{instance.name} is being removed")
        check_copyable(instance.name, instance.spec)
        check_running(instance)
        disk: Volume | None = tx.by_id(instance.status.volume or "")
        if disk is None:
            raise NotFound(f"the disk of {instance.name} is gone")
        check_idle(tx, disk)
        _check_room(tx, instance, count)
        spec = SnapshotSpec(instance=instance.id, volumes=[disk.id], memory=True, owner=instance.id, passing=True)
        status = SnapshotStatus(host=instance.status.host, origin=of_instance(instance))
        snapshot: Snapshot = new_resource("snapshot", "pending", spec, status, project=instance.project)
        snapshot.name = f"{instance.name}@for-{snapshot.id.replace('_', '-')}"
        return tx.insert(snapshot)

    async def _fork(self, job: Job) -> str:
        arguments = job.arguments
        snapshot = arguments["snapshot"]
        host = await self._store.read(lambda tx: row.status.host if (row := tx.by_id(snapshot)) is not None else None)
        await self._hosts.reach(host, patience=PATIENCE)
        await job.tell(StorageProgress(step="keeping its memory"))
        await self._keeper.settle(snapshot, LONGEST, job.tell)
        copies = await self._store.write(lambda tx: self._copy(tx, job))
        job.pause = (await self._store.by_id(snapshot)).status.pause
        job.made = [copy.name for copy in copies]
        for done, copy in enumerate(copies):
            await job.tell(StorageProgress(step="beginning the copies", done=done, total=len(copies), unit="copies"))
            seen = await self._instances.wait_for(copy, "settled", timeout=BEGINNING)
            # One that is removed when it ends may have been.
            if await self._store.read(lambda tx, id=copy.id: tx.by_id(id) is not None):
                _check_began(seen)
        return ", ".join(job.made)

    def _copy(self, tx: Transaction, job: Job) -> list[Instance]:
        """The copies, made unless they were."""
        arguments = job.arguments
        snapshot: Snapshot | None = tx.by_id(arguments["snapshot"])
        if snapshot is None or snapshot.status.phase is not StoragePhase.READY:
            raise Conflict("the memory that the copies were to begin with could not be kept")
        made = _copies(tx, snapshot.id)
        if made:
            return made
        labels = dict(labels_of(tx, arguments["instance"]))
        merge_labels(
            labels, {key.partition(":")[2]: value for key, value in arguments.items() if key.startswith("label:")}
        )
        names = free_names(tx, job.project, arguments["prefix"], int(arguments["count"]))
        who = job.operation.spec.principal
        for name in names:
            copy = begin_as_copy(tx, snapshot, name, seed=self._seed, labels=labels)
            record(tx, copy, "instance.created", f"{who} made {name} as a copy of {origin_of(snapshot).name}")
            tx.audit(Audit(principal=who, verb="create", subject=f"instance/{job.project}/{name}"))
            made.append(copy)
        return made


def labels_of(tx: Transaction, instance: str) -> dict[str, str]:
    parent = tx.by_id(instance)
    return parent.labels if parent is not None else {}


def free_names(tx: Transaction, project: str, prefix: str, count: int) -> list[str]:
    """The first *count* of ``PREFIX-1``, ``PREFIX-2``, … that no instance of *project* has."""
    taken = {item.name for item in tx.list("instance", project=project)}
    found: list[str] = []
    number = 1
    while len(found) < count:
        if (name := f"{prefix}-{number}") not in taken:
            found.append(name)
        number += 1
    return found


def _check_room(tx: Transaction, instance: Instance, count: int) -> None:
    """:raise NoRoom: when the host has no room for so many; found out before anybody has to stand still for them."""
    host: Host | None = tx.by_id(instance.status.host or "")
    one = share_of(spec_of_copy(of_instance(instance)))
    wanted = sum([one] * count, NOTHING)
    if host is None:
        return
    short = capacity.shortage(host, capacity.taken(host, tx.list("instance")), wanted)
    if short is not None:
        raise NoRoom(f"{count} copies of {instance.name}: {short.message}", hint="ask for fewer", field="count")


def _copies(tx: Transaction, snapshot: str) -> list[Instance]:
    instances: list[Instance] = tx.list("instance")
    return [
        item for item in instances if item.status.beginning is not None and item.status.beginning.snapshot == snapshot
    ]


def _check_began(copy: Instance) -> None:
    """:raise LamellaError: what its host says, when *copy* did not begin."""
    status = copy.status
    if status.phase is not Phase.FAILED and status.epoch >= 1:
        return
    why = next((item for item in status.conditions if not item.status), None)
    kind = error_for(why.reason) if why is not None else LamellaError
    raise kind(
        f"{copy.name} did not begin: {why.message if why is not None else status.phase}",
        hint=why.hint if why is not None else "",
    )


def _ended(tx: Transaction, operation: Operation) -> None:
    """With the operation's end: of one that failed, everything goes."""
    arguments = operation.spec.arguments
    snapshot: Snapshot | None = tx.by_id(arguments.get("snapshot", ""))
    tx.release(COPYING, arguments.get("snapshot", ""), operation.id)
    if operation.status.phase is OperationPhase.DONE:
        parent = tx.by_id(arguments["instance"])
        if parent is not None:
            names = ", ".join(operation.status.made)
            pause = f"; it stood still for {operation.status.pause * 1000:.0f} ms"
            record(tx, parent, "instance.forked", f"{parent.name} goes on in {names} as well{pause}")
        return
    for copy in _copies(tx, arguments.get("snapshot", "")):
        if copy.deleted_at is None:
            copy.deleted_at = now()
            outlive(tx, copy)
            tx.update(copy)
    if snapshot is not None and snapshot.status.phase is not StoragePhase.READY:
        snapshot.status.phase, snapshot.deleted_at = StoragePhase.DELETING, now()
        tx.update(snapshot)
