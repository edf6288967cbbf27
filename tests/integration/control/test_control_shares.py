"""A host's cores and memory, handed out by control: at create, at start and at set."""

import msgspec
import pytest
from tests.storage_host import StorageHost

from lamella.control.changing import undo
from lamella.control.layer import Layer
from lamella.model.assignment import InstanceReport
from lamella.model.errors import NoRoom
from lamella.model.instance import Instance, InstanceSpec, Phase, Power
from lamella.model.requests import InstanceCreate, Principal, ResourcePatch
from lamella.model.topology import Cpu, Topology

WHO = Principal(name="unix:root", admin=True)


async def create(layer: Layer, name: str, **fields) -> Instance:
    body = InstanceCreate(name=name, spec=InstanceSpec(image="box", **fields))
    return await layer.create_instance(WHO, "default", body, wait=0, idempotency_key=None)


async def test_nobody_is_promised_what_another_has(layer: Layer, host: StorageHost) -> None:
    facts = await host.facts()
    facts.cpu, facts.memory = 2000, 8 << 30
    await layer.desk.register(host.name, facts, "")
    first = await create(layer, "first", cpu_guarantee=1500)
    assert any(decision.what == "share of the host" for decision in first.status.decisions)
    with pytest.raises(NoRoom, match=r"0\.5 of 2 guaranteed cores left, and 1 are asked for"):
        await create(layer, "second", cpu_guarantee=1000)
    assert (await layer.store.list("instance")).items[0].name == "first"
    await create(layer, "second", cpu_guarantee=500, power=Power.STOPPED)
    await create(layer, "third", cpu_guarantee=500)
    # It took nothing while it was stopped; now nothing is left.
    with pytest.raises(NoRoom, match="0 of 2"):
        await layer.instances.power(WHO, "default", "second", "start", timeout=None, wait=0)
    more = ResourcePatch(spec={"cpu_guarantee": 600})
    with pytest.raises(NoRoom, match=r"0\.5 of 2"):
        await layer.instances.patch(WHO, "default", "third", more, expected=None, wait=0)
    await layer.instances.patch(
        WHO, "default", "third", ResourcePatch(spec={"cpu_guarantee": None}), expected=None, wait=0
    )
    started = await layer.instances.power(WHO, "default", "second", "start", timeout=None, wait=0)
    assert started.spec.power is Power.RUNNING
    contract = await layer.contract(WHO, "default", "second")
    line = next(line for line in contract.guarantees if line.subject == "host's cores")
    assert line.value.startswith("2 of 2 guaranteed (1.00)")


async def test_who_has_its_cores_keeps_them_whatever_the_host_keeps_for_itself_now(
    layer: Layer, host: StorageHost
) -> None:
    facts = await host.facts()
    facts.cpu, facts.memory = 4000, 8 << 30
    facts.topology = Topology(cpus=[Cpu(id=id, core=id) for id in range(4)], caches=[], nodes=[])
    await layer.desk.register(host.name, facts, "")
    await create(layer, "first", cpu=2000, cpu_pin=True)
    await layer.hosts.patch(WHO, "default", host.name, ResourcePatch(spec={"reserve": {"cpu": 3000}}), expected=None)
    kept = await layer.instances.patch(WHO, "default", "first", ResourcePatch(labels={"a": "b"}), expected=None, wait=0)
    assert kept.status.cpus == [1, 2] and kept.labels == {"a": "b"}
    kept = await layer.instances.power(WHO, "default", "first", "restart", timeout=None, wait=0)
    assert kept.status.cpus == [1, 2]


