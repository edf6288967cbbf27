"""The verbs on snapshots: of one volume, or of all volumes of an instance at one instant."""

from typing import Any

from lamella.control.copying import of_instance
from lamella.control.events import record
from lamella.control.fitting import check_keeps_memory
from lamella.control.lookup import find_instance, need_project
from lamella.control.storage import going_back
from lamella.control.storage.asking import Hosts, Tell, ask
from lamella.control.storage.attaching import BUSY, check_idle, check_usable, free, users
from lamella.control.storage.conditions import READY, drop, of, put
from lamella.control.storage.holding import awaiting, inherit, is_left, standing
from lamella.control.storage.keeper import Keeper
from lamella.control.storage.lookup import find_snapshot, find_volume, held
from lamella.control.storage.operations import Job, Operations
from lamella.control.storage.placing import host_of_snapshot
from lamella.control.storage.steps import Step
from lamella.model.errors import Conflict, DeadlineExceeded, Invalid, LamellaError, NotFound, Unavailable
from lamella.model.ids import check_name
from lamella.model.instance import Instance, Phase, Power
from lamella.model.operation import Operation
from lamella.model.requests import Principal
from lamella.model.resource import new_resource, now
from lamella.model.storage import Snapshot, SnapshotSpec, SnapshotStatus, StoragePhase, Volume
from lamella.model.storage_bodies import SnapshotCreate, SnapshotRestore
from lamella.model.storage_requests import DropSnapshot, ForgetMemory, RestoreSnapshot, TakeSnapshot
from lamella.store.store import Audit, Store, Transaction

_RUNS = (Phase.RUNNING, Phase.PAUSED, Phase.READY)
_RESTS = (Phase.STOPPED, Phase.FAILED, Phase.PENDING)
PATIENCE = 60.0
# In the arguments of a restore whose disks are what they were.
_WENT_BACK = "went back"


