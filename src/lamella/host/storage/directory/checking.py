"""What is broken of a volume that nobody has open: its record, its chain, its layers; and what can be made well again."""

import asyncio

from lamella.host.storage import qemu_img
from lamella.host.storage.directory import scrubbing
from lamella.host.storage.directory.blocks import Blocks
from lamella.host.storage.directory.ground import Ground
from lamella.host.storage.directory.record import Record
from lamella.host.storage.driver import Layer
from lamella.model.errors import Conflict, Corrupt, LamellaError, NotFound
from lamella.model.storage import VolumeForm
from lamella.model.storage_requests import StorageFinding

_LOST = "restore it from a backup; what can still be read may be copied off first"


async def check(id: str, ground: Ground, blocks: Blocks, *, repair: bool) -> list[StorageFinding]:
    """What is found of volume *id*; with *repair* what can be mended is, and layers that nothing needs are merged."""
    try:
        record = await asyncio.to_thread(ground.read, id)
    except NotFound:
        return []
    except Corrupt as error:
        return [StorageFinding(subject=id, problem=error.message, hint=_LOST)]
    if record.form is VolumeForm.FILESYSTEM:
        return await asyncio.to_thread(_directories, id, record, ground)
    found = await asyncio.to_thread(_files, id, record, ground)
    try:
        for snapshot in [None, *record.snapshots]:
            await asyncio.to_thread(blocks.layers, id, record, snapshot.layer if snapshot else None)
    except Corrupt as error:
        found.append(StorageFinding(subject=id, problem=error.message, hint=error.hint))
    if found:
        return found
    found = [
        finding
        for layer in record.layers
        if layer.format == "qcow2"
        for finding in await _tables(id, ground, layer.name, repair=repair)
    ]
    found += await _size(id, record, blocks, repair=repair)
    if repair and all(finding.mended for finding in found):
        try:
            await blocks.tidy(id)
        except LamellaError as error:
            found.append(
                StorageFinding(subject=id, problem=f"layers cannot be merged: {error.message}", hint=error.hint)
            )
    return found


def _directories(id: str, record: Record, ground: Ground) -> list[StorageFinding]:
    place = ground.place(id)
    wanted = [place / "data", *(place / "snapshots" / snapshot.id for snapshot in record.snapshots)]
    return [
        StorageFinding(subject=id, problem=f"the directory {path} is gone", hint=_LOST)
        for path in wanted
        if not path.is_dir()
    ]


def _files(id: str, record: Record, ground: Ground) -> list[StorageFinding]:
    found: list[StorageFinding] = []
    for layer in record.layers:
        path = ground.place(id) / layer.name
        try:
            qemu_img.virtual_size(Layer(path=path, format=layer.format))
        except FileNotFoundError:
            found.append(StorageFinding(subject=id, problem=f"the layer {path} is gone", hint=_LOST))
        except Corrupt as error:
            found.append(StorageFinding(subject=id, problem=error.message, hint=_LOST))
        except OSError as error:
            found.append(
                StorageFinding(subject=id, problem=f"the layer {path} cannot be read: {error.strerror}", hint=_LOST)
            )
    if not found:
        found += _kept(id, record, ground)
    if record.base is not None:
        try:
            size = qemu_img.virtual_size(Layer(path=ground.path / record.base.path, format="raw"))
            if size != record.base.size:
                problem = f"the image's disk {record.base.path} has {size} bytes, not {record.base.size}"
                found.append(StorageFinding(subject=id, problem=problem, hint="fetch or build the image again"))
        except OSError as error:
            problem = f"the image's disk {record.base.path} cannot be read: {error.strerror}"
            found.append(StorageFinding(subject=id, problem=problem, hint="fetch or build the image again"))
    return found


def _kept(id: str, record: Record, ground: Ground) -> list[StorageFinding]:
    """A snapshot's layer that is shorter than the snapshot is another one: what is above it would read zeros beyond its end."""
    found: list[StorageFinding] = []
    for snapshot in record.snapshots:
        path = ground.place(id) / snapshot.layer
        size = qemu_img.virtual_size(Layer(path=path, format=path.suffix.removeprefix(".")))
        if size < snapshot.size:
            problem = f"the layer {path} ends at {size} bytes, and snapshot {snapshot.id} has {snapshot.size}"
            found.append(StorageFinding(subject=id, problem=problem, hint=_LOST))
    return found


async def _tables(id: str, ground: Ground, name: str, *, repair: bool) -> list[StorageFinding]:
    """The reference counts and tables of one qcow2 file."""
    layer = Layer(path=ground.place(id) / name, format="qcow2")
    try:
        seen = await qemu_img.check(layer)
        bad = seen.corruptions + seen.check_errors
        if not bad and not seen.leaks:
            return []
        if not bad:
            problem = f"{seen.leaks} clusters of {name} are leaked: they hold nothing and take room"
            if repair:
                await asyncio.to_thread(scrubbing.forget, id, ground, name)
                seen = await qemu_img.check(layer, repair="leaks")
            return [
                StorageFinding(
                    subject=id,
                    problem=problem,
                    mended=repair and not seen.leaks,
                    hint="check with repair gives them back",
                )
            ]
        problem = f"{bad} tables or reference counts of {name} are wrong"
        if repair:
            await asyncio.to_thread(scrubbing.forget, id, ground, name)
            await qemu_img.check(layer, repair="all")
            seen = await qemu_img.check(layer)
        mended = repair and not (seen.corruptions + seen.check_errors)
        hint = "check the filesystem inside, or restore it from a backup: what was lost is not known"
        return [StorageFinding(subject=id, problem=problem, mended=mended, hint=hint)]
    except Conflict:
        return []  # somebody has it open
    except Corrupt as error:
        return [StorageFinding(subject=id, problem=f"{name} is broken: {error.message}", hint=_LOST)]


async def _size(id: str, record: Record, blocks: Blocks, *, repair: bool) -> list[StorageFinding]:
    layers, _ = await asyncio.to_thread(blocks.layers, id, record)
    size = qemu_img.virtual_size(layers[0])
    if size >= record.size:
        return []
    problem = f"{layers[0].path.name} ends at {size} bytes, and the volume has {record.size}: what was beyond is lost"
    mended = False
    if repair:
        try:
            await blocks.finish_resize(id, again=True)
            mended = True
        except LamellaError as error:
            problem += f"; it cannot be made longer: {error.message}"
    return [StorageFinding(subject=id, problem=problem, mended=mended, hint="restore it from a backup")]
