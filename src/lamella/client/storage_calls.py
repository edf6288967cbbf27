"""Questions of the library about pools, volumes and snapshots as :class:`Call`."""

from collections.abc import Mapping
from typing import Any, TypedDict

import msgspec

from lamella.client import routes, storage_routes
from lamella.client.call import Call, answer
from lamella.client.wish import Size, size
from lamella.model.errors import Invalid, error_for
from lamella.model.operation import Operation, OperationPhase
from lamella.model.quantity import parse_rate
from lamella.model.requests import ResourcePatch
from lamella.model.storage import KeyWrap, Pool, Snapshot, Volume
from lamella.model.storage_bodies import (
    PoolCreate,
    PoolScrub,
    SnapshotCreate,
    SnapshotRestore,
    StorageCheck,
    VolumeAttach,
    VolumeCreate,
    VolumeDetach,
    VolumeRekey,
    VolumeRename,
    VolumeResize,
    VolumeUnlock,
)
from lamella.model.storage_report import Report

_encode = msgspec.json.Encoder().encode
_LIMITS = ("iops", "bandwidth", "iops_burst", "bandwidth_burst")


class Limits(TypedDict, total=False):
    """``iops`` operations a second, ``bandwidth`` bytes a second or ``"100MiB/s"``; ``None`` takes a bound away. The bursts may last
    ``burst_seconds``; volumes of one project with the same ``group`` share their limits."""

    iops: int | str | None
    bandwidth: int | str | None
    iops_burst: int | str | None
    bandwidth_burst: int | str | None
    burst_seconds: int
    group: str


class VolumeWishes(Limits, total=False):
    """What may be said of a volume beside its name.

    ``size`` is bytes or ``"20GiB"``; ``form`` ``"block"`` or ``"filesystem"``; ``filesystem`` what a block volume is formatted with
    (``"ext4"``; ``""``: nothing); ``encryption`` ``"key-file"``, ``"passphrase"`` or ``"tpm"``, ``True`` the first of them. ``source``
    is the volume (``"data"``) or snapshot (``"data@nightly"``) that it begins as.
    """

    pool: str
    size: Size
    form: str
    filesystem: str
    encryption: str | bool
    passphrase: str
    source: str
    shred: bool
    labels: Mapping[str, str]


def limits(wishes: Mapping[str, Any]) -> dict[str, Any]:
    """The part of *wishes* that is about limits, as the API has it. :raise Invalid: when one is no rate."""
    made: dict[str, Any] = {}
    for name in _LIMITS:
        if name in wishes:
            value = wishes[name]
            made[name] = parse_rate(value, field=name) if isinstance(value, str) else value
    return made | {name: wishes[name] for name in ("burst_seconds", "group") if name in wishes}


def create_volume(project: str, name: str, wishes: VolumeWishes) -> Call[Volume]:
    """:raise Invalid: when a wish is not understood."""
    given: dict[str, Any] = {**wishes}
    spec = {name: given[name] for name in ("pool", "form", "filesystem", "shred") if name in given}
    form = spec.get("form", "block")
    if form == "block" and "source" not in given:
        spec.setdefault("filesystem", "ext4")
    if "size" in given:
        spec["size"] = size(given["size"], field="size")
    wrap = given.get("encryption", KeyWrap.PASSPHRASE if "passphrase" in given else None)
    if wrap is not None and wrap is not False:
        spec["encryption"] = KeyWrap.KEY_FILE if wrap is True else wrap
    bounds = limits(given)
    if bounds:
        spec["limits"] = bounds
    body = {"name": name, "spec": spec, "labels": dict(given.get("labels", {})), "source": given.get("source", "")}
    try:
        checked = msgspec.convert(body | {"passphrase": given.get("passphrase", "")}, VolumeCreate)
    except msgspec.ValidationError as error:
        raise Invalid(f"the volume cannot be asked for: {error}") from error
    return Call(storage_routes.create(project, "volume", _encode(checked)), answer(Volume))


def change_volume(project: str, name: str, wishes: Mapping[str, Any]) -> Call[Volume]:
    """Limits, ``shred`` and ``labels`` (``None`` takes one away)."""
    spec: dict[str, Any] = {"shred": wishes["shred"]} if "shred" in wishes else {}
    bounds = limits(wishes)
    if bounds:
        spec["limits"] = bounds
    labels = dict(wishes["labels"]) if "labels" in wishes else msgspec.UNSET
    body = _encode(ResourcePatch(spec=spec or msgspec.UNSET, labels=labels))
    return Call(routes.patch(project, "volume", name, body, wait=storage_routes.SETTLE), answer(Volume))


