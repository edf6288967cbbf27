"""Steps done to a real pool, and a pool compared with what it has to hold."""

import os
from pathlib import Path

from contract_lab import Lab
from power_model import Disk, Kept, Step, Tree, World

from lamella.host.storage.driver import Source, StorageDriver
from lamella.model.storage import VolumeForm


async def act(lab: Lab, pool: StorageDriver, step: Step) -> None:
    """It is acknowledged when this returns."""
    match step.verb:
        case "write":
            given = step.arguments
            lab.write(await pool.node(step.id), given["byte"], given["offset"], given["length"])
        case "put":
            _put((await pool.handle(step.id)).path, step.arguments["name"], step.arguments["content"])
        case "unlink":
            place = (await pool.handle(step.id)).path
            (place / step.arguments["name"]).unlink(missing_ok=True)
            _sync(place)
        case verb:
            given = dict(step.arguments)
            if "source" in given:
                volume, snapshot = given["source"]
                given["source"] = Source(volume=volume, snapshot=snapshot)
            await getattr(pool, verb)(**given)


def _put(place: Path, name: str, content: bytes) -> None:
    """As a careful program replaces a file."""
    fresh = place / f"{name}.new"
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(place / name)
    _sync(place)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def differs(lab: Lab, pool: StorageDriver, world: World, under_way: Step | None = None) -> str:
    """What of *world* is not so, or an empty string; what the step *under_way* writes may be anything."""
    inventory = await pool.inventory()
    if inventory != set(world):
        return f"volumes {sorted(inventory)} instead of {sorted(world)}"
    work: list[tuple[dict[str, object], list[str]]] = []
    for id, volume in world.items():
        if wrong := await _volume_differs(pool, id, volume):
            return wrong
        now = under_way if under_way is not None and under_way.id == id else None
        if isinstance(volume.now, Tree):
            if wrong := await _tree_differs(pool, id, volume, now.paths if now else frozenset()):
                return wrong
            continue
        for snapshot, kept in [(None, volume.now), *volume.snapshots.items()]:
            assert isinstance(kept, Disk)
            node = await pool.node(id, snapshot)
            if snapshot is not None and lab.size(node) < kept.size:
                return f"{snapshot} of {id} has {lab.size(node)} bytes"
            unsure = now.unsure if now and snapshot is None else range(0)
            work.append((node, [f"read -P {byte} {offset} {length}" for byte, offset, length in kept.runs(unsure)]))
    try:
        lab.script(work, read_only=True)
    except AssertionError as error:
        return str(error)
    return ""


async def _volume_differs(pool: StorageDriver, id: str, volume: Kept) -> str:
    taken = await pool.snapshots(id)
    if taken != list(volume.snapshots):
        return f"snapshots {taken} of {id} instead of {list(volume.snapshots)}"
    handle = await pool.handle(id)
    form = VolumeForm.BLOCK if isinstance(volume.now, Disk) else VolumeForm.FILESYSTEM
    if handle.form is not form or (isinstance(volume.now, Disk) and handle.size != volume.now.size):
        return f"{id} is a {handle.form} volume of {handle.size} bytes"
    return ""


async def _tree_differs(pool: StorageDriver, id: str, volume: Kept, unsure: frozenset[str]) -> str:
    data = (await pool.handle(id)).path
    kept = data.parent / "snapshots"
    for place, tree, may in [
        (data, volume.now, unsure),
        *((kept / snapshot, tree, frozenset[str]()) for snapshot, tree in volume.snapshots.items()),
    ]:
        assert isinstance(tree, Tree)
        found = {path.name: path.read_bytes() for path in place.iterdir() if path.name not in may}
        wanted = {name: content for name, content in tree.files.items() if name not in may}
        if found != wanted:
            sizes = [{name: len(content) for name, content in files.items()} for files in (found, wanted)]
            return f"files of {place} are {sizes[0]} instead of {sizes[1]}"
    return ""


async def half_made(lab: Lab, pool: StorageDriver) -> list[str]:
    """What lies in the opened pool and belongs to nothing."""
    top = Path(lab.path)
    found = [str(path) for place in (".staging", ".trash", ".shred") for path in (top / place).glob("*")]
    for id in await pool.inventory():
        place = top / "volumes" / id
        known = {place / "volume.json", place / "data", place / "snapshots", place / "sums.json"}
        handle = await pool.handle(id)
        if handle.form is VolumeForm.BLOCK:
            known |= {handle.path, *(layer.path for layer in handle.below)}
            for snapshot in await pool.snapshots(id):
                known |= set(_files(await pool.node(id, snapshot)))
        else:
            taken = set(await pool.snapshots(id))
            found += [str(path) for path in (place / "snapshots").glob("*") if path.name not in taken]
        found += [str(path) for path in place.iterdir() if path not in known]
    return found


def _files(node: object) -> list[Path]:
    if not isinstance(node, dict):
        return []
    below = [path for value in node.values() for path in _files(value)]
    return [Path(str(node["filename"])), *below] if "filename" in node else below
