"""The verbs on volumes: each writes intent in one transaction; the storekeeper has the host make it so."""

from collections.abc import Callable
from typing import Any

import msgspec

from lamella.control.events import record
from lamella.control.instances import Instances
from lamella.control.lookup import need_project
from lamella.control.merging import merge_labels, merge_patch
from lamella.control.storage.asking import Hosts
from lamella.control.storage.attaching import check_idle, check_usable, users
from lamella.control.storage.cloning import begin_clone
from lamella.control.storage.conditions import SPACE, put
from lamella.control.storage.fitting import SMALLEST, check_limits, check_passphrase, check_pool, settled_spec, whole
from lamella.control.storage.keeper import Keeper
from lamella.control.storage.lookup import find_pool, find_volume, snapshots_of
from lamella.control.storage.making import Making
from lamella.control.storage.operations import Job, Operations
from lamella.control.storage.placing import host_for, host_of
from lamella.control.storage.renaming import rename
from lamella.model.errors import Conflict, DeadlineExceeded, Invalid, LamellaError, Unsupported
from lamella.model.ids import check_name
from lamella.model.instance import TAKES_SOCKETS, Phase
from lamella.model.operation import Operation
from lamella.model.quantity import format_size
from lamella.model.requests import Principal, ResourcePatch
from lamella.model.resource import Condition, new_resource, now
from lamella.model.storage import KeyWrap, Pool, StoragePhase, Volume, VolumeMount, VolumeSpec, VolumeStatus
from lamella.model.storage_bodies import VolumeAttach, VolumeCreate, VolumeDetach
from lamella.model.validation import invalid
from lamella.store.store import Audit, Store, Transaction

# Seconds that an operation waits for its host to join, and for its volume to come to rest.
PATIENCE = 60.0
LONGEST = 86400.0

# What of a spec can be changed by a patch, and the verb for each of the others.
_PATCHABLE = frozenset({"limits", "shred"})
_INSTEAD = {"size": "lamella volume resize", "pool": "lamella volume move", "encryption": "lamella volume rekey"}