class Snapshots:
    """Intent for snapshots."""

    def __init__(self, store: Store, keeper: Keeper, operations: Operations, hosts: Hosts) -> None:
        self._store = store
        self._keeper = keeper
        self._operations = operations
        self._hosts = hosts
        keeper.know("snapshot", self._take, _failed)
        operations.add("restore", self._restore, again=True, ended=free)

    async def create(
        self, who: Principal, project: str, body: SnapshotCreate, *, wait: float, idempotency_key: str | None = None
    ) -> Snapshot:
        """:raise NotFound: when there is no such volume or instance. :raise LamellaError: what the host says; nothing is left then."""
        check_name(body.name)
        if bool(body.volume) == bool(body.instance):
            raise Invalid("a snapshot is of a volume, or of an instance", hint="name one of them", field="volume")
        if body.memory and not body.instance:
            raise Invalid("a volume has no memory", hint="name an instance", field="memory")

        def write(tx: Transaction) -> tuple[Snapshot, bool]:
            space = f"idempotency:{project}"
            before = tx.by_id(tx.claims(space).get(idempotency_key, "")) if idempotency_key is not None else None
            if before is not None:
                return before, False
            need_project(tx, project)
            snapshot = _of_volume(tx, project, body) if body.volume else _of_instance(tx, project, body)
            snapshot = tx.insert(snapshot)
            if idempotency_key is not None:
                tx.claim(space, idempotency_key, snapshot.id)
            tx.audit(Audit(principal=who.name, verb="create", subject=f"snapshot/{project}/{snapshot.name}"))
            return snapshot, True

        snapshot, new = await self._store.write(write)
        try:
            await self._keeper.settle(snapshot.id, wait)
        except DeadlineExceeded:
            raise
        except LamellaError:
            if new:
                await self._store.write(lambda tx: _condemn(tx, snapshot.id))
                self._keeper.drive(snapshot.id)
            raise
        return await self._store.by_id(snapshot.id)

    async def delete(self, who: Principal, project: str, name: str, *, expected: int | None, wait: float) -> None:
        """:raise Conflict: when volumes stand on it, or it is a clone's own."""

        def write(tx: Transaction) -> Snapshot:
            snapshot = find_snapshot(tx, project, name)
            owner = tx.by_id(snapshot.spec.owner) if snapshot.spec.owner is not None else None
            if owner is not None and owner.kind == "backup":
                raise Conflict(
                    f"backup {owner.name} was read from snapshot {snapshot.name}: the next one reads what changed since",
                    hint=f"it goes with the next one, or with: lamella backup rm {owner.name}",
                )
            if owner is not None and owner.kind != "instance":
                raise Conflict(
                    f"{owner.kind} {owner.name} stands on snapshot {snapshot.name}",
                    hint=f"it goes with that {owner.kind}",
                )
            _check_free(tx, snapshot)
            for volume in _volumes(tx, snapshot):
                check_idle(tx, volume)
            snapshot.status.phase, snapshot.deleted_at = StoragePhase.DELETING, snapshot.deleted_at or now()
            tx.audit(Audit(principal=who.name, verb="delete", subject=f"snapshot/{project}/{snapshot.name}"))
            return tx.update(snapshot, expected=expected)

        snapshot = await self._store.write(write)
        await self._keeper.settle(snapshot.id, wait)

    async def restore(
        self, who: Principal, project: str, name: str, *, wait: float, body: SnapshotRestore | None = None
    ) -> Operation:
        """The volumes become what they were; the next run of their instance goes on from the memory that was kept with them.

        :raise Conflict: when an instance that runs has one of them, or is other hardware than the memory is of.
        """
        asked = body or SnapshotRestore()

        def write(tx: Transaction) -> Operation:
            snapshot = find_snapshot(tx, project, name)
            if snapshot.status.phase is not StoragePhase.READY:
                raise Conflict(f"snapshot {snapshot.name} is {snapshot.status.phase}")
            volumes = _volumes(tx, snapshot)
            if not volumes:
                raise NotFound(f"the volumes of snapshot {snapshot.name} are gone")
            for volume in volumes:
                check_rests(tx, volume)
            arguments = {"snapshot": snapshot.id}
            if asked.memory and snapshot.spec.memory:
                going_back.check(tx, snapshot)
                arguments["memory"] = "yes"
            if asked.start if asked.start is not None else "memory" in arguments:
                arguments["start"] = going_back.owner_of(tx, snapshot, volumes).id
            operation = self._operations.intend(tx, who, project, "restore", f"snapshot/{snapshot.name}", arguments)
            for volume in volumes:
                tx.claim(BUSY, volume.id, operation.id)
            tx.audit(Audit(principal=who.name, verb="restore", subject=f"snapshot/{project}/{snapshot.name}"))
            return operation

        operation = await self._store.write(write)
        self._operations.start(operation)
        return await self._operations.finish(operation, wait)

    async def _restore(self, job: Job) -> str:
        snapshot: Snapshot = await self._store.by_id(job.arguments["snapshot"])
        operation: Operation = await self._store.by_id(job.operation.id)
        if _WENT_BACK not in operation.spec.arguments:
            volumes, host = await self._store.read(lambda tx: _placed(tx, snapshot))
            agent = await self._hosts.reach(host, patience=PATIENCE)
            await ask(agent, RestoreSnapshot(snapshot=snapshot, volumes=volumes), None, job.tell)
            await self._store.write(lambda tx: _restored(tx, snapshot, operation))
        if start := job.arguments.get("start"):
            await self._store.write(lambda tx: going_back.start(tx, start))
        return snapshot.name

    async def _take(self, snapshot: Snapshot, step: Step, tell: Tell) -> None:
        instance = await self._store.read(lambda tx: _whose(tx, snapshot))
        volumes, host = await self._store.read(lambda tx: _placed(tx, snapshot))
        if step is Step.MAKE:
            agent, snapshot.status.host = self._hosts.agent(host), host
            request = TakeSnapshot(snapshot=snapshot, volumes=volumes, instance=instance)
            # As it is now: whatever goes on from its memory has to be the same machine.
            seen: SnapshotStatus = await ask(agent, request, SnapshotStatus, tell)
            if snapshot.spec.memory:
                seen.origin = of_instance(instance) if instance is not None else snapshot.status.origin
            await self._store.write(lambda tx: _taken(tx, snapshot.id, host, seen))
        elif step is Step.CHANGE:
            await ask(self._hosts.agent(host), ForgetMemory(snapshot=snapshot), None, tell)
            await self._store.write(lambda tx: _forgotten(tx, snapshot.id))
        else:
            if volumes or snapshot.spec.memory or snapshot.status.memory:
                agent = self._hosts.agent(host)
                await ask(agent, DropSnapshot(snapshot=snapshot, volumes=volumes), None, tell)
            for id in await self._store.write(lambda tx: _gone(tx, snapshot.id)):
                self._keeper.drive(id)


