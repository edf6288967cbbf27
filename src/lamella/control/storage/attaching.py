"""Volumes in instances: what a spec names, found and claimed in the transaction that writes the spec; let go when the host has.

A block volume has one writer, or readers only: the claim ``writer`` in the store says who, for as long as the instance names it, whether
it runs or not. A filesystem volume can be shared.
"""

from collections.abc import Sequence

import msgspec

from lamella.control.events import record
from lamella.control.storage.conditions import USABLE
from lamella.control.storage.fitting import check_form
from lamella.control.storage.lookup import find_volume
from lamella.model.errors import Conflict, NoRoom, Unsupported
from lamella.model.host import Host
from lamella.model.instance import Instance, InstanceSpec
from lamella.model.operation import Operation
from lamella.model.storage import Feature, Pool, StoragePhase, Volume, VolumeForm, VolumeMount
from lamella.store.store import Transaction

WRITER = "writer"
BUSY = "busy"


class Named(msgspec.Struct, kw_only=True, frozen=True):
    """A volume that a spec names. ``shared`` says that every host can reach it."""

    mount: VolumeMount
    volume: Volume
    shared: bool = False


def resolve(tx: Transaction, project: str, spec: InstanceSpec) -> list[Named]:
    """The volumes of *spec*, in its order.

    :raise NotFound: when there is none of that name; the hint makes one.
    :raise Conflict: when one is not ready, or belongs to an instance. :raise Unsupported: when this level cannot have it so.
    """
    found: list[Named] = []
    for mount in spec.volumes:
        volume = find_volume(tx, project, mount.volume, field="spec.volumes")
        check_usable(tx, volume)
        check_openable(volume)
        check_form(spec, mount, volume)
        found.append(Named(mount=mount, volume=volume, shared=_shared(tx, volume)))
    return found


def check_usable(tx: Transaction, volume: Volume) -> None:
    """:raise Conflict: when *volume* is not ready, is an instance's own, or something long goes on with it."""
    if volume.spec.owner is not None:
        raise Conflict(
            f"volume {volume.name} is an instance's own, and goes with it",
            hint="make one with a life of its own: lamella volume create NAME --size SIZE",
        )
    if volume.status.phase is not StoragePhase.READY:
        raise Conflict(f"volume {volume.name} is {volume.status.phase}", hint=f"lamella volume show {volume.name}")
    check_idle(tx, volume)


def check_openable(volume: Volume) -> None:
    """:raise Conflict: when *volume* is a replica, or was replaced by one: its own sentence says which."""
    for condition in volume.status.conditions:
        if condition.type == USABLE and not condition.status:
            raise Conflict(f"volume {volume.name} cannot be used: {condition.message}", hint=condition.hint)


def check_idle(tx: Transaction, volume: Volume) -> None:
    """:raise Conflict: when a long operation has *volume* to itself; names it."""
    holder = tx.claims(BUSY).get(volume.id)
    operation = tx.by_id(holder) if holder is not None else None
    if operation is not None:
        raise Conflict(
            f"volume {volume.name} is busy: {operation.spec.verb} goes on",
            hint=f"lamella operation show {operation.id}",
        )


def free(tx: Transaction, operation: Operation) -> None:
    """Whatever *operation* had to itself is free again."""
    for id, holder in tx.claims(BUSY).items():
        if holder == operation.id:
            tx.release(BUSY, id, holder)


def _shared(tx: Transaction, volume: Volume) -> bool:
    pool: Pool | None = tx.get("pool", "default", volume.spec.pool)
    return pool is not None and Feature.SHARED in pool.status.features


def able_hosts(hosts: Sequence[Host], named: Sequence[Named]) -> list[Host]:
    """Those of *hosts* that can reach all volumes.

    :raise Conflict: when volumes lie on different hosts.
    """
    bound = {item.volume.status.host: item for item in named if not item.shared and item.volume.status.host}
    if len(bound) > 1:
        names = " and ".join(item.volume.name for item in bound.values())
        raise Conflict(f"volumes {names} lie on different hosts", hint="move one, or use one", field="spec.volumes")
    able = [host for host in hosts if not bound or host.id in bound]
    if not able and bound:
        name = next(iter(bound.values())).volume.name
        raise NoRoom(
            f"the host of volume {name} is not there",
            hint="`lamella host ls` tells which hosts are",
            field="spec.volumes",
        )
    return able


def attach(tx: Transaction, instance: Instance, named: Sequence[Named]) -> None:
    """Claim *named* for *instance* and note them in its status; what the status had and *named* has not is retired, until the host has
    let go of it.

    :raise Conflict: when another instance has a block volume open in a way that cannot be shared; names it.
    :raise Unsupported: when one lies on another host than the instance.
    """
    status = instance.status
    wanted = {item.mount.volume: item.volume.id for item in named}
    for id in status.volumes.values():
        if id not in wanted.values() and id not in status.retired:
            status.retired.append(id)
            volume = tx.by_id(id)
            if volume is not None:
                record(tx, volume, "volume.detached", f"volume {volume.name} is taken out of {instance.name}")
    for item in named:
        host = item.volume.status.host
        if not item.shared and host is not None and status.host is not None and host != status.host:
            raise Unsupported(
                f"volume {item.volume.name} lies on another host than {instance.name}",
                hint="move it into a pool that all hosts can reach",
                field="spec.volumes",
            )
        _claim(tx, instance, item)
        if item.volume.id not in status.volumes.values():
            record(tx, item.volume, "volume.attached", f"volume {item.volume.name} is attached to {instance.name}")
    status.retired = [id for id in status.retired if id not in wanted.values()]
    status.volumes = wanted


def _claim(tx: Transaction, instance: Instance, item: Named) -> None:
    # As it is in this transaction, which may have written it since it was found.
    volume: Volume = tx.by_id(item.volume.id) or item.volume
    if volume.spec.form is VolumeForm.BLOCK:
        others = [other for id in volume.status.attached if id != instance.id and (other := tx.by_id(id)) is not None]
        writer = tx.claims(WRITER).get(volume.id)
        in_the_way = [other for other in others if not item.mount.read_only or other.id == writer]
        if in_the_way:
            first = in_the_way[0]
            raise Conflict(
                f"volume {volume.name} is attached to {first.name}{', which may write to it' if first.id == writer else ''}",
                hint=f"lamella volume detach {volume.name} {first.name}; a block volume has one writer, or readers only",
                field="spec.volumes",
            )
        if item.mount.read_only:
            tx.release(WRITER, volume.id, instance.id)
        else:
            tx.claim(WRITER, volume.id, instance.id)
    if instance.id not in volume.status.attached:
        volume.status.attached.append(instance.id)
        tx.update(volume)


def let_go(tx: Transaction, instance: Instance, volume: Volume) -> None:
    """The host has closed *volume* for *instance*: others may have it."""
    tx.release(WRITER, volume.id, instance.id)
    if instance.id in volume.status.attached:
        volume.status.attached.remove(instance.id)
        tx.update(volume)


def users(tx: Transaction, volume: Volume) -> list[Instance]:
    """The instances that name *volume*."""
    return [instance for id in volume.status.attached if (instance := tx.by_id(id)) is not None]