class Volumes:
    """Intent for volumes with a life of their own."""

    def __init__(
        self, store: Store, keeper: Keeper, operations: Operations, hosts: Hosts, instances: Instances
    ) -> None:
        self._store = store
        self._keeper = keeper
        self._operations = operations
        self._hosts = hosts
        self._instances = instances
        operations.add("resize", self._resize, again=True)
        self._making = Making(store, keeper, hosts)

    async def create(
        self, who: Principal, project: str, body: VolumeCreate, *, wait: float, idempotency_key: str | None = None
    ) -> Volume:
        """:raise NotFound: when there is no such pool or source. :raise LamellaError: what the host says; nothing is left then."""
        check_name(body.name)
        if not body.source:
            check_passphrase(body.spec.encryption, body.passphrase)

        def write(tx: Transaction) -> tuple[Volume, bool]:
            space = f"idempotency:{project}"
            before = tx.by_id(tx.claims(space).get(idempotency_key, "")) if idempotency_key is not None else None
            if before is not None:
                return before, False
            need_project(tx, project)
            volume = self._new(tx, project, body)
            if idempotency_key is not None:
                tx.claim(space, idempotency_key, volume.id)
            record(tx, volume, "volume.created", f"{who.name} created volume {volume.name} in pool {volume.spec.pool}")
            tx.audit(Audit(principal=who.name, verb="create", subject=f"volume/{project}/{volume.name}"))
            return volume, True

        volume, new = await self._store.write(write)
        if new:
            self._making.keep_passphrase(volume.id, body.passphrase)
        try:
            await self._keeper.settle(volume.id, wait)
        except DeadlineExceeded:
            raise
        except LamellaError:
            if new:
                # Whoever waited has the answer; the name is free again.
                await self.give_up(volume.id)
            raise
        return await self._store.by_id(volume.id)

    async def give_up(self, id: str) -> None:
        """A volume that never became what was asked goes; one that is ready stays."""
        await self._store.write(lambda tx: _condemn(tx, id))
        self._keeper.drive(id)

    def _new(self, tx: Transaction, project: str, body: VolumeCreate) -> Volume:
        # A retry of the transaction must start from what was asked.
        spec = msgspec.convert(msgspec.to_builtins(body.spec), VolumeSpec)
        status = VolumeStatus(phase=StoragePhase.PENDING)
        volume: Volume = new_resource("volume", body.name, spec, status, project=project, labels=body.labels)
        if body.source:
            begin_clone(tx, volume, body.source)
            if volume.spec.encryption is KeyWrap.PASSPHRASE:
                check_passphrase(volume.spec.encryption, body.passphrase)
        else:
            volume.spec = settled_spec(spec)
        pool = find_pool(tx, volume.spec.pool, field="spec.pool")
        volume.spec.pool = pool.name
        if pool.status.phase is not StoragePhase.READY:
            raise Conflict(
                f"pool {pool.name} is {pool.status.phase}", hint=f"lamella pool show {pool.name}", field="spec.pool"
            )
        if volume.status.host is None:
            volume.status.host = host_for(pool, tx.list("host")).id
        why = check_pool(pool, volume.spec)
        if why and volume.spec.source is None:
            volume.status.conditions = put([], _overcommitted(why))
        volume = tx.insert(volume)
        if volume.status.conditions:
            record(tx, volume, "volume.overcommitted", why)
        return volume

    async def patch(
        self, who: Principal, project: str, name: str, body: ResourcePatch, *, expected: int | None, wait: float
    ) -> Volume:
        """Labels, limits (in force at once, if it is open) and whether it is shredded."""

        def change(tx: Transaction, volume: Volume) -> None:
            if isinstance(body.labels, dict):
                merge_labels(volume.labels, body.labels)
            if isinstance(body.spec, dict):
                check_usable(tx, volume)
                group = volume.spec.limits.group
                volume.spec = _patched(volume.spec, body.spec)
                if volume.spec.limits.group not in ("", group):
                    _check_sharing(tx, volume)

        return await self._change(who, project, name, "patch", change, expected=expected, wait=wait)

    async def delete(
        self, who: Principal, project: str, name: str, *, force: bool, expected: int | None, wait: float
    ) -> None:
        """With *force* its snapshots go, too.

        :raise Conflict: when an instance names it, it has snapshots, or others stand on them.
        """

        def write(tx: Transaction) -> Volume:
            volume = find_volume(tx, project, name)
            if volume.spec.owner is not None:
                raise Conflict(
                    f"volume {volume.name} is an instance's own",
                    hint="it goes with the instance: lamella rm; or lamella device detach",
                )
            using = users(tx, volume)
            if using:
                raise Conflict(
                    f"volume {volume.name} is attached to {', '.join(i.name for i in using[:5])}",
                    hint=f"lamella volume detach {volume.name} {using[0].name}",
                )
            check_idle(tx, volume)
            kept = [item.name for item in snapshots_of(tx, volume) if item.spec.owner is None]
            if kept and not force:
                raise Conflict(
                    f"volume {volume.name} has {len(kept)} snapshot{'s' if len(kept) > 1 else ''}: {', '.join(kept[:5])}",
                    hint="lamella snapshot rm, or --force: they go with it",
                )
            volume.status.phase, volume.deleted_at = StoragePhase.DELETING, volume.deleted_at or now()
            tx.audit(Audit(principal=who.name, verb="delete", subject=f"volume/{project}/{volume.name}"))
            return tx.update(volume, expected=expected)

        volume = await self._store.write(write)
        await self._keeper.settle(volume.id, wait)

    async def rename(self, who: Principal, project: str, name: str, new: str) -> Volume:
        """Its snapshots, and the specs of the instances that name it, follow.

        :raise Conflict: when the name is taken.
        """
        check_name(new)

        def write(tx: Transaction) -> Volume:
            volume = find_volume(tx, project, name)
            if volume.spec.owner is not None:
                raise Conflict(f"volume {volume.name} is an instance's own", hint="it is called after its device")
            tx.audit(Audit(principal=who.name, verb="rename", subject=f"volume/{project}/{volume.name}", detail=new))
            return rename(tx, volume, new)

        return await self._store.write(write)

    async def attach(self, who: Principal, project: str, name: str, body: VolumeAttach, *, wait: float) -> Volume:
        """Into an instance: what its spec says of volumes is changed."""
        volume = await self._store.read(lambda tx: find_volume(tx, project, name))
        mount = VolumeMount(volume=volume.name, target=body.target, read_only=body.read_only)
        await self._instances.mount(who, project, body.instance, mount, wait=wait)
        return await self._store.by_id(volume.id)

    async def detach(self, who: Principal, project: str, name: str, body: VolumeDetach, *, wait: float) -> Volume:
        """Out of an instance."""
        volume = await self._store.read(lambda tx: find_volume(tx, project, name))
        await self._instances.unmount(who, project, body.instance, volume, wait=wait)
        return await self._store.by_id(volume.id)

    async def resize(
        self, who: Principal, project: str, name: str, size: int, *, wait: float, expected: int | None = None
    ) -> Operation:
        """Ask for *size* bytes, open or not. What cannot be done without loss is not done, and the operation says so."""

        def write(tx: Transaction) -> Operation:
            volume = find_volume(tx, project, name)
            check_usable(tx, volume)
            _check_none_suspended(tx, volume)
            pool: Pool | None = tx.get("pool", "default", volume.spec.pool)
            volume.spec.size = whole(size)
            if size < SMALLEST:
                raise Invalid(f"a volume has at least {format_size(SMALLEST)}", field="size")
            grown = msgspec.structs.replace(volume.spec, size=max(0, volume.spec.size - volume.status.size))
            why = check_pool(pool, grown) if pool is not None else ""
            if why:
                volume.status.conditions = put(volume.status.conditions, _overcommitted(why))
            tx.audit(Audit(principal=who.name, verb="resize", subject=f"volume/{project}/{volume.name}"))
            tx.update(volume, expected=expected)
            return self._operations.intend(tx, who, project, "resize", f"volume/{volume.name}", {"volume": volume.id})

        operation = await self._store.write(write)
        self._operations.start(operation)
        return await self._operations.finish(operation, wait)

    async def _resize(self, job: Job) -> str:
        id = job.arguments["volume"]
        volume: Volume = await self._store.by_id(id)
        await self._hosts.reach(await self._store.read(lambda tx: host_of(tx, volume)), patience=PATIENCE)
        await self._keeper.settle(id, LONGEST, job.tell)
        return (await self._store.by_id(id)).name

    async def _change(
        self,
        who: Principal,
        project: str,
        name: str,
        verb: str,
        change: Callable[[Transaction, Volume], None],
        *,
        expected: int | None,
        wait: float,
    ) -> Volume:
        def write(tx: Transaction) -> Volume:
            volume = find_volume(tx, project, name)
            change(tx, volume)
            tx.audit(Audit(principal=who.name, verb=verb, subject=f"volume/{project}/{volume.name}"))
            return tx.update(volume, expected=expected)

        volume = await self._store.write(write)
        await self._keeper.settle(volume.id, wait)
        return await self._store.by_id(volume.id)


