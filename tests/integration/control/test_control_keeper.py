"""The storekeeper: what is asked while a step goes on is done, however that step ends."""

import asyncio
from collections.abc import Callable

import pytest
from tests.storage_host import StorageHost

from lamella.control.layer import Layer
from lamella.model.errors import NoRoom, NotFound
from lamella.model.operation import OperationPhase
from lamella.model.requests import Principal
from lamella.model.storage import StoragePhase, Volume, VolumeSpec
from lamella.model.storage_bodies import VolumeCreate

GIB = 1 << 30
WHO = Principal(name="unix:root", admin=True)
WAIT = 90.0
FULL = NoRoom("the pool is full")


async def make(layer: Layer, *, wait: float = WAIT) -> Volume:
    body = VolumeCreate(name="data", spec=VolumeSpec(size=GIB))
    return await layer.storage.volumes.create(WHO, "default", body, wait=wait)


async def remove(layer: Layer) -> None:
    await layer.delete(WHO, "default", "volume", "data", force=False, expected=None, wait=WAIT)


async def until(that: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not that():
            await asyncio.sleep(0)


async def deleting(layer: Layer, id: str) -> None:
    async with asyncio.timeout(WAIT):
        while (await layer.store.by_id(id)).status.phase is not StoragePhase.DELETING:
            await asyncio.sleep(0)


async def test_what_is_removed_while_it_is_changed_is_gone_when_that_fails(layer: Layer, host: StorageHost) -> None:
    made = await make(layer)
    host.slow["ResizeVolume"], host.refuse["ResizeVolume"] = asyncio.Event(), FULL
    resizing = await layer.storage.volumes.resize(WHO, "default", "data", 2 * GIB, wait=0)
    await until(lambda: "ResizeVolume" in host.asked)
    removing = asyncio.create_task(remove(layer))
    await deleting(layer, made.id)
    host.slow["ResizeVolume"].set()
    await removing
    with pytest.raises(NotFound):
        await layer.store.by_id(made.id)
    assert host.volumes == {}
    ended = await layer.storage.operations.finish(resizing, WAIT)
    assert (ended.status.phase, ended.status.error_code) == (OperationPhase.FAILED, FULL.code)


async def test_what_is_removed_while_it_is_made_is_gone_when_that_fails(layer: Layer, host: StorageHost) -> None:
    host.slow["CreateVolume"], host.refuse["CreateVolume"] = asyncio.Event(), FULL
    made = await make(layer, wait=0)
    await until(lambda: "CreateVolume" in host.asked)
    removing = asyncio.create_task(remove(layer))
    await deleting(layer, made.id)
    host.slow["CreateVolume"].set()
    await removing
    with pytest.raises(NotFound):
        await layer.store.by_id(made.id)


async def test_the_next_size_is_tried_when_the_last_one_failed(layer: Layer, host: StorageHost) -> None:
    made = await make(layer)
    host.slow["ResizeVolume"] = asyncio.Event()
    # What is in it would not fit.
    first = await layer.storage.volumes.resize(WHO, "default", "data", GIB // 8, wait=0)
    await until(lambda: "ResizeVolume" in host.asked)
    second = await layer.storage.volumes.resize(WHO, "default", "data", 2 * GIB, wait=0)
    await until(lambda: made.id in layer.storage.keeper._anew)
    host.slow["ResizeVolume"].set()
    assert (await layer.storage.operations.finish(second, WAIT)).status.phase is OperationPhase.DONE
    assert (await layer.storage.operations.finish(first, WAIT)).status.phase is OperationPhase.FAILED
    assert (await layer.store.by_id(made.id)).status.size == 2 * GIB
