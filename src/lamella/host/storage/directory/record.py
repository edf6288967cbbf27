"""What is written down of a volume, and how its layers hang together: values alone, no files.

The layers of a block volume are a tree: each stands on its parent, ``top`` is the one that is written. A snapshot names the layer
that holds what the volume was. A layer that no snapshot names and that is not ``top`` is *hidden*: it stays until what stands on it
is merged into it, or nothing stands on it any more. The bottom of a clone stands on a layer of another volume.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from lamella.host.storage.driver import Base
from lamella.model.errors import Invalid
from lamella.model.ids import is_id
from lamella.model.storage import VolumeForm

DEFAULT_BLOCK_SIZE = 8 << 30
GRAIN = 4096


class BaseRecord(msgspec.Struct, kw_only=True, frozen=True):
    """:class:`~lamella.host.storage.driver.Base` as it is written down."""

    path: str
    size: int


class LayerRecord(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A file of the volume's directory; its suffix is its format. ``parent`` is another one, or ``vol_…/name`` of another volume."""

    name: str
    parent: str = ""

    @property
    def format(self) -> str:
        return self.name.rpartition(".")[2]


class SnapshotRecord(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """``layer`` is empty for a filesystem volume; ``size`` is what the volume had."""

    id: str
    layer: str = ""
    size: int = 0


class Record(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The content of ``volume.json``. ``size`` is the bytes that were asked for, 0 for no bound; ``base`` lies under every qcow2
    without a parent. ``resizing`` says that the top layer is to be made as large as ``size``."""

    form: VolumeForm
    size: int
    base: BaseRecord | None = None
    layers: list[LayerRecord] = []
    top: str = ""
    snapshots: list[SnapshotRecord] = []
    resizing: bool = False

    def layer(self, name: str) -> LayerRecord | None:
        return next((layer for layer in self.layers if layer.name == name), None)

    def snapshot(self, id: str) -> SnapshotRecord | None:
        return next((snapshot for snapshot in self.snapshots if snapshot.id == id), None)


def decoded(content: bytes) -> Record:
    """A record as it was written, of a volume without layers too (the form before there were any).

    :raise msgspec.DecodeError: when it is none, or contradicts itself.
    """
    try:
        record = msgspec.json.decode(content, type=Record)
    except RecursionError as error:
        raise msgspec.DecodeError(str(error)) from error
    if record.form is VolumeForm.BLOCK and not record.layers:
        name = "disk.raw" if record.base is None else "disk.qcow2"
        record = msgspec.structs.replace(record, layers=[LayerRecord(name=name)], top=name)
    wrong = _contradiction(record)
    if wrong:
        raise msgspec.ValidationError(wrong)
    return record


def _contradiction(record: Record) -> str:
    names = {layer.name for layer in record.layers}
    if record.form is VolumeForm.FILESYSTEM:
        return ""
    if any("/" in name or name.rpartition(".")[2] not in ("raw", "qcow2") for name in names):
        return "a layer has no name of a layer"
    if record.top not in names:
        return f"the layer {record.top!r} that is written is not among the layers"
    for snapshot in record.snapshots:
        if snapshot.layer not in names:
            return f"snapshot {snapshot.id} stands on the layer {snapshot.layer!r}, which is not among the layers"
    for layer in record.layers:
        volume, _, other = layer.parent.rpartition("/")
        if volume and (not is_id(volume) or not other):
            return f"layer {layer.name} stands on {layer.parent!r}, which is no layer of a volume"
        if layer.parent and not volume and layer.parent not in names:
            return f"layer {layer.name} stands on {layer.parent!r}, which is not among the layers"
        seen = {layer.name}
        below = layer
        while below.parent in names:
            if below.parent in seen:
                return f"layer {layer.name} stands on itself"
            seen.add(below.parent)
            below = next(other for other in record.layers if other.name == below.parent)
    return ""


def encoded(record: Record) -> bytes:
    return msgspec.json.encode(record)


def line(record: Record, name: str) -> list[LayerRecord]:
    """The layer *name* and what it stands on in its own volume, topmost first."""
    found: list[LayerRecord] = []
    layer = record.layer(name)
    while layer is not None:
        found.append(layer)
        layer = record.layer(layer.parent)
    return found


def standing_on(record: Record, name: str) -> list[LayerRecord]:
    return [layer for layer in record.layers if layer.parent == name]


def pinned(record: Record, used: Iterable[str]) -> set[str]:
    """Layers that other volumes read, which stand on those *used*."""
    return {layer.name for name in used for layer in line(record, name)}


def pruned(record: Record, used: Iterable[str]) -> Record:
    """Without the layers that nothing stands on, no snapshot names, and nobody writes."""
    kept = {record.top, *(snapshot.layer for snapshot in record.snapshots), *used}
    needed = {layer.name for name in kept for layer in line(record, name)}
    return msgspec.structs.replace(record, layers=[layer for layer in record.layers if layer.name in needed])


def mergeable(record: Record, used: Iterable[str], *, with_top: bool) -> list[tuple[str, str]]:
    """(upper, lower) names of every two layers that can become one; *with_top* when nobody writes the topmost."""
    named = {snapshot.layer for snapshot in record.snapshots}
    fixed = pinned(record, used)
    found: list[tuple[str, str]] = []
    for lower in record.layers:
        if lower.name in named or lower.name in fixed or lower.name == record.top:
            continue
        above = standing_on(record, lower.name)
        if len(above) == 1 and (with_top or above[0].name != record.top):
            found.append((above[0].name, lower.name))
    return found


def merged(record: Record, upper: str, lower: str) -> Record:
    """What holds *upper*'s content is *lower* from now on."""

    def now(name: str) -> str:
        return lower if name == upper else name

    return msgspec.structs.replace(
        record,
        layers=[
            LayerRecord(name=layer.name, parent=now(layer.parent)) for layer in record.layers if layer.name != upper
        ],
        snapshots=[
            SnapshotRecord(id=snapshot.id, layer=now(snapshot.layer), size=snapshot.size)
            for snapshot in record.snapshots
        ],
        top=now(record.top),
    )


def record_for(form: VolumeForm, size: int, base: Base | None) -> Record:
    """What a volume of *size* bytes over *base* becomes.

    :raise Invalid: when that cannot be.
    """
    if size < 0:
        raise Invalid(f"a volume cannot have {size} bytes", hint="use 0 or more", field="size")
    if form is VolumeForm.FILESYSTEM:
        if base is not None:
            raise Invalid("a filesystem volume cannot begin as a disk", hint="ask for a block volume", field="form")
        return Record(form=form, size=size)
    if base is not None and 0 < size < base.size:
        raise too_small(size, base.size, "the image's disk")
    name = "disk.raw" if base is None else "disk.qcow2"
    return Record(
        form=form,
        size=rounded(size or (base.size if base is not None else DEFAULT_BLOCK_SIZE)),
        base=None if base is None else BaseRecord(path=str(base.path), size=base.size),
        layers=[LayerRecord(name=name)],
        top=name,
    )


def too_small(size: int, least: int, what: str) -> Invalid:
    return Invalid(
        f"a volume of {size} bytes cannot hold {what} of {least}",
        hint=f"ask for {-(-least // (1 << 20))}MiB or more, or for 0 to take its own size",
        field="size",
    )


def rounded(size: int) -> int:
    return -(-size // GRAIN) * GRAIN


def base_of(record: Record) -> Base | None:
    return None if record.base is None else Base(path=Path(record.base.path), size=record.base.size)
