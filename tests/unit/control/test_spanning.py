"""Networks that span hosts as rows: numbers, what packets have room for, and who is told of whom."""

import asyncio
from ipaddress import IPv4Address

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_admission import a_host
from test_device_changes import ROOT, layer  # noqa: F401  (layer is a fixture)
from test_tracing import network, port

from lamella.control.layer import Layer
from lamella.control.network import spanning
from lamella.control.network.looking import traced
from lamella.control.network.tracing import Ground, trace
from lamella.model.assignment import Assignments, InstanceReport
from lamella.model.errors import NoRoom
from lamella.model.firewall import Protocol
from lamella.model.host import HostStatus, Underlay
from lamella.model.instance import InstanceSpec, Isolation, Nic
from lamella.model.network import Network
from lamella.model.network_bodies import FirewallCreate, FirewallMember, NetworkCreate
from lamella.model.requests import InstanceCreate
from lamella.model.router_bodies import RouterCreate
from lamella.model.verdict import Packet


@given(st.text(), st.sets(st.integers(1, 1 << 24), max_size=20))
def test_a_number_is_free_and_one_of_24_bits(id: str, taken: set[int]) -> None:
    vni = spanning.free_vni(id, {str(one) for one in taken})
    assert 0 < vni < 1 << 24 and vni not in taken


def test_there_are_no_more_numbers_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spanning, "VNIS", 4)
    assert {spanning.free_vni("x", set[str]()), spanning.free_vni("x", {"1", "2"})} <= {1, 2, 3}
    with pytest.raises(NoRoom):
        spanning.free_vni("x", {"1", "2", "3"})


async def register(layer: Layer, name: str, address: str = "", mtu: int = 1500) -> str:  # noqa: F811
    status = HostStatus(
        capabilities=a_host().status.capabilities,
        architecture="amd64",
        underlay=Underlay(address=address, mtu=mtu) if address else None,
    )
    return await layer.desk.register(name, status, "")


async def network_named(layer: Layer, name: str) -> Network:  # noqa: F811
    return await layer.get(ROOT, "default", "network", name)


async def run(layer: Layer, name: str, network: str = "default") -> str:  # noqa: F811
    """An instance of that name; returns the id of its host."""
    spec = InstanceSpec(image="debian:12", isolation=Isolation.VM, nics=[Nic(network=network)])
    made = await layer.create_instance(
        ROOT, "default", InstanceCreate(name=name, spec=spec), wait=0, idempotency_key=None
    )
    return made.status.host or ""


async def remove(layer: Layer, host: str, name: str) -> None:  # noqa: F811
    """Wholly: its host has let go of it."""
    await layer.delete(ROOT, "default", "instance", name, force=True, expected=None, wait=0)
    gone = await layer.get(ROOT, "default", "instance", name)
    await layer.desk.report(host, [InstanceReport(id=gone.id, status=gone.status, removed=True)])


async def told(layer: Layer, host: str) -> Assignments:  # noqa: F811
    return await layer.desk.assignments(host, 0, 0)


async def test_networks_have_a_number_and_an_mtu_as_soon_as_a_host_tunnels(layer: Layer) -> None:  # noqa: F811
    await register(layer, "alpha")
    before = await network_named(layer, "default")
    assert (before.status.vni, before.status.mtu) == (0, 0)
    await register(layer, "alpha", "192.0.2.1")
    seen = await network_named(layer, "default")
    assert 0 < seen.status.vni < 1 << 24 and seen.status.mtu == 1450
    large = await layer.networks.create(ROOT, "default", NetworkCreate(name="large", mtu=9000))
    small = await layer.networks.create(ROOT, "default", NetworkCreate(name="small", mtu=1280))
    outside = NetworkCreate(name="outside", subnet="203.0.113.0/24", external=True)
    outer = await layer.networks.create(ROOT, "default", outside)
    assert (large.status.mtu, small.status.mtu, outer.status.mtu) == (1450, 1280, 0)
    assert len({seen.status.vni, large.status.vni, small.status.vni}) == 3 and outer.status.vni == 0
    # The narrowest underlay counts; a number that a network has it keeps.
    await register(layer, "beta", "192.0.2.2", mtu=1400)
    after = await network_named(layer, "default")
    assert (after.status.vni, after.status.mtu) == (seen.status.vni, 1350)
    assert (await network_named(layer, "small")).status.mtu == 1280
    for name in ("alpha", "beta"):
        await register(layer, name)
    after = await network_named(layer, "default")
    assert (after.status.vni, after.status.mtu) == (seen.status.vni, 0)


