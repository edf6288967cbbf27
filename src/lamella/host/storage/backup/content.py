"""What of a volume is read for a backup: its snapshot as one file of ciphertext or plain text, as its driver keeps it, or as a tree."""

import asyncio
import errno
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from lamella.host.linux.blocking import blocking
from lamella.host.storage.blocks import Stack
from lamella.host.storage.driver import Extent, Source
from lamella.host.storage.parts import Parts
from lamella.model.errors import Internal
from lamella.model.ids import new_id
from lamella.model.storage import Feature, Volume, VolumeForm


class Content(msgspec.Struct, frozen=True):
    """``path`` is a file of ``size`` bytes, of which ``extents`` tell what is zeros."""

    path: Path
    size: int
    extents: list[Extent]


async def bare_stack(parts: Parts, volume: Volume, snapshot: str | None, id: str) -> Stack:
    """The volume below its encryption, opened under the name *id*: nobody needs its key."""
    pool = parts.pools.get(volume.spec.pool)
    copy = parts.stacks.made(volume.id).copies.get(snapshot or "")
    node = await pool.node(copy) if copy else await pool.node(volume.id, snapshot)
    return Stack(id=id, node=node, read_only=snapshot is not None)


@asynccontextmanager
async def block(parts: Parts, volume: Volume, snapshot: str | None, id: str) -> AsyncGenerator[Content]:
    """A snapshot of a block volume, read-only; the volume itself, for writing, when *snapshot* is ``None``."""
    stack = await bare_stack(parts, volume, snapshot, id)
    await parts.daemon.add(stack)
    try:
        ways = await parts.daemon.export(id, writable=snapshot is None)
        if ways.file is None:
            raise Internal(f"the storage process gives no file for volume {volume.id}")
        size = await parts.daemon.size(id)
        extents = await blocking(data_of, ways.file, size) if snapshot is not None else []
        yield Content(ways.file, size, extents)
    finally:
        await asyncio.shield(parts.daemon.remove(id))


def data_of(path: Path, size: int) -> list[Extent]:
    """What of a file is no hole (lseek(2)); the storage process's exports tell holes of every format below them so."""
    found: list[Extent] = []
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = 0
        while end < size:
            try:
                start = os.lseek(descriptor, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise
            end = min(size, os.lseek(descriptor, start, os.SEEK_HOLE))
            found.append(Extent(offset=start, length=end - start))
    finally:
        os.close(descriptor)
    return found


@asynccontextmanager
async def tree(parts: Parts, volume: Volume, snapshot: str) -> AsyncGenerator[Path]:
    """The files of a snapshot of a filesystem volume: those of a clone that is there for as long as the context lasts."""
    pool = parts.pools.get(volume.spec.pool)
    if Feature.CLONE not in pool.features and Feature.SNAPSHOT not in pool.features:
        yield (await pool.handle(volume.id)).path
        return
    clone = new_id("volume")
    source = Source(volume=volume.id, snapshot=snapshot)
    try:
        yield (await pool.create(clone, VolumeForm.FILESYSTEM, 0, source=source)).path
    finally:
        await asyncio.shield(pool.delete(clone))
