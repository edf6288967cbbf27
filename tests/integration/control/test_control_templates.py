"""Templates over a real store, with a host in memory: built, failed, built anew, copied, pooled and given back."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tests.integration.control.conftest import Open
from tests.storage_host import StorageHost

from lamella.control.layer import Layer
from lamella.model.assignment import InstanceReport
from lamella.model.errors import Conflict, Invalid, NoRoom, NotFound, Unsupported
from lamella.model.instance import Instance, InstanceSpec, Isolation, Nic, Phase, Power, Publish
from lamella.model.requests import InstanceCreate, Principal, ResourcePatch
from lamella.model.resource import Condition, new_resource
from lamella.model.storage import Snapshot
from lamella.model.template import Template, TemplatePhase, TemplateSpec
from lamella.model.template_bodies import TemplateCreate

WHO = Principal(name="unix:root", admin=True)
GIB = 1 << 30
WAIT = 90.0


async def create(layer: Layer, name: str = "py", *, wait: float = WAIT, project: str = "default", **fields) -> Template:
    body = TemplateCreate(name=name, spec=TemplateSpec(image="box", **fields))
    return await layer.templates.create(WHO, project, body, wait=wait, idempotency_key=None)


async def run(layer: Layer, name: str, **fields) -> Instance:
    fields = {"template": "py", "nics": [Nic()], "command": ["job"], **fields}
    body = InstanceCreate(name=name, spec=InstanceSpec(**fields))
    return await layer.create_instance(WHO, "default", body, wait=WAIT, idempotency_key=None)


async def until(what: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(WAIT):
        while not (found := await what()):
            await asyncio.sleep(0.01)
        return found


async def instances(layer: Layer) -> list[Instance]:
    return (await layer.store.list("instance")).items


async def waiting(layer: Layer, count: int) -> list[Instance]:
    async def look() -> list[Instance]:
        found = [item for item in await instances(layer) if item.spec.template and item.spec.power is Power.READY]
        ready = [item for item in found if item.status.phase is Phase.READY and item.deleted_at is None]
        return ready if len(ready) == len(found) == count else []

    return await until(look) if count else []


async def get(layer: Layer, name: str = "py") -> Template:
    return await layer.get(WHO, "default", "template", name)


async def test_it_is_built_and_its_builder_goes(layer: Layer, host: StorageHost) -> None:
    made = await create(layer, warmup=["warm", "up"], cpu=1500, memory=GIB, environment={"A": "1"})
    assert made.status.phase is TemplatePhase.READY and made.status.built_at is not None
    ((builder, command),) = host.execs
    assert command == ["warm", "up"]

    async def gone() -> bool:
        return builder not in {item.id for item in await instances(layer)}

    await until(gone)
    snapshot: Snapshot = await layer.store.by_id(made.status.snapshot)
    assert snapshot.spec.memory and snapshot.spec.instance == builder
    copy = await run(layer, "one", environment={"B": "2"})
    assert copy.status.template == made.id and copy.spec.image == "box"
    assert (copy.spec.cpu, copy.spec.memory, copy.spec.isolation) == (1500, GIB, Isolation.MICROVM)
    assert copy.spec.environment == {"A": "1", "B": "2"} and copy.spec.command == ["job"]
    beginning = copy.status.beginning
    assert beginning is not None and (beginning.snapshot, beginning.epoch, beginning.fresh) == (snapshot.id, 1, True)
    assert any("copy of template py" in item.chosen for item in copy.status.decisions)
    other = await run(layer, "two")
    for field in ("mac", "address", "id_base", "volume"):
        assert getattr(copy.status, field) != getattr(other.status, field)
    assert (await get(layer)).status.copies == 2


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"cpu": 2000}, "--cpu 2 was asked for, and template py has the default cpu"),
        ({"memory": 2 * GIB}, "template py has 1GiB"),
        ({"isolation": Isolation.VM}, "isolation vm was asked for, and template py is a microvm"),
        ({"image": "other"}, "template py is of box"),
        ({"nics": []}, "no NICs was asked for, and template py has 1"),
        ({"huge_pages": 2 << 20}, "has no huge pages"),
        ({"cold": True}, "begin as a copy of template py, and to boot"),
    ],
)
async def test_a_copy_is_what_its_template_is(layer: Layer, fields: dict[str, Any], says: str) -> None:
    await create(layer, memory=GIB)
    with pytest.raises((Unsupported, Invalid), match=says):
        await run(layer, "other", **fields)
    assert not [item for item in await instances(layer) if item.name == "other"]


async def test_a_failed_warm_up_leaves_its_reason_and_nothing_else(layer: Layer, host: StorageHost) -> None:
    host.exits = [(b"x" * 5000 + b"\nno module named numpy", 3)]
    with pytest.raises(Conflict, match=r"(?s)warm-up ended with 3.*no module named numpy"):
        await create(layer, warmup=["warm"])

    async def gone() -> bool:
        return not await instances(layer) and not (await layer.store.list("snapshot")).items

    await until(gone)
    failed = await get(layer)
    assert failed.status.phase is TemplatePhase.FAILED and failed.status.builder == ""
    with pytest.raises(Conflict, match="could not be made"):
        await run(layer, "one")
    rebuilt = await layer.templates.rebuild(WHO, "default", "py", wait=WAIT)
    assert rebuilt.status.phase is TemplatePhase.READY and len(host.execs) == 2


async def test_it_is_not_tried_again_and_again(layer: Layer, host: StorageHost) -> None:
    host.exits = [(b"", 1)] * 9
    with pytest.raises(Conflict):
        await create(layer, warmup=["warm"])
    for _ in range(3):
        await layer.warm.round()
    assert len(host.execs) == 1


async def test_a_builder_that_cannot_be_made_is_the_reason(layer: Layer, host: StorageHost) -> None:
    host.unable = lambda instance: Condition(type="Ready", status=False, reason="unsupported", message="no such thing")
    with pytest.raises(Unsupported, match="no such thing"):
        await create(layer)


async def test_a_memory_that_cannot_be_kept_is_the_reason(layer: Layer, host: StorageHost) -> None:
    host.refuse["TakeSnapshot"] = Unsupported("this machine's memory cannot be kept")
    with pytest.raises(Unsupported, match="cannot be kept"):
        await create(layer)

    async def gone() -> bool:
        return not await instances(layer) and not (await layer.store.list("snapshot")).items

    await until(gone)


async def test_an_image_that_moved_or_another_qemu_has_it_built_anew_and_the_one_before_serves(
    layer: Layer, host: StorageHost
) -> None:
    first = await create(layer, warmup=["warm"])

    def move(tx: Any) -> None:
        image = tx.get("image", "default", "box")
        image.status.digest = "sha256:" + "b" * 64
        tx.update(image)

    host.hang.clear()
    await layer.store.write(move)
    await until(lambda: _second_exec(host))
    during = await run(layer, "during")
    assert during.status.beginning is not None and during.status.beginning.snapshot == first.status.snapshot
    assert during.status.image_digest.endswith("a" * 64)
    host.hang.set()

    async def anew() -> Template | None:
        now = await get(layer)
        return now if now.status.snapshot != first.status.snapshot and now.status.phase == "ready" else None

    second = await until(anew)
    after = await run(layer, "after")
    assert after.status.image_digest.endswith("b" * 64)
    facts = await host.facts()
    for capability in facts.capabilities:
        capability.value = "QEMU 99"
    await layer.desk.register(host.name, facts, "")

    async def third() -> bool:
        return (await get(layer)).status.snapshot not in (first.status.snapshot, second.status.snapshot)

    await until(third)


async def _second_exec(host: StorageHost) -> bool:
    return len(host.execs) == 2


async def test_a_daemon_that_dies_while_it_warms_up_begins_again(opened: Open, host: StorageHost) -> None:
    layer = await opened()
    host.hang.clear()
    made = await create(layer, wait=0, warmup=["warm"])
    await until(lambda: _execs(host, 1))
    await layer.close()
    host.hang.set()
    again = await opened()

    async def ready() -> bool:
        return (await get(again)).status.phase is TemplatePhase.READY

    await until(ready)
    first, second = (id for id, _ in host.execs)
    assert first != second

    async def gone() -> bool:
        return first not in {item.id for item in await instances(again)}

    await until(gone)
    assert (await get(again)).id == made.id


async def _execs(host: StorageHost, count: int) -> bool:
    return len(host.execs) >= count


async def test_a_pool_is_filled_taken_from_and_filled_again(layer: Layer) -> None:
    made = await create(layer, warm=2)
    members = await waiting(layer, 2)
    assert (await get(layer)).status.ready == 2
    taken = await run(layer, "job")
    first = min(members, key=lambda item: item.id)
    assert taken.id == first.id and taken.name == "job"
    assert (taken.spec.power, taken.spec.epoch, taken.spec.command) == (Power.RUNNING, 1, ["job"])
    assert (taken.status.mac, taken.status.address, taken.status.id_base) == (
        first.status.mac,
        first.status.address,
        first.status.id_base,
    )
    assert taken.status.template == made.id and taken.generation > first.generation
    assert any("copy of template py that waited" in item.chosen for item in taken.status.decisions)
    later = await waiting(layer, 2)
    assert taken.id not in {item.id for item in later}
    # What waits is nobody's to start, and cannot be made by hand.
    with pytest.raises(Conflict, match="waits for a command"):
        await layer.power(WHO, "default", later[0].name, "start", timeout=None, wait=0)
    with pytest.raises(Invalid, match="by hand"):
        await run(layer, "mine", power=Power.READY)


async def test_a_name_that_is_taken_takes_no_copy(layer: Layer) -> None:
    await create(layer, warm=1)
    (member,) = await waiting(layer, 1)
    taken = await run(layer, "job")
    assert taken.id == member.id
    (member,) = await waiting(layer, 1)
    with pytest.raises(Conflict, match="exists already"):
        await run(layer, "job")
    assert [item.id for item in await waiting(layer, 1)] == [member.id]


async def test_one_that_differs_in_what_was_made_is_a_fresh_copy(layer: Layer) -> None:
    await create(layer, warm=1)
    (member,) = await waiting(layer, 1)
    published = await run(layer, "web", nics=[Nic(publish=[Publish(port=80)])])
    stopped = await run(layer, "later", power=Power.STOPPED)
    assert member.id not in (published.id, stopped.id)
    assert [item.id for item in await waiting(layer, 1)] == [member.id]


async def test_many_at_once_take_each_copy_once(layer: Layer) -> None:
    await create(layer, warm=4)
    members = {item.id for item in await waiting(layer, 4)}
    taken = await asyncio.gather(*(run(layer, f"job-{number}") for number in range(8)))
    assert len({item.id for item in taken}) == 8
    assert members <= {item.id for item in taken}
    macs = [item.status.mac for item in await instances(layer)]
    assert len(macs) == len(set(macs))


async def test_a_retry_takes_no_second_copy(layer: Layer) -> None:
    await create(layer, warm=1)
    (member,) = await waiting(layer, 1)
    body = InstanceCreate(name="job", spec=InstanceSpec(template="py", nics=[Nic()], command=["job"]))
    once = await layer.create_instance(WHO, "default", body, wait=0, idempotency_key="k")
    twice = await layer.create_instance(WHO, "default", body, wait=0, idempotency_key="k")
    assert once.id == twice.id == member.id


async def test_another_recipe_or_none_gives_the_copies_back(layer: Layer) -> None:
    await create(layer, warm=2)
    before = {item.id for item in await waiting(layer, 2)}
    patch = ResourcePatch(spec={"environment": {"A": "2"}})
    await layer.patch(WHO, "default", "template", "py", patch, expected=None, wait=WAIT)

    async def others() -> bool:
        return not before & {item.id for item in await instances(layer)}

    await until(others)
    assert not before & {item.id for item in await waiting(layer, 2)}
    await layer.patch(WHO, "default", "template", "py", ResourcePatch(spec={"warm": 0}), expected=None, wait=WAIT)

    async def none() -> bool:
        return not [item for item in await instances(layer) if item.spec.power is Power.READY]

    await until(none)


async def test_it_can_be_removed_with_copies_alive(layer: Layer) -> None:
    await create(layer, warm=1)
    await waiting(layer, 1)
    await run(layer, "one")
    await waiting(layer, 1)
    await layer.delete(WHO, "default", "template", "py", force=False, expected=None, wait=0)
    with pytest.raises(NotFound):
        await get(layer)
    with pytest.raises(NotFound, match="template create py"):
        await run(layer, "two")

    async def one() -> bool:
        return not [item for item in await instances(layer) if item.spec.power is Power.READY]

    await until(one)
    assert (await layer.store.get("instance", "default", "one")).status.phase is Phase.RUNNING


async def test_copies_that_wait_give_way_and_are_not_made_beyond_the_room(layer: Layer, host: StorageHost) -> None:
    facts = await host.facts()
    facts.cpu, facts.memory = 8000, 4 * GIB
    await layer.desk.register(host.name, facts, "")
    await create(layer, memory=GIB, warm=9)
    await waiting(layer, 4)
    body = InstanceCreate(
        name="large", spec=InstanceSpec(image="box", isolation=Isolation.MICROVM, memory=3 * GIB, nics=[])
    )
    large = await layer.create_instance(WHO, "default", body, wait=WAIT, idempotency_key=None)
    assert large.status.phase is Phase.RUNNING
    await waiting(layer, 1)
    # A start makes room, too; and nothing goes for what would not fit in any case.
    small = InstanceCreate(
        name="small",
        spec=InstanceSpec(image="box", isolation=Isolation.MICROVM, memory=GIB, nics=[], power=Power.STOPPED),
    )
    await layer.create_instance(WHO, "default", small, wait=0, idempotency_key=None)
    more = InstanceSpec(image="box", isolation=Isolation.MICROVM, memory=2 * GIB)
    with pytest.raises(NoRoom):
        await layer.create_instance(WHO, "default", InstanceCreate(spec=more), wait=0, idempotency_key=None)
    await waiting(layer, 1)
    await layer.power(WHO, "default", "small", "start", timeout=None, wait=WAIT)

    async def none() -> bool:
        return not [item for item in await instances(layer) if item.spec.power is Power.READY]

    await until(none)


async def test_a_copy_that_cannot_be_made_is_not_made_over_and_over(layer: Layer, host: StorageHost) -> None:
    await create(layer)
    refusal = Condition(type="Ready", status=False, reason="unsupported", message="no memory like that")
    made: list[str] = []

    def unable(instance: Instance) -> Condition:
        # The builder may be going still.
        made.extend([instance.id] if instance.spec.template else [])
        return refusal

    host.unable = unable
    await layer.patch(WHO, "default", "template", "py", ResourcePatch(spec={"warm": 1}), expected=None, wait=WAIT)

    async def said() -> bool:
        return any("no memory like that" in item.message for item in (await get(layer)).status.conditions)

    await until(said)
    for _ in range(3):
        await layer.warm.round()
    assert len(set(made)) == 1


async def test_projects_have_templates_of_their_own(layer: Layer) -> None:
    from lamella.model.operation import ProjectSpec, ProjectStatus

    await layer.store.write(lambda tx: tx.insert(new_resource("project", "other", ProjectSpec(), ProjectStatus())))
    await create(layer)
    body = InstanceCreate(name="one", spec=InstanceSpec(template="py", nics=[Nic()]))
    with pytest.raises(NotFound, match="in project other"):
        await layer.create_instance(WHO, "other", body, wait=0, idempotency_key=None)


async def test_what_cannot_be_frozen_is_refused(layer: Layer) -> None:
    with pytest.raises(Unsupported, match="a container has no memory"):
        await create(layer, isolation=Isolation.CONTAINER)
    with pytest.raises(NotFound, match="no image"):
        await layer.templates.create(
            WHO,
            "default",
            TemplateCreate(name="x", spec=TemplateSpec(image="nothing")),
            wait=0,
            idempotency_key=None,
        )
    with pytest.raises(Invalid, match="none at most"):
        await create(layer, by_rate=True)


async def test_a_host_that_is_short_of_memory_gets_them_back_and_has_rest(layer: Layer) -> None:
    await create(layer, warm=2)
    first, second = await waiting(layer, 2)
    running = await run(layer, "job", power=Power.STOPPED)
    report = [
        InstanceReport(id=item.id, status=item.status, events=[("memory.pressure", "the host has 1MiB left")])
        for item in (first, second, running)
    ]
    await layer.desk.report(first.status.host or "", report)

    async def gone() -> bool:
        return not [item for item in await instances(layer) if item.spec.power is Power.READY]

    await until(gone)
    for _ in range(3):
        await layer.warm.round()
    assert {item.name for item in await instances(layer)} == {"job"}
    assert any(item.type == "Warm" and "1MiB left" in item.message for item in (await get(layer)).status.conditions)


async def test_one_that_nobody_uses_goes_by_itself(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    await create(layer, idle=60.0)
    await layer.warm.round()
    later = time.monotonic() + 61
    monkeypatch.setattr("lamella.control.templates.keeper.time", SimpleNamespace(monotonic=lambda: later))
    await layer.warm.round()
    with pytest.raises(NotFound):
        await get(layer)


async def test_as_many_wait_as_are_asked_for(layer: Layer) -> None:
    await create(layer, warm=3, by_rate=True)
    await layer.warm.round()
    assert not [item for item in await instances(layer) if item.spec.template]
    await run(layer, "one")
    assert 1 <= len(await until(lambda: _some(layer))) <= 3


async def _some(layer: Layer) -> list[Instance]:
    return [item for item in await instances(layer) if item.spec.template and item.status.phase is Phase.READY]


async def test_its_contract_says_whom_it_shares_memory_with(layer: Layer) -> None:
    await create(layer)
    await run(layer, "one")
    shared = [
        item for item in (await layer.contract(WHO, "default", "one")).guarantees if item.subject == "memory pages"
    ]
    assert len(shared) == 1 and "template py" in shared[0].value and "project default" in shared[0].value
    await layer.power(WHO, "default", "one", "restart", timeout=None, wait=WAIT)
    again = (await layer.contract(WHO, "default", "one")).guarantees
    assert not [item for item in again if item.subject == "memory pages"]


async def test_an_image_is_kept_for_its_copies(layer: Layer) -> None:
    await create(layer)

    async def built() -> bool:
        return not await instances(layer)

    await until(built)
    with pytest.raises(Conflict, match="template py"):
        await layer.delete(WHO, "default", "image", "box", force=False, expected=None, wait=0)
    await layer.delete(WHO, "default", "image", "box", force=True, expected=None, wait=0)
    await layer.warm.round()
    assert (await run(layer, "one")).status.image_digest.endswith("a" * 64)
