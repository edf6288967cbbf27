"""Networks with the same addresses behind different routers: what a firewall lets pass on one of them is nothing to the other."""

import socket

import pytest
from msgspec.structs import replace
from network_world import World
from test_routers import behind, network, on

from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.routers.desired import DesiredRouter
from lamella.model.firewall import FirewallSpec
from lamella.model.firewall_text import parse
from lamella.model.ids import new_id

pytestmark = pytest.mark.root

OPEN, SHUT = new_id("firewall"), new_id("firewall")
SPECS = {OPEN: FirewallSpec(inbound=[parse("udp:5000")]), SHUT: FirewallSpec(inbound=[parse("tcp:1")])}


def answered(world: World, name: str, *, within: float = 3) -> str:
    """What 10.10.0.3 answers to the same five numbers each time; empty when nobody does."""
    client = world.endpoint(name, socket.SOCK_DGRAM)
    client.settimeout(within)
    with client:
        client.bind(("10.10.0.2", 40000))
        client.connect(("10.10.0.3", 5000))
        client.send(b"?")
        try:
            return client.recv(100).decode()
        except OSError:
            return ""


def test_flows_of_one_network_are_not_those_of_the_other(world: World) -> None:
    routers = [DesiredRouter(id=new_id("router"), name=name, networks=[]) for name in ("west", "east")]
    networks = [
        behind(router.id, network(name, "10.10.0"))[0] for router, name in zip(routers, ("front", "twin"), strict=True)
    ]
    routers = [replace(router, networks=[one.id]) for router, one in zip(routers, networks, strict=True)]
    ports = {
        f"{side}{number}": replace(on(one, number), firewalls=[firewall])
        for side, one, firewall in (("a", networks[0], OPEN), ("b", networks[1], SHUT))
        for number in (2, 3)
    }
    for name in ports:
        world.add(name)
        world.serve(name, 5000, name, socket.SOCK_DGRAM)

    async def use(driver: BridgeDriver) -> None:
        for one in networks:
            await driver.ensure_network(one)
        await driver.route(routers)
        await driver.protect(SPECS, ports.values())
        for name, port in ports.items():
            await driver.attach_namespace(port, world.path(name))
        # Said again until it comes: the first packet may meet a bridge that is being made.
        assert any(answered(world, "a2") == "a3 10.10.0.2" for _ in range(10))
        for _ in range(3):
            assert answered(world, "b2") == ""
        # Now the other way around: flows of the one end, and those of the other begin.
        await driver.protect(SPECS, [replace(port, firewalls=_other(port.firewalls)) for port in ports.values()])
        assert any(answered(world, "b2") == "b3 10.10.0.2" for _ in range(10))
        for _ in range(3):
            assert answered(world, "a2") == ""

    world.run(use, fresh=False)


def _other(firewalls: list[str]) -> list[str]:
    return [SHUT if firewalls == [OPEN] else OPEN]
