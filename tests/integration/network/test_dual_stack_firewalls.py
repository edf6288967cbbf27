"""Firewalls against real packets of IPv6: the same rules hold in both families."""

import socket

import pytest
from dual_stack_world import DUAL, UDP, dual, endpoint, passes, pings, serve, stopped
from network_world import NETWORK, World
from test_guard_packets import passes as passes4
from test_guard_packets import stopped as stopped4

from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import DesiredPort
from lamella.host.network.six.plan import link_local
from lamella.model.firewall import FirewallSpec
from lamella.model.firewall_text import parse
from lamella.model.ids import new_id

pytestmark = pytest.mark.root
WEB, APP, NONE = new_id("firewall"), new_id("firewall"), new_id("firewall")
SPECS = {
    WEB: FirewallSpec(
        inbound=[
            parse("tcp:80"),
            parse("icmp:echo"),
            parse(f"from=firewall:{APP}:tcp:5432"),
            parse("from=fd90::3/128:tcp:443"),
            parse("from=10.90.0.4/32:tcp:443"),
        ]
    ),
    APP: FirewallSpec(outbound=[parse("tcp:5432"), parse("udp:53")]),
    NONE: FirewallSpec(),
}


def connect(world: World, *ports: DesiredPort, specs: dict[str, FirewallSpec] = SPECS) -> None:
    async def use(driver: BridgeDriver) -> None:
        await driver.ensure_network(DUAL)
        await driver.protect(specs, ports)
        for index, one in enumerate(ports):
            await driver.attach_namespace(one, world.path(f"i{index}"))

    for index in range(len(ports)):
        world.add(f"i{index}", loopback=False)
        for number in (80, 443, 5432):
            serve(world, f"i{index}", number)
        serve(world, f"i{index}", 53, UDP)
    world.run(use)


def test_what_is_allowed_comes_in_by_either_family_and_nothing_else(world: World) -> None:
    connect(world, dual(2, WEB), dual(3), dual(4, APP))
    web, plain, app = "fd90::2", "fd90::3", "fd90::4"
    # The servers listen for both.
    assert passes(world, "i1", web, 80) and passes4(world, "i1", "10.90.0.2", 80)
    assert pings(world, "i1", web) and world.pings("i1", "10.90.0.2")
    assert stopped(world, "i1", web, 53, UDP) and stopped4(world, "i1", "10.90.0.2", 5432)
    # Members of the firewall that is named, and prefixes of one family each.
    assert passes(world, "i2", web, 5432) and stopped(world, "i1", web, 5432)
    assert passes(world, "i1", web, 443) and stopped4(world, "i1", "10.90.0.2", 443)
    # Out of APP goes what it says; answers come back.
    assert stopped(world, "i2", web, 80) and stopped(world, "i2", plain, 80)
    assert passes(world, "i2", plain, 53, UDP) and passes(world, "i2", plain, 5432)
    assert passes(world, "i0", plain, 443) and stopped(world, "i1", app, 80)
    assert not pings(world, "i1", app, patience=0)
    # By link-local addresses nobody gets around them, in neither direction.
    far, near = f"{link_local(dual(2).mac)}%eth0", f"{link_local(dual(3).mac)}%eth0"
    assert pings(world, "i1", far) and stopped_at(world, "i1", far, 53)
    assert stopped_at(world, "i2", near, 80)
    assert pings(world, "i0", "fd90::1") and pings(world, "i2", "fd90::1")


def stopped_at(world: World, name: str, address: str, number: int) -> bool:
    """As ``stopped``, for an address that is of one link."""
    host, _, link = address.partition("%")
    index = world.inside(name, lambda: socket.if_nametoindex(link))
    client = endpoint(world, name)
    client.settimeout(0.4)
    try:
        client.connect((host, number, 0, index))
    except TimeoutError:
        return True
    return False


def test_a_change_ends_the_flows_that_it_forbids_and_no_others(world: World) -> None:
    both = {**SPECS, WEB: FirewallSpec(inbound=[parse("tcp:7000"), parse("tcp:7001")])}
    one, two = dual(2, WEB), dual(3)
    connect(world, one, two, specs=both)
    server = {number: endpoint(world, "i0") for number in (7000, 7001)}
    flows = []
    for number, listening in server.items():
        listening.bind(("fd90::2", number))
        listening.listen()
        client = endpoint(world, "i1")
        client.connect(("fd90::2", number))
        peer, _ = listening.accept()
        peer.settimeout(30.0)
        world.sockets.append(peer)
        flows.append((client, peer))
    for client, peer in flows:
        client.send(b"before")
        assert peer.recv(100) == b"before"
    only = {**SPECS, WEB: FirewallSpec(inbound=[parse("tcp:7000")])}

    async def change(driver: BridgeDriver) -> None:
        await driver.ensure_network(DUAL)
        await driver.protect(both, [one, two])
        await driver.protect(only, [one, two])

    world.run(change)
    (kept, left), (ended, lost) = flows
    kept.send(b"after")
    ended.send(b"after")
    assert left.recv(100) == b"after"
    lost.settimeout(1.0)
    with pytest.raises(TimeoutError):
        lost.recv(100)


def test_tables_that_somebody_takes_away_come_back(world: World) -> None:
    one, two = dual(2, WEB), dual(3)
    connect(world, one, two)
    table = f"{world.home.mark}-g6"

    async def use(driver: BridgeDriver) -> None:
        await driver.ensure_network(DUAL)
        await driver.protect(SPECS, [one, two])
        await driver.repair([NETWORK, DUAL], [one, two])
        assert await driver.look() == []
        for family in ("ip6", "bridge"):
            world.in_("layer", "nft", "delete", "table", family, table)
            assert await driver.look() != []
        world.in_("layer", "nft", "flush", "map", "ip6", table, "in")
        assert await driver.look() != []

    world.run(use)
    assert passes(world, "i1", "fd90::2", 80) and stopped(world, "i1", "fd90::2", 5432)


def test_who_leaves_takes_the_rules_along(world: World) -> None:
    one, two = dual(2, WEB), dual(3)
    connect(world, one, two)

    async def use(driver: BridgeDriver) -> None:
        await driver.ensure_network(DUAL)
        await driver.protect(SPECS, [one, two])
        await driver.detach(one.id)
        await driver.protect(SPECS, [two])
        assert "fd90::2" not in world.in_("layer", "nft", "list", "ruleset")

    world.run(use)
    # A daemon that finds them, with nobody of IPv6 to guard.
    world.run(lambda driver: driver.protect({}, []))
    assert f"{world.home.mark}-g6" not in world.in_("layer", "nft", "list", "tables")
