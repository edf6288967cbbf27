"""Who waits for a change hears of it and of nothing older, however far behind the log is read."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_admission import a_host
from test_fitting import image_of

from lamella.control.layer import Layer
from lamella.model.assignment import InstanceReport
from lamella.model.errors import Conflict
from lamella.model.image import ArtifactKind
from lamella.model.instance import Instance, InstanceSpec, Isolation, Phase, Power
from lamella.model.requests import InstanceCreate, Principal, ResourcePatch, ResourcePut
from lamella.model.resource import Condition
from lamella.store.database import open_store
from lamella.store.store import Change

ROOT = Principal(name="unix:root", admin=True)
REFUSED = Condition(type="Ready", status=False, reason="conflict", message="the guest keeps it", hint="ask it")


class SlowLog:
    """A store whose log is read no further than it is let; all else is the store's."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.open = asyncio.Event()
        self.open.set()
        self.told = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def watch(self, since: int) -> AsyncIterator[Change]:
        async for change in self._store.watch(since):
            await self.open.wait()
            yield change
            self.told = change.revision


class Scene:
    """An instance that runs, its host, and the log that everybody who waits reads."""

    def __init__(self, layer: Layer, log: SlowLog) -> None:
        self.layer, self.log = layer, log
        self.host = ""

    async def instance(self) -> Instance:
        return await self.layer.store.get("instance", "default", "db")

    async def report(self, *conditions: Condition) -> None:
        now = await self.instance()
        status = msgspec.structs.replace(
            now.status, phase=Phase.RUNNING, epoch=1, observed_generation=now.generation, conditions=list(conditions)
        )
        await self.layer.desk.report(self.host, [InstanceReport(id=now.id, status=status)])

    async def told_of_all(self) -> None:
        async with asyncio.timeout(90):
            while self.log.told < await self.layer.store.revision():
                await asyncio.sleep(0.01)

    def asking(self, memory: int, wait: float = 60) -> asyncio.Task[Any]:
        body = ResourcePatch(spec={"memory": memory})
        return asyncio.create_task(self.layer.patch(ROOT, "default", "instance", "db", body, expected=None, wait=wait))

    async def generation(self, above: int) -> int:
        async with asyncio.timeout(90):
            while (now := (await self.instance()).generation) <= above:
                await asyncio.sleep(0.01)
        return now


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    store = open_store(f"sqlite:///{tmp_path}/lamella.db")
    await store.open()
    log = SlowLog(store)
    layer = Layer(log, role="all", seed="lamella-00000000")  # type: ignore[arg-type]
    await layer.open()
    host, image = a_host(), image_of(ArtifactKind.DISK, layers=True)
    image.name = "debian:12"
    await store.write(lambda tx: [tx.insert(item) for item in (host, image)])
    made = Scene(layer, log)
    made.host = host.id
    spec = InstanceSpec(image="debian:12", isolation=Isolation.VM, power=Power.RUNNING)
    await layer.create_instance(ROOT, "default", InstanceCreate(name="db", spec=spec), wait=0, idempotency_key=None)
    yield made
    await layer.close()
    await store.close()


async def test_a_report_from_before_the_change_does_not_answer_for_it(scene: Scene) -> None:
    await scene.told_of_all()
    scene.log.open.clear()
    # All is well, and nobody has read so when the change is asked for.
    await scene.report()
    before = await scene.instance()
    asking = scene.asking(1 << 30)
    await scene.generation(before.generation)
    # It comes to be waited for before anything of the log does.
    listeners = scene.layer.bulletin._listeners  # pyright: ignore[reportPrivateUsage]
    async with asyncio.timeout(90):
        while not listeners:
            await asyncio.sleep(0.01)
    scene.log.open.set()
    await scene.told_of_all()
    assert not asking.done()
    await scene.report(REFUSED)
    with pytest.raises(Conflict, match="the guest keeps it"):
        await asking
    assert (await scene.instance()).spec.memory is None


async def test_a_refusal_is_told_although_more_was_asked_for_before_anybody_read_it(scene: Scene) -> None:
    await scene.report()
    await scene.told_of_all()
    before = await scene.instance()
    reading, go_on = asyncio.Event(), asyncio.Event()
    by_id = scene.layer.store.by_id

    async def slowly(id: str) -> Any:
        if id == before.id and not go_on.is_set():
            reading.set()
            await go_on.wait()
        return await by_id(id)

    scene.log.by_id = slowly  # type: ignore[attr-defined]
    asking = scene.asking(1 << 30)
    async with asyncio.timeout(90):
        await reading.wait()
    await scene.report(REFUSED)
    await scene.told_of_all()
    await scene.asking(2 << 30, wait=0)
    go_on.set()
    with pytest.raises(Conflict, match="the guest keeps it"):
        await asking
    # What was asked for since is not taken back.
    assert (await scene.instance()).spec.memory == 2 << 30


async def test_a_whole_that_the_host_refuses_is_told_and_taken_back_as_a_part_is(scene: Scene) -> None:
    await scene.report()
    await scene.told_of_all()
    before = await scene.instance()
    whole = ResourcePut(spec=msgspec.structs.replace(before.spec, memory=1 << 30))
    asking = asyncio.create_task(scene.layer.put_instance(ROOT, "default", "db", whole, expected=None, wait=60))
    await scene.generation(before.generation)
    await scene.report(REFUSED)
    with pytest.raises(Conflict, match="the guest keeps it"):
        await asking
    assert (await scene.instance()).spec.memory is None