def _of_volume(tx: Transaction, project: str, body: SnapshotCreate) -> Snapshot:
    volume = find_volume(tx, project, body.volume, field="volume")
    check_usable(tx, volume)
    spec = SnapshotSpec(volume=volume.id, consistent=body.consistent)
    status = SnapshotStatus(host=volume.status.host)
    name = f"{volume.name}@{body.name}"
    return new_resource("snapshot", name, spec, status, project=project, labels=body.labels)


def _of_instance(tx: Transaction, project: str, body: SnapshotCreate) -> Snapshot:
    instance = find_instance(tx, project, body.instance)
    status = instance.status
    ids = [id for id in (status.volume, *status.disks.values(), *status.volumes.values()) if id]
    if not ids:
        raise Conflict(f"{instance.name} has no volume", hint=f"a {instance.spec.isolation} writes to none of its own")
    for id in ids:
        volume: Volume | None = tx.by_id(id)
        if volume is not None:
            check_idle(tx, volume)
    spec = SnapshotSpec(instance=instance.id, volumes=ids, consistent=body.consistent, memory=body.memory)
    seen = SnapshotStatus(host=status.host)
    if body.memory:
        check_running(instance)
        seen.origin = of_instance(instance)
    name = f"{instance.name}@{body.name}"
    return new_resource("snapshot", name, spec, seen, project=project, labels=body.labels)


def check_running(instance: Instance) -> None:
    """:raise Conflict: when *instance* has no memory to keep now. :raise Unsupported: when its level can keep none."""
    check_keeps_memory(instance.spec, "kept with its memory")
    if instance.status.phase is not Phase.RUNNING or instance.spec.power is not Power.RUNNING:
        raise Conflict(
            f"{instance.name} is {instance.status.phase}: it has no memory that could be kept",
            hint=f"lamella {'resume' if instance.status.phase in (Phase.PAUSED, Phase.SUSPENDED) else 'start'} {instance.name}",
        )


def _check_free(tx: Transaction, snapshot: Snapshot) -> None:
    """:raise Conflict: when something stands on *snapshot*, or has yet to begin with its memory."""
    if waiting := awaiting(tx, snapshot):
        raise Conflict(
            f"{waiting[0].name} begins with the memory of snapshot {snapshot.name} when it runs next",
            hint=f"lamella start {waiting[0].name}, or remove it",
        )
    if on := standing(tx, snapshot):
        names = sorted(
            owner.name if (owner := tx.by_id(item.spec.owner or "")) is not None else item.name for item in on
        )
        raise Conflict(
            f"{', '.join(names[:5])} began as snapshot {snapshot.name}, and stands on it",
            hint="remove what stands on it first",
        )


def _volumes(tx: Transaction, snapshot: Snapshot) -> list[Volume]:
    """Those of its volumes that are still there."""
    return [volume for id in held(snapshot) if (volume := tx.by_id(id)) is not None]


def _placed(tx: Transaction, snapshot: Snapshot) -> tuple[list[Volume], str | None]:
    """:func:`_volumes`, and the host that is asked about them."""
    volumes = _volumes(tx, snapshot)
    return volumes, host_of_snapshot(tx, snapshot, volumes)


def _whose(tx: Transaction, snapshot: Snapshot) -> Instance | None:
    """The instance whose guest can be asked to hold still: the one that it is of, or the one that has the volume open."""
    if snapshot.spec.instance is not None:
        instance: Instance | None = tx.by_id(snapshot.spec.instance)
        return instance if instance is not None and instance.status.phase in _RUNS else None
    running = [one for volume in _volumes(tx, snapshot) for one in users(tx, volume) if one.status.phase in _RUNS]
    return running[0] if len(running) == 1 else None