async def test_a_host_is_told_of_the_ports_on_others_that_concern_it(layer: Layer) -> None:  # noqa: F811
    alpha = await register(layer, "alpha", "192.0.2.1")
    beta = await register(layer, "beta", "192.0.2.2")
    await layer.networks.create(ROOT, "default", NetworkCreate(name="other"))
    first = await run(layer, "one")
    assert (await told(layer, alpha)).neighbours == [] and (await told(layer, beta)).neighbours == []
    second = await run(layer, "two")
    assert {first, second} == {alpha, beta}
    await run(layer, "three", "other")
    for host, name, address in ((first, "two", second), (second, "one", first)):
        (seen,) = (await told(layer, host)).neighbours or []
        port = await layer.get(ROOT, "default", "instance", name)
        assert (seen.port, seen.name, seen.mac) == (port.status.port, (name,), port.status.mac)
        assert seen.host == {alpha: "192.0.2.1", beta: "192.0.2.2"}[address]
        assert seen.address.partition("/")[0] == port.status.address


async def test_hosts_hear_of_whoever_comes_and_goes_elsewhere(layer: Layer) -> None:  # noqa: F811
    await register(layer, "alpha", "192.0.2.1")
    await register(layer, "beta", "192.0.2.2")
    first, second = await run(layer, "one"), await run(layer, "two")
    known = await told(layer, first)

    async def heard(since: int) -> Assignments:
        """The next that it is told of neighbours."""
        async with asyncio.timeout(90):
            while True:
                news = await layer.desk.assignments(first, since, 10)
                since = news.revision
                if news.neighbours is not None:
                    return news

    waiting = asyncio.create_task(heard(known.revision))
    await layer.firewalls.create(ROOT, "default", FirewallCreate(name="web"))
    guarded = await layer.firewalls.attach(ROOT, "default", "web", FirewallMember(instance="two"))
    news = await waiting
    while not (news.neighbours and news.neighbours[0].firewalls):
        news = await heard(news.revision)
    assert news.neighbours[0].firewalls == [guarded.id]
    waiting = asyncio.create_task(heard(news.revision))
    await remove(layer, second, "two")
    news = await waiting
    while news.neighbours:
        news = await heard(news.revision)
    assert news.neighbours == []


async def test_a_host_that_does_not_tunnel_is_no_neighbour(layer: Layer) -> None:  # noqa: F811
    alpha = await register(layer, "alpha", "192.0.2.1")
    beta = await register(layer, "beta")
    assert {await run(layer, "one"), await run(layer, "two")} == {alpha, beta}
    assert (await told(layer, alpha)).neighbours == [] and (await told(layer, beta)).neighbours == []


def test_a_trace_says_what_becomes_of_it_between_hosts() -> None:
    front, back = network("front", "10.10.0.0/24"), network("back", "10.20.0.0/24")
    ports = [port("w1", front, "10.10.0.2"), port("w2", front, "10.10.0.3")]
    for one, host in zip(ports, ("alpha", "beta"), strict=True):
        one.status.host = host
    ground = Ground(
        networks={one.id: one for one in (front, back)},
        ports=ports,
        firewalls={},
        names={one.spec.owner: one.spec.owner for one in ports},
    )
    asked = Packet(
        source=IPv4Address("10.10.0.2"), destination=IPv4Address("10.10.0.3"), protocol="tcp", port=80, type=0
    )
    seen = trace(ground, ports[0], asked)
    assert not seen.passes and "was not told --underlay" in seen.steps[-1].because
    both = msgspec.structs.replace(ground, tunnelling={"alpha", "beta"})
    seen = trace(both, ports[0], asked)
    assert seen.passes and "VXLAN carries it there" in next(step.because for step in seen.steps if step.where == "host")


async def test_a_trace_of_what_a_router_leads_ends_at_its_host(layer: Layer) -> None:  # noqa: F811
    await register(layer, "alpha", "192.0.2.1")
    await register(layer, "beta", "192.0.2.2")
    for name in ("front", "back"):
        await layer.networks.create(ROOT, "default", NetworkCreate(name=name))
    await layer.routers.create(ROOT, "default", RouterCreate(name="edge", networks=["front", "back"]))
    assert await run(layer, "one", "front") != await run(layer, "two", "back")
    seen = await layer.store.read(lambda tx: traced(tx, "default", "one", "two", Protocol.TCP, 80, 0))
    assert not seen.passes and "routers lead to instances of their own alone" in seen.steps[-1].because
