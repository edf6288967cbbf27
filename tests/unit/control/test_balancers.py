"""Balancers as rows: an address that is nobody else's, listeners that make sense, and whom hosts are told to lead to."""

from typing import Any

import pytest
from test_device_changes import ROOT, create, layer  # noqa: F401  (layer is a fixture)

from lamella.control.layer import Layer
from lamella.model.assignment import Assignments, InstanceReport
from lamella.model.balancer import BackendState, Balancer, BalancerReport, BalancerTask, Check, Listener, Target
from lamella.model.errors import Conflict, Forbidden, Invalid, LamellaError, NotFound, Unsupported
from lamella.model.instance import Instance, Nic, Phase, Publish
from lamella.model.network_bodies import BalancerCreate
from lamella.model.requests import Principal, ResourcePatch

WEB = Target(labels={"role": "web"}, port=8080)


async def made(layer: Layer, name: str = "www", **more: Any) -> Balancer:  # noqa: F811
    asked = {"listeners": [Listener(port=80)], "targets": [WEB], **more}
    return await layer.balancers.create(ROOT, "default", BalancerCreate(name=name, **asked))


async def change(layer: Layer, **spec: Any) -> Balancer:  # noqa: F811
    return await layer.patch(ROOT, "default", "balancer", "www", ResourcePatch(spec=spec), expected=None, wait=0)


async def told(layer: Layer, host: str, since: int = 0) -> Assignments:  # noqa: F811
    return await layer.desk.assignments(host, since, 0)


async def running(layer: Layer, instance: Instance, phase: Phase = Phase.RUNNING) -> None:  # noqa: F811
    status = (await layer.store.by_id(instance.id)).status
    status.phase = phase
    await layer.desk.report(instance.status.host or "", [InstanceReport(id=instance.id, status=status)])


async def labelled(layer: Layer, instance: Instance, **labels: str | None) -> None:  # noqa: F811
    body = ResourcePatch(labels=labels)
    await layer.patch(ROOT, "default", "instance", instance.name, body, expected=None, wait=0)


def members(news: Assignments) -> list[list[str]]:
    assert news.balancers is not None
    (task,) = news.balancers
    assert isinstance(task, BalancerTask)
    return [[member.name for member in each] for each in task.members]


async def test_its_address_is_nobody_elses(layer: Layer) -> None:  # noqa: F811
    one = await made(layer, address="10.83.0.200")
    assert one.spec.address == "10.83.0.200"
    with pytest.raises(Conflict, match=r"10\.83\.0\.200 is taken"):
        await made(layer, "other", address="10.83.0.200")
    with pytest.raises(Conflict, match="is taken"):
        await create(layer, nics=[Nic(address="10.83.0.200")])
    for address, error in (("10.83.0.1", Conflict), ("10.9.0.1", Invalid), ("here", Invalid)):
        with pytest.raises(error) as caught:
            await made(layer, "other", address=address)
        assert caught.value.field == "address"
    with pytest.raises(NotFound, match="no network"):
        await made(layer, "other", network="nowhere")
    free = await made(layer, "free")
    assert free.spec.address not in ("10.83.0.200", "10.83.0.1", "")
    await layer.delete(ROOT, "default", "balancer", "www", force=False, expected=None, wait=0)
    assert (await made(layer, "again", address="10.83.0.200")).spec.address == "10.83.0.200"


@pytest.mark.parametrize(
    ("asked", "error", "field"),
    [
        ({"listeners": [Listener(port=80), Listener(port=80)]}, Conflict, "listeners"),
        ({"targets": [Target()]}, Invalid, "targets"),
        ({"targets": [Target(labels={"a": "b"}, instance="w1")]}, Invalid, "targets"),
        ({"listeners": [Listener(protocol="udp", port=53)]}, Invalid, "check"),
        ({"listeners": [Listener(protocol="http", port=53)]}, Invalid, "listeners"),
        ({"targets": [Target(instance="w1", path="/api")]}, Invalid, "targets"),
        ({"listeners": [Listener(protocol="https", port=443)]}, Invalid, "certificate"),
        ({"listeners": [Listener(port=80), Listener(protocol="http", port=80)]}, Conflict, "listeners"),
        ({"publish": [Publish(port=80)]}, Invalid, "publish"),
        ({"publish": [Publish(host_port=8080, port=81)]}, Invalid, "publish"),
        ({"publish": [Publish(host_port=8080, port=80), Publish(host_port=8080, port=80)]}, Conflict, "publish"),
    ],
)
async def test_one_that_contradicts_itself_leaves_nothing(
    layer: Layer,  # noqa: F811
    asked: dict[str, Any],
    error: type[LamellaError],
    field: str,
) -> None:
    with pytest.raises(error) as caught:
        await made(layer, **asked)
    assert caught.value.field == field
    assert (await layer.store.list("balancer", project="default")).items == []
    # A UDP port whose health something else tells is fine.
    await made(layer, listeners=[Listener(protocol="udp", port=53)], check=Check(port=8053))