async def test_both_threads_of_a_core_are_promised(layer: Layer, host: StorageHost) -> None:
    facts = await host.facts()
    facts.cpu, facts.memory = 4000, 8 << 30
    facts.topology = Topology(cpus=[Cpu(id=id, core=id % 2) for id in range(4)], caches=[], nodes=[])
    await layer.desk.register(host.name, facts, "")
    await create(layer, "first", cpu_guarantee=2500)
    # One CPU would fit; a whole core has two.
    with pytest.raises(NoRoom, match=r"1\.5 of 4 guaranteed cores left, and 2 are asked for"):
        await create(layer, "second", cpu=1000, cpu_pin=True)
    await layer.instances.patch(
        WHO, "default", "first", ResourcePatch(spec={"cpu_guarantee": 2000}), expected=None, wait=0
    )
    second = await create(layer, "second", cpu=1000, cpu_pin=True)
    assert second.status.cpus == [1, 3]
    with pytest.raises(NoRoom):
        await layer.instances.patch(
            WHO, "default", "first", ResourcePatch(spec={"cpu_guarantee": 2100}), expected=None, wait=0
        )


async def test_a_core_is_one_instances_until_it_has_stopped(layer: Layer, host: StorageHost) -> None:
    facts = await host.facts()
    facts.cpu, facts.memory = 4000, 8 << 30
    facts.topology = Topology(cpus=[Cpu(id=id, core=id) for id in range(4)], caches=[], nodes=[])
    await layer.desk.register(host.name, facts, "")
    first = await create(layer, "first", cpu=2000, cpu_pin=True)
    assert first.status.cpus == [1, 2] and first.status.nodes == [0]
    # One core stays everybody's, so that one more is left.
    with pytest.raises(NoRoom, match="1 of 4 are nobody's"):
        await create(layer, "second", cpu=2000, cpu_pin=True)
    second = await create(layer, "second", cpu=1000, cpu_pin=True)
    assert second.status.cpus == [3]
    with pytest.raises(NoRoom):
        await layer.instances.patch(WHO, "default", "second", ResourcePatch(spec={"cpu": 2000}), expected=None, wait=0)
    stopping = await layer.instances.power(WHO, "default", "first", "stop", timeout=None, wait=0)
    assert stopping.status.cpus == [1, 2]
    seen = msgspec.structs.replace(stopping.status, phase=Phase.STOPPED, epoch=1)
    await layer.desk.report(stopping.status.host or "", [InstanceReport(id=first.id, status=seen)])
    assert (await layer.store.get("instance", "default", "first")).status.cpus == []
    grown = await layer.instances.patch(
        WHO, "default", "second", ResourcePatch(spec={"cpu": 3000}), expected=None, wait=0
    )
    assert grown.status.cpus == [1, 2, 3]
    with pytest.raises(NoRoom):
        await layer.instances.power(WHO, "default", "first", "start", timeout=None, wait=0)
    given = await layer.instances.patch(
        WHO, "default", "second", ResourcePatch(spec={"cpu_pin": False}), expected=None, wait=0
    )
    assert given.status.cpus == []
    started = await layer.instances.power(WHO, "default", "first", "start", timeout=None, wait=0)
    assert started.status.cpus == [1, 2]


async def test_a_refused_change_is_taken_back_though_others_have_its_cores(layer: Layer, host: StorageHost) -> None:
    facts = await host.facts()
    facts.cpu, facts.memory = 4000, 8 << 30
    facts.topology = Topology(cpus=[Cpu(id=id, core=id) for id in range(4)], caches=[], nodes=[])
    await layer.desk.register(host.name, facts, "")
    before = await create(layer, "first", cpu=3000, cpu_pin=True)
    change = ResourcePatch(spec={"cpu_pin": False, "pids": 100})
    changed = await layer.instances.patch(WHO, "default", "first", change, expected=None, wait=0)
    other = await create(layer, "second", cpu=1000, cpu_pin=True)
    await layer.store.write(lambda tx: undo(tx, changed, before))
    after = await layer.store.get("instance", "default", "first")
    assert (after.spec.pids, after.spec.cpu_pin, after.status.cpus, other.status.cpus) == (4096, False, [], [1])
