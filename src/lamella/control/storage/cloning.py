"""A volume that begins as another one, or as a snapshot of it: what it takes over, and the snapshot that it stands on."""

from lamella.control.storage.attaching import check_usable
from lamella.control.storage.fitting import check_limits, whole
from lamella.control.storage.holding import check_stays
from lamella.control.storage.lookup import find_snapshot, find_volume, held
from lamella.model.errors import Conflict, Invalid, NotFound, Unsupported
from lamella.model.quantity import format_size
from lamella.model.resource import new_resource
from lamella.model.storage import Snapshot, SnapshotSpec, SnapshotStatus, StoragePhase, Volume
from lamella.store.store import Transaction

DEFAULT = "default"


def begin_clone(tx: Transaction, volume: Volume, source: str) -> None:
    """Make *volume*, which is in no row yet, a clone of *source*: ``data@nightly``, or ``data`` as it is in a moment.

    :raise NotFound: when there is no such volume or snapshot. :raise Conflict: when it is not ready.
    :raise Invalid: when it would have to be smaller. :raise Unsupported: when the snapshot is of several volumes.
    """
    if "@" in source or source.startswith("snap_"):
        snapshot = find_snapshot(tx, volume.project, source, field="source")
        origin = _only_volume(tx, snapshot)
        check_stays(tx, origin)
        if snapshot.status.phase is not StoragePhase.READY:
            raise Conflict(f"snapshot {snapshot.name} is {snapshot.status.phase}", hint="wait until it is ready")
    else:
        origin = find_volume(tx, volume.project, source, field="source")
        check_usable(tx, origin)
        snapshot = tx.insert(_passing(volume, origin))
    spec, of = volume.spec, origin.spec
    if spec.owner is not None or spec.source is not None:
        raise Invalid("an owner and a source are not set by hand", hint="leave them out", field="spec")
    had = snapshot.status.sizes.get(origin.id) or origin.status.size or of.size
    if spec.size and spec.size < had:
        raise Invalid(
            f"{origin.name} has {format_size(had)}: its clone cannot have less",
            hint="leave --size out, and resize it afterwards",
            field="spec.size",
        )
    # In another pool, or with another key, it is a copy: its host sees to that.
    spec.pool = of.pool if spec.pool == DEFAULT else spec.pool
    spec.encryption = spec.encryption or of.encryption
    spec.form, spec.filesystem = of.form, of.filesystem
    spec.size = whole(spec.size or had)
    spec.source = snapshot.id
    volume.status.host = origin.status.host
    check_limits(spec)


def _passing(volume: Volume, origin: Volume) -> Snapshot:
    """A snapshot of *origin* that is *volume*'s, and goes with it."""
    return new_resource(
        "snapshot",
        f"{origin.name}@for-{volume.id.replace('_', '-')}",
        SnapshotSpec(volume=origin.id, owner=volume.id),
        SnapshotStatus(host=origin.status.host),
        project=volume.project,
    )


def _only_volume(tx: Transaction, snapshot: Snapshot) -> Volume:
    ids = held(snapshot)
    if len(ids) != 1:
        raise Unsupported(
            f"snapshot {snapshot.name} is of {len(ids)} volumes", hint="clone a snapshot of one volume", field="source"
        )
    origin: Volume | None = tx.by_id(ids[0])
    if origin is None:
        raise NotFound(f"the volume of snapshot {snapshot.name} is gone", field="source")
    return origin
