"""What a contract says of a volume that is attached to an instance: where it lies, who writes, what bounds it. Pure but for one look."""

import msgspec

from lamella.model.contract import Line
from lamella.model.instance import Instance
from lamella.model.quantity import format_size
from lamella.model.storage import Feature, KeyWrap, Pool, Volume, VolumeForm, VolumeMount
from lamella.store.store import Transaction

_WRAPS = {
    KeyWrap.KEY_FILE: "a key file of the host",
    KeyWrap.PASSPHRASE: "a passphrase that is written down nowhere",
    KeyWrap.TPM: "the host's TPM",
}


class Promised(msgspec.Struct, kw_only=True, frozen=True):
    """One attached volume with its pool, which may be gone."""

    mount: VolumeMount
    volume: Volume
    pool: Pool | None


def described(tx: Transaction, instance: Instance) -> list[Promised]:
    """The volumes with a life of their own that *instance* has, in its order."""
    found: list[Promised] = []
    for mount in instance.spec.volumes:
        volume: Volume | None = tx.by_id(instance.status.volumes.get(mount.volume, ""))
        if volume is not None:
            found.append(Promised(mount=mount, volume=volume, pool=tx.get("pool", "default", volume.spec.pool)))
    return found


def guarantees_of(item: Promised) -> list[Line]:
    """Where it lies, who may write to it, whether it is encrypted, what a snapshot of it holds."""
    subject, volume, features = f"volume {item.volume.name}", item.volume, _features(item.pool)
    place = f"pool {volume.spec.pool}" + (f" ({item.pool.spec.driver})" if item.pool is not None else "")
    stays = "it stays when the instance goes"
    lines = [
        Line(subject=subject, value=f"lies in {place}; {stays}", enforced_by="a row of its own in the store"),
        _writer(item),
    ]
    if volume.spec.encryption is not None:
        wrapped = _WRAPS[volume.spec.encryption]
        lines.append(
            Line(
                subject=subject,
                value=f"encrypted: the pool holds ciphertext only; its key is wrapped by {wrapped}",
                enforced_by="LUKS in the storage process",
            )
        )
    else:
        lines.append(Line(subject=subject, value="not encrypted: whoever reads the pool reads it"))
    if volume.spec.form is VolumeForm.BLOCK:
        by = "the pool's own snapshots" if Feature.SNAPSHOT in features else "layers of the storage process"
        lines.append(
            Line(
                subject=subject,
                value="a snapshot holds what was written and flushed before it, as after a power cut; with --consistent the "
                "guest's filesystems are frozen meanwhile",
                enforced_by=by,
            )
        )
    return lines


def _writer(item: Promised) -> Line:
    subject = f"volume {item.volume.name}"
    if item.volume.spec.form is VolumeForm.FILESYSTEM:
        return Line(subject=subject, value="a directory tree: several instances may write to it at once")
    if item.mount.read_only:
        return Line(
            subject=subject, value="read only here, and nobody writes to it", enforced_by="a claim in the store"
        )
    return Line(
        subject=subject,
        value="nobody else has it",
        enforced_by="a claim in the store; the storage process opens it once; locks in the format",
    )


def limits_of(item: Promised, *, running: bool) -> Line:
    """The bounds of its rate and size."""
    spec, limits = item.volume.spec, item.volume.spec.limits
    subject = f"volume {item.volume.name}"
    asked = [
        f"{limits.iops} operations a second" if limits.iops is not None else "",
        f"{format_size(limits.bandwidth)} a second" if limits.bandwidth is not None else "",
        f"shared by group {limits.group}" if limits.group else "",
    ]
    size = format_size(item.volume.status.size) if item.volume.status.size else "no size of its own: the pool's room"
    if spec.form is VolumeForm.FILESYSTEM:
        by = "quota of the pool" if Feature.QUOTA in _features(item.pool) and spec.size else ""
        return Line(subject=subject, value=size, enforced_by=by)
    if not limits.limited:
        return Line(subject=subject, value=f"{size}; no bound on its rate", enforced_by="the size of the disk")
    wanted = ", ".join(part for part in asked if part)
    if not running:
        return Line(subject=subject, value=f"{size}; not running: nothing to read", asked=wanted)
    return Line(subject=subject, value=f"{size}; {wanted}", enforced_by="throttle of the storage process", asked=wanted)


def _features(pool: Pool | None) -> list[str]:
    return pool.status.features if pool is not None else []
