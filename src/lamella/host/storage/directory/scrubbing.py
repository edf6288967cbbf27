"""Finds flipped bits in layers that are written no more, by the digest of what an earlier scrub has read there.

A layer that is written has no digest: nothing tells a write from a flipped bit in it. Holes and blocks of zeros are not told apart,
because filesystems may turn one into the other.
"""

import asyncio
import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.storage.directory import ground as grounds
from lamella.host.storage.directory import record as records
from lamella.host.storage.directory.ground import Ground
from lamella.host.storage.directory.record import Record
from lamella.model.errors import Corrupt, NotFound
from lamella.model.storage import VolumeForm
from lamella.model.storage_requests import StorageFinding

_BLOCK = 1 << 20
_ZEROS = bytes(_BLOCK)
SUMS = "sums.json"


async def scrub(id: str, ground: Ground, used: Iterable[str]) -> tuple[int, list[StorageFinding]]:
    """(bytes read, what differed) of the sealed layers of volume *id*, of which others use *used*."""
    try:
        record = await asyncio.to_thread(ground.read, id)
    except (Corrupt, NotFound):
        return 0, []  # check() tells
    if record.form is not VolumeForm.BLOCK:
        return 0, []
    known = await asyncio.to_thread(_known, ground.place(id))
    sums: dict[str, str] = {}
    found: list[StorageFinding] = []
    read = 0
    for name in sorted(sealed(record, used)):
        try:
            sums[name], amount = await asyncio.to_thread(digest, ground.place(id) / name)
        except OSError as error:
            found.append(StorageFinding(subject=id, problem=f"{name} cannot be read: {error.strerror}", hint=_HINT))
            continue
        read += amount
        if known.get(name, sums[name]) != sums[name]:
            problem = f"{name}, which nobody writes any more, is not what it was at the last scrub"
            found.append(StorageFinding(subject=id, problem=problem, hint=_HINT))
            sums[name] = known[name]
    if sums != known:
        await asyncio.to_thread(_keep, ground.place(id), sums)
    return read, found


_HINT = "restore the snapshots that stand on it, and the volume, from a backup; look at the disk below"


def sealed(record: Record, used: Iterable[str]) -> set[str]:
    """Layers whose content is fixed: a snapshot names them, or other volumes read them, which stand on those *used*. One that is hidden
    may be merged into at any time."""
    return {snapshot.layer for snapshot in record.snapshots} | records.pinned(record, used)


def digest(path: Path) -> tuple[str, int]:
    """(hex, bytes read) over the blocks of *path* that are not zeros, and where they lie."""
    state = hashlib.blake2b(digest_size=32)
    read = 0
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = os.fstat(descriptor).st_size
        state.update(end.to_bytes(8, "little"))
        position = 0
        while position < end:
            try:
                data = os.lseek(descriptor, position, os.SEEK_DATA)
            except OSError:
                break
            position = data - data % _BLOCK
            block = os.pread(descriptor, _BLOCK, position)
            read += len(block)
            if block != _ZEROS[: len(block)]:
                state.update(position.to_bytes(8, "little"))
                state.update(block)
            position += _BLOCK
    finally:
        os.close(descriptor)
    return state.hexdigest(), read


def forget(id: str, ground: Ground, name: str) -> None:
    """*name* is changed for a reason."""
    _forget(id, ground, {name})


def keep_only(id: str, ground: Ground, names: set[str]) -> None:
    """All but *names* may change from now on."""
    _forget(id, ground, _known(ground.place(id)).keys() - names)


def _forget(id: str, ground: Ground, names: set[str]) -> None:
    known = _known(ground.place(id))
    kept = {name: found for name, found in known.items() if name not in names}
    if kept != known:
        _keep(ground.place(id), kept)


def _known(place: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode((place / SUMS).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError, RecursionError):
        return {}


def _keep(place: Path, sums: dict[str, str]) -> None:
    fresh = place / f".{SUMS}.new"
    with suppress(FileNotFoundError):
        fresh.unlink()
    grounds.write(fresh, msgspec.json.encode(sums))
    fresh.rename(place / SUMS)
    grounds.sync_directory(place)
