"""Volumes in a pool that several hosts reach: whoever has one open is asked about it."""

from tests.storage_host import StorageHost

from lamella.control.layer import Layer
from lamella.model.instance import Instance, InstanceSpec, Power
from lamella.model.operation import OperationPhase
from lamella.model.replication_bodies import VolumeMove
from lamella.model.requests import InstanceCreate, Principal
from lamella.model.storage import Feature, PoolSpec, VolumeMount, VolumeSpec
from lamella.model.storage_bodies import PoolCreate, SnapshotCreate, VolumeCreate

WHO = Principal(name="unix:root", admin=True)
WAIT = 90.0


async def test_the_host_of_the_instance_that_has_a_shared_volume_is_asked_about_it(
    layer: Layer, host: StorageHost
) -> None:
    beta = StorageHost("beta")
    beta.volumes = host.volumes
    for one in (host, beta):
        one.pools["default"].features.append(str(Feature.SHARED))
    await layer.desk.register(host.name, await host.facts(), "")
    body = PoolCreate(name="far", spec=PoolSpec(driver="directory", path="/srv/far"))
    await layer.storage.pools.create(WHO, "default", body, wait=WAIT)
    made = VolumeCreate(name="data", spec=VolumeSpec(size=1 << 30, filesystem="ext4"))
    home = (await layer.storage.volumes.create(WHO, "default", made, wait=WAIT)).status.host
    id = await layer.desk.register("beta", await beta.facts(), "")
    layer.connect_host(id, beta)
    mounts = [VolumeMount(volume="data", target="/data")]
    spec = InstanceSpec(image="box", volumes=mounts, power=Power.STOPPED)
    await layer.create_instance(WHO, "default", InstanceCreate(name="one", spec=spec), wait=0, idempotency_key=None)

    def place(tx):
        instance: Instance = tx.get("instance", "default", "one")
        instance.status.host = id
        tx.update(instance)

    await layer.store.write(place)
    host.asked.clear()
    ended = [await layer.storage.volumes.resize(WHO, "default", "data", 2 << 30, wait=WAIT)]
    snapshot = await layer.storage.snapshots.create(
        WHO, "default", SnapshotCreate(name="now", volume="data"), wait=WAIT
    )
    assert snapshot.status.host == id != home
    ended.append(await layer.storage.snapshots.restore(WHO, "default", "data@now", wait=WAIT))
    await layer.storage.snapshots.delete(WHO, "default", "data@now", expected=None, wait=WAIT)
    ended.append(await layer.storage.transferring.move(WHO, "default", "data", VolumeMove(pool="far"), wait=WAIT))
    assert [operation.status.phase for operation in ended] == [OperationPhase.DONE] * 3
    verbs = ["ResizeVolume", "TakeSnapshot", "RestoreSnapshot", "DropSnapshot", "MoveVolume"]
    assert [verb for verb in verbs if verb in beta.asked] == verbs
    assert [verb for verb in verbs if verb in host.asked] == []
