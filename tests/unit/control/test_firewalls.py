"""Firewalls as rows: rules that make sense, names that are there, members that come and go, and what hosts are told."""

import pytest
from test_device_changes import ROOT, assignment, create, layer, patch  # noqa: F401  (layer is a fixture)

from lamella.control.layer import Layer
from lamella.model.assignment import Assignments
from lamella.model.errors import Conflict, Invalid, NotFound
from lamella.model.firewall import Firewall, PortRange, Protocol, Rule
from lamella.model.firewall_text import parse
from lamella.model.instance import InstanceSpec, Nic
from lamella.model.network_bodies import FirewallCreate, FirewallDefault, FirewallMember
from lamella.model.requests import InstanceCreate, ResourcePatch


async def made(layer: Layer, name: str, *texts: str) -> Firewall:  # noqa: F811
    body = FirewallCreate(name=name, inbound=[parse(text) for text in texts])
    return await layer.firewalls.create(ROOT, "default", body)


async def told(layer: Layer, host: str, since: int) -> Assignments:  # noqa: F811
    return await layer.desk.assignments(host, since, 0)


async def test_rules_name_firewalls_by_id(layer: Layer) -> None:  # noqa: F811
    app = await made(layer, "app")
    web = await made(layer, "web", "from=firewall:app:tcp:5432", "from=10.0.0.1:udp")
    assert [rule.peer for rule in web.spec.inbound] == [f"firewall:{app.id}", "10.0.0.1/32"]
    with pytest.raises(Conflict, match="rules of firewall web name app"):
        await layer.delete(ROOT, "default", "firewall", "app", force=False, expected=None, wait=0)
    # One may name itself: its members reach each other.
    own = await made(layer, "own", "from=firewall:own:any")
    assert own.spec.inbound[0].peer == f"firewall:{own.id}"
    await layer.delete(ROOT, "default", "firewall", "own", force=False, expected=None, wait=0)


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        (Rule(peer="firewall:nobody"), NotFound),
        (Rule(peer="10.0.0.1/8"), Invalid),
        (Rule(peer="somebody"), Invalid),
        (Rule(peer="fd00::1/8"), Invalid),
        (Rule(ports=[PortRange(first=1, last=2)]), Invalid),
        (Rule(protocol=Protocol.TCP, types=[8]), Invalid),
        (Rule(protocol=Protocol.TCP, ports=[PortRange(first=9, last=2)]), Invalid),
    ],
)
async def test_a_rule_that_says_nothing_leaves_nothing(layer: Layer, rule: Rule, error: type[Exception]) -> None:  # noqa: F811
    with pytest.raises(error):
        await layer.firewalls.create(ROOT, "default", FirewallCreate(name="web", inbound=[rule]))
    assert (await layer.store.list("firewall", project="default")).items == []


async def test_what_guards_an_instance_is_told_to_its_host(layer: Layer) -> None:  # noqa: F811
    web = await made(layer, "web", "tcp:80")
    asked = await create(layer, nics=[Nic(firewalls=["web"])])
    host = asked.instance.status.host or ""
    assert asked.port is not None and asked.port.spec.firewalls == [web.id]
    news = await told(layer, host, 0)
    assert news.firewalls is not None and [firewall.id for firewall in news.firewalls] == [web.id]

    app = await made(layer, "app")
    await layer.firewalls.attach(ROOT, "default", "app", FirewallMember(instance="db"))
    news = await told(layer, host, news.revision)
    assert news.firewalls is not None and len(news.firewalls) == 2
    (assignment,) = news.instances
    assert assignment.port is not None and assignment.port.spec.firewalls == sorted([web.id, app.id])

    with pytest.raises(Conflict, match="guards db"):
        await layer.delete(ROOT, "default", "firewall", "app", force=False, expected=None, wait=0)
    await layer.firewalls.detach(ROOT, "default", "app", FirewallMember(instance="db"))
    with pytest.raises(NotFound, match="does not guard"):
        await layer.firewalls.detach(ROOT, "default", "app", FirewallMember(instance="db"))
    await layer.delete(ROOT, "default", "firewall", "app", force=False, expected=None, wait=0)

    await layer.patch(
        ROOT, "default", "firewall", "web",
        ResourcePatch(spec={"inbound": [{"protocol": "udp", "ports": [{"first": 53, "last": 53}]}]}), expected=None, wait=0,
    )  # fmt: skip
    news = await told(layer, host, news.revision)
    assert news.firewalls is not None and news.firewalls[0].spec.inbound[0].protocol is Protocol.UDP
    # A change of something else says nothing of firewalls.
    since = news.revision
    await layer.patch(ROOT, "default", "image", "tools", ResourcePatch(labels={"a": "b"}), expected=None, wait=0)
    assert (await told(layer, host, since)).firewalls is None


async def test_the_default_guards_whoever_names_none(layer: Layer) -> None:  # noqa: F811
    web = await made(layer, "web", "tcp:80,443", "from=firewall:web:any")
    with pytest.raises(NotFound, match="no firewall"):
        await layer.firewalls.make_default(ROOT, "default", FirewallDefault(firewall="nothing"))
    await layer.firewalls.make_default(ROOT, "default", FirewallDefault(firewall="web"))
    asked = await create(layer, nics=[Nic()])
    assert asked.port is not None and asked.port.spec.firewalls == [web.id]
    said = await layer.contract(ROOT, "default", "db")
    (line,) = [line for line in said.guarantees if line.subject.startswith("firewall")]
    assert line.value == "web: tcp:80,443, from=firewall:web:any may come in" and line.enforced_by

    with pytest.raises(Conflict, match="guards db"):
        await layer.delete(ROOT, "default", "firewall", "web", force=False, expected=None, wait=0)
    # A NIC that comes later is guarded too; one that says none is not.
    await patch(layer, nics=[{}, {"name": "net1"}, {"name": "net2", "firewalls": ["none"]}])
    ports = (await assignment(layer)).ports
    assert [ports[name].spec.firewalls for name in ("net1", "net2")] == [[web.id], []]
    said = await layer.contract(ROOT, "default", "db")
    values = [line.value for line in said.guarantees if line.subject.startswith("firewall")]
    assert values[2] == "none: whatever is on network default may come in"


async def test_a_default_that_guards_nobody_yet_stays(layer: Layer) -> None:  # noqa: F811
    await made(layer, "web")
    await layer.firewalls.make_default(ROOT, "default", FirewallDefault(firewall="web"))
    with pytest.raises(Conflict, match="by default"):
        await layer.delete(ROOT, "default", "firewall", "web", force=False, expected=None, wait=0)
    await layer.firewalls.make_default(ROOT, "default", FirewallDefault(firewall=""))
    await layer.delete(ROOT, "default", "firewall", "web", force=False, expected=None, wait=0)
    with pytest.raises(Invalid, match="called none"):
        await made(layer, "none")


async def test_an_instance_with_a_firewall_that_is_not_there_is_not_made(layer: Layer) -> None:  # noqa: F811
    spec = InstanceSpec(image="debian:12", nics=[Nic(firewalls=["nothing"])])
    with pytest.raises(NotFound, match="no firewall"):
        await layer.create_instance(ROOT, "default", InstanceCreate(name="x", spec=spec), wait=0, idempotency_key=None)
    assert (await layer.store.list("instance", project="default")).items == []