async def test_files_of_the_hosts_are_for_administrators(layer: Layer) -> None:  # noqa: F811
    body = BalancerCreate(
        name="www", listeners=[Listener(protocol="https", port=443)], certificate="/etc/ssl/private/www.pem"
    )
    with pytest.raises(Forbidden, match="administrators"):
        await layer.balancers.create(Principal(name="unix:ann"), "default", body)
    await layer.balancers.create(ROOT, "default", body)


async def test_backends_come_and_go_with_their_labels(layer: Layer) -> None:  # noqa: F811
    await made(layer, targets=[WEB, Target(instance="db")])
    instance = (await create(layer, nics=[Nic()])).instance
    host = instance.status.host or ""
    news = await told(layer, host)
    assert members(news) == [[], []]  # it does not run
    await running(layer, instance)
    news = await told(layer, host, news.revision)
    assert members(news) == [[], ["db"]]
    await labelled(layer, instance, role="web", tier="a")
    news = await told(layer, host, news.revision)
    assert members(news) == [["db"], ["db"]]
    assert news.balancers is not None
    assert news.balancers[0].members[0][0].address == instance.status.address.partition("/")[0]

    await change(layer, draining=["db"])
    news = await told(layer, host, news.revision)
    assert news.balancers is not None and news.balancers[0].members[0][0].draining
    await labelled(layer, instance, role=None)
    await running(layer, instance, Phase.STOPPING)
    news = await told(layer, host, news.revision)
    assert members(news) == [[], []]
    # Another host hears of the balancer, and has nobody for it.
    assert members(await told(layer, "host_other")) == [[], []]
    # What has nothing to do with it says nothing of it.
    await layer.patch(ROOT, "default", "image", "tools", ResourcePatch(labels={"a": "b"}), expected=None, wait=0)
    assert (await told(layer, host, news.revision)).balancers is None


async def test_a_host_port_is_published_once(layer: Layer) -> None:  # noqa: F811
    publish = [Publish(host_port=8080, port=80)]
    await made(layer, publish=publish)
    with pytest.raises(Conflict, match="published by www"):
        await made(layer, "other", publish=publish)
    with pytest.raises(Conflict, match="published by www") as caught:
        await create(layer, nics=[Nic(publish=publish)])
    assert "balancer rm www" in caught.value.hint
    await change(layer, publish=[])
    await create(layer, nics=[Nic(publish=publish)])
    with pytest.raises(Conflict, match="published by db"):
        await change(layer, publish=[{"host_port": 8080, "port": 80}])
    assert (await layer.store.get("balancer", "default", "www")).spec.publish == []


async def test_where_it_is_stays_and_its_network_stays_with_it(layer: Layer) -> None:  # noqa: F811
    await layer.networks.create(ROOT, "default", _network("front"))
    await made(layer, network="front")
    for spec in ({"address": "10.84.0.9"}, {"network": "default"}):
        with pytest.raises(Unsupported, match="stay"):
            await change(layer, **spec)
    with pytest.raises(Invalid):
        await change(layer, listeners=[])
    with pytest.raises(Conflict, match="in use by balancer www"):
        await layer.delete(ROOT, "default", "network", "front", force=False, expected=None, wait=0)
    await layer.delete(ROOT, "default", "balancer", "www", force=False, expected=None, wait=0)
    await layer.delete(ROOT, "default", "network", "front", force=False, expected=None, wait=0)


async def test_what_a_host_sees_is_written_down(layer: Layer) -> None:  # noqa: F811
    balancer = await made(layer)
    seen = [BackendState(instance="w1", address="10.83.0.2", port=8080, state="down", reason="it answers 503")]
    report = BalancerReport(id=balancer.id, backends=seen, events=[("balancer.backend.down", "w1 is down")])
    await layer.desk.report_balancers("host_1", [report, BalancerReport(id="bal_gone")])
    found = await layer.store.get("balancer", "default", "www")
    assert found.status.backends == {"host_1": seen}
    events = (await layer.store.list("event", project="default")).items
    assert any(event.spec.type == "balancer.backend.down" for event in events)


def _network(name: str) -> Any:
    from lamella.model.network_bodies import NetworkCreate

    return NetworkCreate(name=name, subnet="10.84.0.0/24")
