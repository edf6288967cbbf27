"""Going back to a snapshot that holds a memory: whether that is possible, and which run goes on from it."""

from collections.abc import Sequence

from lamella.control import huge_pages
from lamella.control.copying import HARDWARE, origin_of
from lamella.control.handing_out import check_room, held
from lamella.control.intent import apply_power
from lamella.control.pinning import settle_pins
from lamella.control.storage.lookup import held as volumes_of
from lamella.model.errors import Conflict, NotFound
from lamella.model.instance import Beginning, Instance
from lamella.model.storage import Snapshot, Volume
from lamella.store.store import Transaction


def check(tx: Transaction, snapshot: Snapshot) -> None:
    """That the instance of *snapshot* is the machine whose memory it holds.

    :raise NotFound: when it is gone. :raise Conflict: when it has other hardware or other volumes by now; it says which.
    """
    origin = origin_of(snapshot)
    instance = _instance(tx, snapshot)
    spec, status = instance.spec, instance.status
    for field in HARDWARE:
        if getattr(spec, field) != getattr(origin.spec, field):
            raise Conflict(
                f"{instance.name} has another spec.{field} than when {snapshot.name} was taken, and its memory fits no other machine",
                hint="set it back, or restore with --disks: its disks alone go back",
                field=f"spec.{field}",
            )
    has = {id for id in (status.volume, *status.disks.values(), *status.volumes.values()) if id}
    if has != set(volumes_of(snapshot)) or len(spec.nics) != len(origin.spec.nics):
        raise Conflict(
            f"{instance.name} has other volumes or NICs than when {snapshot.name} was taken, and its memory knows of those",
            hint="restore with --disks: its disks alone go back",
        )


def owner_of(tx: Transaction, snapshot: Snapshot, volumes: Sequence[Volume]) -> Instance:
    """The instance that is started when *snapshot*, which is of *volumes*, has been gone back to.

    :raise Conflict: when there is none, or several.
    """
    if snapshot.spec.instance is not None:
        return _instance(tx, snapshot)
    ids = {id for volume in volumes for id in (*volume.status.attached, volume.spec.owner or "")}
    found = [row for id in ids if (row := tx.by_id(id)) is not None and row.kind == "instance"]
    if len(found) != 1:
        raise Conflict(
            f"{len(found)} instances have the volume of snapshot {snapshot.name}: there is not one to start",
            hint="leave out --start",
        )
    return found[0]


def settle(tx: Transaction, snapshot: Snapshot, volumes: Sequence[Volume], *, memory: bool) -> None:
    """*volumes* are what they were: with *memory* the next run of the instance goes on from what *snapshot* holds. A memory of any other
    instant knows other disks: nobody goes on from it."""
    ids = {id for volume in volumes for id in (*volume.status.attached, volume.spec.owner or "")}
    for id in ids:
        row = tx.by_id(id)
        if row is not None and row.kind == "instance" and row.status.beginning is not None:
            row.status.beginning = None
            tx.update(row)
    instance: Instance | None = tx.by_id(snapshot.spec.instance or "") if memory else None
    if instance is not None:
        instance.status.beginning = Beginning(snapshot=snapshot.id, epoch=instance.spec.epoch + 1)
        tx.update(instance)


def start(tx: Transaction, id: str) -> None:
    """Ask the instance *id* to run. :raise NoRoom: when its host has none for it."""
    instance: Instance | None = tx.by_id(id)
    if instance is None or instance.deleted_at is not None:
        return
    had = held(instance)
    huge_pages.check_start(tx, instance)
    apply_power(instance, "start")
    settle_pins(tx, instance)
    check_room(tx, instance, had)
    tx.update(instance)


def _instance(tx: Transaction, snapshot: Snapshot) -> Instance:
    instance: Instance | None = tx.by_id(snapshot.spec.instance or "")
    if instance is None or instance.deleted_at is not None:
        raise NotFound(f"the instance of snapshot {snapshot.name} is gone")
    return instance