def check_rests(tx: Transaction, volume: Volume) -> None:
    """:raise Conflict: when an instance that runs, or is about to, has *volume*."""
    check_idle(tx, volume)
    owner = tx.by_id(volume.spec.owner) if volume.spec.owner is not None and not is_left(volume) else None
    for instance in [*([owner] if owner is not None else []), *users(tx, volume)]:
        due = instance.spec.power is not Power.STOPPED and instance.status.epoch < instance.spec.epoch
        if instance.status.phase not in _RESTS or due:
            raise Conflict(
                f"volume {volume.name} is in use: {instance.name} is {instance.status.phase}",
                hint=f"lamella stop {instance.name}",
            )


def _taken(tx: Transaction, id: str, host: str | None, seen: SnapshotStatus) -> None:
    snapshot: Snapshot | None = tx.by_id(id)
    if snapshot is None:
        return
    status = snapshot.status
    status.host = host
    status.consistency, status.taken_at = seen.consistency, seen.taken_at or now()
    status.pause, status.sizes, status.memory = seen.pause, seen.sizes, seen.memory
    status.origin = seen.origin
    status.conditions = [*drop(status.conditions, READY), *seen.conditions]
    if status.phase is StoragePhase.PENDING:
        status.phase = StoragePhase.READY
        pause = f", writers stood still for {status.pause * 1000:.0f} ms" if status.pause else ""
        record(tx, snapshot, "snapshot.created", f"snapshot {snapshot.name} is {status.consistency}-consistent{pause}")
    tx.update(snapshot)


def _forgotten(tx: Transaction, id: str) -> None:
    snapshot: Snapshot | None = tx.by_id(id)
    if snapshot is not None:
        snapshot.status.memory = 0
        snapshot.status.conditions = drop(snapshot.status.conditions, READY)
        tx.update(snapshot)


def _restored(tx: Transaction, snapshot: Snapshot, operation: Operation) -> None:
    memory = "memory" in operation.spec.arguments
    going_back.settle(tx, snapshot, _volumes(tx, snapshot), memory=memory)
    # Once: whatever was started since writes to these disks.
    current: Operation | None = tx.by_id(operation.id)
    if current is not None:
        current.spec.arguments[_WENT_BACK] = "yes"
        tx.update(current)
    for volume in _volumes(tx, snapshot):
        size = snapshot.status.sizes.get(volume.id)
        if size and volume.spec.owner is None and size != volume.spec.size:
            volume.spec.size = volume.status.size = size
            volume = tx.update(volume)
            volume.status.observed_generation = volume.generation
            volume = tx.update(volume)
        record(tx, volume, "volume.restored", f"volume {volume.name} is what it was: {snapshot.name}")


def _failed(tx: Transaction, row: Any, step: Step, error: LamellaError) -> None:
    snapshot: Snapshot = row
    status = snapshot.status
    status.conditions = put(status.conditions, of(error))
    if not isinstance(error, Unavailable):
        if step is Step.CHANGE:
            record(tx, snapshot, "snapshot.kept", f"the memory of {snapshot.name} cannot be removed: {error.message}")
        elif step is Step.MAKE:
            status.phase = StoragePhase.FAILED
            record(tx, snapshot, "snapshot.failed", f"snapshot {snapshot.name} cannot be taken: {error.message}")
        else:
            status.phase = StoragePhase.READY if status.taken_at is not None else StoragePhase.FAILED
            status.conditions = drop(status.conditions, READY)
            snapshot.deleted_at = None
            record(tx, snapshot, "snapshot.kept", f"snapshot {snapshot.name} cannot be removed: {error.message}")
    tx.update(snapshot)


def _condemn(tx: Transaction, id: str) -> None:
    snapshot: Snapshot | None = tx.by_id(id)
    if snapshot is not None and snapshot.status.phase in (StoragePhase.PENDING, StoragePhase.FAILED):
        snapshot.status.phase, snapshot.deleted_at = StoragePhase.DELETING, now()
        tx.update(snapshot)


def _gone(tx: Transaction, id: str) -> list[str]:
    """Nothing is left of it; ids of the volumes that were kept for it alone."""
    snapshot: Snapshot | None = tx.by_id(id)
    if snapshot is None:
        return []
    record(tx, snapshot, "snapshot.removed", f"snapshot {snapshot.name} is removed")
    tx.delete(id)
    return inherit(tx, id)
