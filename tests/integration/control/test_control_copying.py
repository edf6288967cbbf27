"""Instances that begin as a copy of a snapshot with a memory: rows, claims and refusals, over a real store."""

import msgspec
import pytest
from tests.storage_host import StorageHost

from lamella.control.copying import begin_as_copy, of_instance, origin_of
from lamella.control.layer import Layer
from lamella.model.errors import Conflict, LamellaError, NoRoom, Unsupported
from lamella.model.instance import Beginning, Instance, InstanceSpec, Nic, Power, Publish
from lamella.model.requests import InstanceCreate, Principal
from lamella.model.resource import new_resource, now
from lamella.model.storage import Snapshot, SnapshotSpec, SnapshotStatus, StoragePhase, Volume
from lamella.store.store import Transaction

WHO = Principal(name="unix:root", admin=True)
NIC = [Nic(publish=[Publish(host_port=8080, port=80), Publish(port=443)], address="10.83.0.77")]


async def create(layer: Layer, name: str = "web", **fields: object) -> Instance:
    wanted: dict[str, object] = {"isolation": "microvm", "nics": NIC, "hostname": "www", **fields}
    spec = msgspec.convert(msgspec.to_builtins({"image": "box", **wanted}), InstanceSpec)
    body = InstanceCreate(name=name, spec=spec)
    return await layer.create_instance(WHO, "default", body, wait=0, idempotency_key=None)


async def kept(layer: Layer, instance: Instance, *, phase: StoragePhase = StoragePhase.READY) -> Snapshot:
    """A snapshot of *instance* as a host would have told it."""

    def write(tx: Transaction) -> Snapshot:
        volume = instance.status.volume or ""
        origin = of_instance(tx.by_id(instance.id) or instance)
        status = SnapshotStatus(
            host=instance.status.host, phase=phase, sizes={volume: 4 << 20}, memory=1, origin=origin
        )
        spec = SnapshotSpec(instance=instance.id, volumes=[volume], memory=True)
        status.taken_at = now()
        return tx.insert(new_resource("snapshot", f"{instance.name}@s", spec, status))

    return await layer.store.write(write)


async def copy(layer: Layer, snapshot: Snapshot, name: str, **wishes: object) -> Instance:
    return await layer.store.write(lambda tx: begin_as_copy(tx, snapshot, name, seed="x", **wishes))  # type: ignore[arg-type]


async def test_a_copy_goes_on_with_the_memory_as_another_machine(layer: Layer, host: StorageHost) -> None:
    web = await create(layer)
    snapshot = await kept(layer, web)
    made = await copy(layer, snapshot, "web-1")
    assert made.status.beginning == Beginning(snapshot=snapshot.id, epoch=1, fresh=True)
    assert (made.spec.epoch, made.spec.power, made.status.host) == (1, Power.RUNNING, web.status.host)
    assert made.spec.hostname is None and made.status.image_digest == web.status.image_digest
    for field in ("address", "mac", "id_base", "volume", "port"):
        assert getattr(made.status, field) != getattr(web.status, field)
    assert [item.port for item in made.spec.nics[0].publish] == [443]
    assert any(decision.what == "beginning" for decision in made.status.decisions)
    disk: Volume = await layer.store.by_id(made.status.volume or "")
    assert disk.spec.source == snapshot.id and disk.spec.owner == made.id and disk.spec.size == 4 << 20
    asked = (await layer.desk.assignments(web.status.host or "", 0, 0)).instances
    assert {item.instance.name: item.source for item in asked} == {"web": "", "web-1": web.status.volume}


async def test_a_fresh_one_may_be_told_another_command_and_no_other_hardware(layer: Layer) -> None:
    web = await create(layer, cpu=1000, memory=64 << 20)
    snapshot = await kept(layer, web)
    wanted = msgspec.structs.replace(web.spec, command=["true"], environment={"A": "b"}, nics=[Nic()], hostname=None)
    made = await copy(layer, snapshot, "job", spec=wanted, labels={"pool": "p"})
    assert made.spec.command == ["true"] and made.labels == {"pool": "p"} and wanted.epoch == web.spec.epoch
    for field, value in (("memory", 128 << 20), ("cpu", 2000), ("disk", 1 << 30), ("isolation", "vm"), ("nics", [])):
        other = msgspec.convert(msgspec.to_builtins(wanted) | {field: value}, InstanceSpec)
        with pytest.raises(Unsupported, match=r"has its hardware|cannot be copied|as many NICs") as refused:
            await copy(layer, snapshot, "other", spec=other)
        assert refused.value.field == f"spec.{field}"


async def test_what_ran_larger_than_its_limits_is_copied_as_it_ran(layer: Layer) -> None:
    web = await create(layer, cpu=2000, memory=128 << 20)

    snapshot = await kept(layer, web)
    origin = snapshot.status.origin
    assert origin is not None
    origin.cpu, origin.memory = 2000, 128 << 20
    origin.spec.cpu, origin.spec.memory = 1000, 64 << 20
    made = await copy(layer, snapshot, "web-1")
    assert (made.spec.cpu, made.spec.memory) == (2000, 128 << 20)


@pytest.mark.parametrize("without", ["memory", "origin", "phase"])
async def test_what_is_no_memory_is_refused_and_nothing_is_left(layer: Layer, without: str) -> None:
    web = await create(layer)
    snapshot = await kept(layer, web, phase=StoragePhase.PENDING if without == "phase" else StoragePhase.READY)
    if without == "memory":
        snapshot.spec.memory = False
    if without == "origin":
        snapshot.status.origin = None
    with pytest.raises((Conflict, Unsupported)):
        origin_of(snapshot)
    with pytest.raises(LamellaError):
        await copy(layer, snapshot, "web-1")
    assert [item.name for item in (await layer.store.list("instance")).items] == ["web"]


async def test_copies_are_refused_what_their_host_has_not(layer: Layer, host: StorageHost) -> None:
    facts = await host.facts()
    facts.cpu, facts.memory = 4000, 1 << 30
    await layer.desk.register(host.name, facts, "")
    web = await create(layer, memory=256 << 20, memory_guarantee=256 << 20, nics=[])
    snapshot = await kept(layer, web)

    def write(tx: Transaction) -> None:
        for number in range(8):
            begin_as_copy(tx, snapshot, f"web-{number}", seed="x")

    with pytest.raises(NoRoom):
        await layer.store.write(write)
    assert [item.name for item in (await layer.store.list("instance")).items] == ["web"]
    assert len((await layer.store.list("volume")).items) == 1