def resize_volume(project: str, name: str, wanted: Size) -> Call[Operation]:
    body = _encode(VolumeResize(size=size(wanted, field="size")))
    return Call(storage_routes.verb(project, "volume", name, "resize", body, wait=0), answer(Operation))


def rename_volume(project: str, name: str, new: str) -> Call[Volume]:
    body = _encode(VolumeRename(name=new))
    return Call(storage_routes.verb(project, "volume", name, "rename", body), answer(Volume))


def attach_volume(project: str, name: str, instance: str, target: str, *, read_only: bool) -> Call[Volume]:
    body = _encode(VolumeAttach(instance=instance, target=target, read_only=read_only))
    return Call(storage_routes.verb(project, "volume", name, "attach", body), answer(Volume))


def detach_volume(project: str, name: str, instance: str) -> Call[Volume]:
    body = _encode(VolumeDetach(instance=instance))
    return Call(storage_routes.verb(project, "volume", name, "detach", body), answer(Volume))


def unlock_volume(project: str, name: str, passphrase: str) -> Call[Volume]:
    body = _encode(VolumeUnlock(passphrase=passphrase))
    return Call(storage_routes.verb(project, "volume", name, "unlock", body), answer(Volume))


def rekey_volume(
    project: str, name: str, encryption: str | None, *, passphrase: str, new_passphrase: str
) -> Call[Volume]:
    wrap = msgspec.UNSET if encryption is None else KeyWrap(encryption)
    body = _encode(VolumeRekey(encryption=wrap, passphrase=passphrase, new_passphrase=new_passphrase))
    return Call(storage_routes.verb(project, "volume", name, "rekey", body), answer(Volume))


def create_pool(
    name: str, driver: str, path: str, options: Mapping[str, str], *, warn_below: float | None
) -> Call[Pool]:
    spec: dict[str, Any] = {"driver": driver, "path": path, "options": dict(options)}
    if warn_below is not None:
        spec["warn_below"] = warn_below
    try:
        body = msgspec.convert({"name": name, "spec": spec}, PoolCreate)
    except msgspec.ValidationError as error:
        raise Invalid(f"the pool cannot be asked for: {error}") from error
    return Call(storage_routes.create("default", "pool", _encode(body)), answer(Pool))


def scrub_pool(name: str, *, repair: bool) -> Call[Operation]:
    body = _encode(PoolScrub(repair=repair))
    return Call(storage_routes.verb("default", "pool", name, "scrub", body, wait=None), answer(Operation))


def create_snapshot(
    project: str, of: str, name: str, *, instance: bool, consistent: bool, memory: bool
) -> Call[Snapshot]:
    whole = instance or memory
    body = SnapshotCreate(
        name=name, volume="" if whole else of, instance=of if whole else "", consistent=consistent, memory=memory
    )
    return Call(storage_routes.create(project, "snapshot", _encode(body)), answer(Snapshot))


def restore_snapshot(project: str, name: str, *, memory: bool, start: bool | None) -> Call[Operation]:
    body = _encode(SnapshotRestore(memory=memory, start=start))
    return Call(storage_routes.verb(project, "snapshot", name, "restore", body, wait=None), answer(Operation))


def fsck(*, repair: bool, remove_orphans: bool) -> Call[Operation]:
    body = _encode(StorageCheck(repair=repair, remove_orphans=remove_orphans))
    return Call(storage_routes.fsck(body), answer(Operation))


def ended(operation: Operation) -> Operation:
    """*operation*, when it ended well.

    :raise LamellaError: what it failed with.
    """
    status = operation.status
    if status.phase is OperationPhase.DONE:
        return operation
    error = error_for(status.error_code or "unavailable")
    raise error(
        status.error or f"{operation.spec.verb} of {operation.spec.subject} has not ended",
        hint=status.hint or f"lamella operation show {operation.id}",
    )


def report(operation: Operation) -> Report:
    """What the check *operation* found. :raise LamellaError: what it failed with."""
    return ended(operation).status.report or Report()
