"""What others undo of the layer's network is noticed and done again, and nothing else is touched."""

import asyncio

import pytest
from msgspec.structs import replace
from network_world import World, command, port
from test_routers import network, on, two_networks

from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.names import gateway_name
from lamella.host.network.routers.desired import DesiredRoute
from lamella.host.network.routers.spaces import Spaces
from lamella.model.firewall import FirewallSpec
from lamella.model.firewall_text import parse
from lamella.model.ids import new_id
from lamella.model.instance import Publish

pytestmark = pytest.mark.root

WEB = new_id("firewall")
SPECS = {WEB: FirewallSpec(inbound=[parse("tcp:80")])}


def test_what_somebody_undid_is_done_again(world: World) -> None:
    one, two = replace(port(2, Publish(host_port=8080, port=80)), firewalls=[WEB]), port(3)
    for name in ("i0", "i1"):
        world.add(name)
        for number in (80, 5432):
            world.serve(name, number, name)
    world.serve("internet", 80, "out")

    def answers(name: str, address: str, number: int) -> bool:
        """Once in a few tries: the first packet may meet a bridge that is being made."""
        for _ in range(5):
            try:
                return bool(world.ask(name, address, number))
            except OSError:
                continue
        return False

    def whole() -> None:
        assert answers("i1", "10.83.0.2", 80) and answers("i1", "203.0.113.9", 80)
        assert answers("internet", "203.0.113.1", 8080)

    async def use(driver: BridgeDriver) -> None:
        await driver.protect(SPECS, [one, two])
        await driver.attach_namespace(one, world.path("i0"))
        await driver.attach_namespace(two, world.path("i1"))
        await driver.publish(one)
        assert await driver.look() == []
        await asyncio.to_thread(whole)
        bridge = next(link for link in world.links("layer") if link.startswith("lam"))
        for namespace, *words in (
            ("layer", "nft", "flush", "ruleset"),
            ("host", "nft", "flush", "ruleset"),
            ("layer", "nft", "flush", "set", "bridge", world.home.mark, "known"),
            ("layer", "nft", "flush", "map", "ip", f"{world.home.mark}-g", "in"),
            ("layer", "ip", "link", "set", bridge, "down"),
            ("layer", "ip", "link", "del", bridge),
        ):
            world.in_(namespace, *words)
            assert await driver.look(), words
            await asyncio.to_thread(whole)
            assert await driver.look() == []
            if f"{world.home.mark}-g" in words or "ruleset" in words:
                with pytest.raises(OSError):
                    world.ask("i1", "10.83.0.2", 5432)

    world.run(use)


def test_what_goes_on_is_not_taken_for_damage(world: World) -> None:
    """Instances come and go while it looks: nothing is repaired under them."""
    ports = [port(number) for number in range(2, 10)]
    for number in range(8):
        world.add(f"i{number}")

    async def use(driver: BridgeDriver) -> None:
        async def come_and_go() -> None:
            for _ in range(6):
                for number, one in enumerate(ports):
                    await driver.attach_namespace(one, world.path(f"i{number}"))
                for one in ports:
                    await driver.detach(one.id)

        coming = asyncio.create_task(come_and_go())
        while not coming.done():
            assert await driver.look() == []
            await asyncio.sleep(0)
        await coming
        assert await driver.look() == []

    world.run(use)


def test_routers_are_looked_at_too(world: World) -> None:
    routed = two_networks(world)
    front = routed.networks[0]

    async def use(driver: BridgeDriver) -> None:
        await routed.settle(driver)
        assert await driver.look() == []
        world.in_("layer", "ip", "link", "del", gateway_name(front.id))
        assert "router edge" in await driver.look()
        assert await driver.look() == []

    world.run(use, fresh=False)
    assert routed.ask("w1", "10.20.0.2", 5432) == "db 10.10.0.2"


def test_what_keeps_a_network_in_is_looked_at_too(world: World) -> None:
    """Whoever empties the set of isolated networks lets them out: in the layer's rules and in a router's."""
    routed = two_networks(world)
    plain = network("plain", "10.30.0", isolated=True)
    routed.networks.append(plain)
    routed.add("p1", on(plain, 2))
    routed.life("p1")
    space = Spaces.of(world.home).path(routed.routers[0].id)
    mark = world.home.mark

    async def use(driver: BridgeDriver) -> None:
        await routed.settle(driver)
        assert await driver.look() == []
        for words, said in (
            (
                ("ip", "netns", "exec", world.full("layer"), "nft", "flush", "set", "ip", mark, "isolated"),
                "network plain",
            ),
            (("nsenter", f"--net={space}", "nft", "flush", "set", "ip", f"{mark}-r", "isolated"), "router edge"),
        ):
            command(*words)
            found = await driver.look()
            assert any(said in one for one in found), found
            assert await driver.look() == []

    world.run(use, fresh=False)
    assert routed.silent("p1", "203.0.113.9") and routed.silent("db", "203.0.113.9")
    assert routed.ask("w1", "203.0.113.9") == "web 203.0.113.1"


def test_every_rule_and_route_of_a_router_is_looked_at(world: World) -> None:
    routed = two_networks(world)
    edge = routed.routers[0]
    routed.routers[0] = replace(edge, routes=[*edge.routes, DesiredRoute("10.99.0.0/16", "10.20.0.2")])
    space = Spaces.of(world.home).path(edge.id)
    table = f"{world.home.mark}-r"

    async def use(driver: BridgeDriver) -> None:
        await routed.settle(driver)
        assert await driver.look() == []
        for words in (
            ("nft", "insert", "rule", "ip", table, "forward", "accept"),
            ("nft", "flush", "chain", "ip", table, "input"),
            ("nft", "flush", "set", "ip", table, "turning"),
            ("nft", "add", "element", "ip", table, "floating", "{", "203.0.113.77", ":", "10.10.0.2", "}"),
            ("ip", "route", "del", "10.99.0.0/16"),
            ("ip", "route", "add", "10.98.0.0/16", "via", "10.20.0.2"),
        ):
            command("nsenter", f"--net={space}", *words)
            assert await driver.look() == ["router edge"], words
            assert await driver.look() == []

    world.run(use, fresh=False)