def _patched(spec: VolumeSpec, patch: dict[str, Any]) -> VolumeSpec:
    try:
        wanted = msgspec.convert(merge_patch(msgspec.to_builtins(spec), patch), VolumeSpec)
    except msgspec.ValidationError as error:
        raise invalid(str(error), "the change", "spec") from None
    for field in VolumeSpec.__struct_fields__:
        if field not in _PATCHABLE and getattr(wanted, field) != getattr(spec, field):
            raise Unsupported(
                f"spec.{field} of a volume is not changed so",
                hint=_INSTEAD.get(field, "make another volume, and copy"),
                field=f"spec.{field}",
            )
    check_limits(wanted)
    return wanted


def _check_none_suspended(tx: Transaction, volume: Volume) -> None:
    """:raise Conflict: when the memory of an instance that is suspended knows *volume* as it is."""
    for instance in users(tx, volume):
        if instance.status.phase is Phase.SUSPENDED:
            raise Conflict(
                f"volume {volume.name} keeps its size while {instance.name} is suspended",
                hint=f"lamella resume {instance.name}, or stop it",
            )


def _check_sharing(tx: Transaction, volume: Volume) -> None:
    """:raise Conflict: when a machine that runs may be served it by a process of its own, where shared limits do not reach."""
    for instance in users(tx, volume):
        alone = any(mount.volume == volume.name and not mount.read_only for mount in instance.spec.volumes)
        runs = instance.status.phase not in (Phase.STOPPED, Phase.FAILED, Phase.PENDING)
        if alone and runs and instance.spec.isolation in TAKES_SOCKETS:
            raise Conflict(
                f"volume {volume.name} cannot get limits that are shared while {instance.name} is {instance.status.phase}",
                hint=f"stop {instance.name} first, or set limits of its own",
                field="spec.limits.group",
            )


def _overcommitted(why: str) -> Condition:
    return Condition(
        type=SPACE,
        status=False,
        reason="overcommitted",
        message=why,
        hint="it is thin: writers wait when the pool is full; lamella pool ls tells what is free",
    )


def _condemn(tx: Transaction, id: str) -> None:
    volume: Volume | None = tx.by_id(id)
    if volume is not None and volume.status.phase in (StoragePhase.PENDING, StoragePhase.FAILED):
        volume.status.phase, volume.deleted_at = StoragePhase.DELETING, now()
        tx.update(volume)
