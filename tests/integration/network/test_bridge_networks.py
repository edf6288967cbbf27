"""Several networks on one host: apart from each other, with or without a way out, gone without a trace."""

import subprocess

import pytest
from msgspec.structs import replace
from network_world import NETWORK, World, port

from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import DesiredNetwork, DesiredPort
from lamella.host.network.names import bridge_name
from lamella.model.ids import new_id

pytestmark = pytest.mark.root

BACK = DesiredNetwork(
    id=new_id("network"), name="back", subnet="10.84.0.0/24", gateway="10.84.0.1", mtu=1500, isolated=True
)


def on_back(number: int) -> DesiredPort:
    return DesiredPort(
        id=new_id("port"),
        network=BACK.id,
        address=f"10.84.0.{number}/24",
        mac=f"02:00:0a:54:00:{number:02x}",
        publish=[],
    )


def connect(world: World, *ports: DesiredPort) -> None:
    async def use(driver: BridgeDriver) -> None:
        await driver.ensure_network(BACK)
        for index, one in enumerate(ports):
            await driver.attach_namespace(one, world.path(f"i{index}"))

    for index in range(len(ports)):
        world.add(f"i{index}", loopback=False)
        world.serve(f"i{index}", 80, f"i{index}")
    world.run(use)


def refused(world: World, name: str, address: str) -> bool:
    try:
        world.ask(name, address, 80)
    except OSError:
        return True
    return False


def test_networks_do_not_reach_each_other_and_an_isolated_one_reaches_nothing(world: World) -> None:
    connect(world, on_back(2), on_back(3), port(2))
    world.serve("internet", 80, "web")
    world.serve("host", 80, "host")
    assert world.ask("i0", "10.84.0.3", 80) == "i1 10.84.0.2"
    assert refused(world, "i0", "10.83.0.2") and refused(world, "i2", "10.84.0.2")
    assert refused(world, "i0", "203.0.113.9") and refused(world, "i0", "203.0.113.1")
    assert world.ask("i2", "203.0.113.9", 80).startswith("web")
    # Its gateway answers an echo and nothing else, as everywhere.
    assert world.pings("i0", "10.84.0.1")
    # A host that gives itself a route to the other network gains nothing by it.
    world.in_("i2", "ip", "route", "add", "10.84.0.0/24", "via", "10.83.0.1")
    assert refused(world, "i2", "10.84.0.2")


def test_a_network_is_let_out_and_kept_in_while_it_is_used(world: World) -> None:
    connect(world, on_back(2))
    world.serve("internet", 80, "web")

    async def let_out(driver: BridgeDriver) -> None:
        await driver.ensure_network(replace(BACK, isolated=False))

    async def keep_in(driver: BridgeDriver) -> None:
        # What is in force is read from the kernel: this driver is a new one.
        await driver.ensure_network(BACK)

    assert refused(world, "i0", "203.0.113.9")
    world.run(let_out)
    assert world.ask("i0", "203.0.113.9", 80).startswith("web")
    world.run(keep_in)
    assert refused(world, "i0", "203.0.113.9")


def test_what_is_flushed_is_put_in_force_again(world: World) -> None:
    connect(world, on_back(2))
    world.serve("internet", 80, "web")

    async def change(driver: BridgeDriver) -> None:
        await driver.ensure_network(BACK)
        world.in_("layer", "nft", "flush", "set", "ip", world.home.mark, "isolated")
        # What is to be removed is not there, so all that ought to be is put in force.
        await driver.ensure_network(replace(BACK, isolated=False))
        assert world.ask("i0", "203.0.113.9", 80).startswith("web")
        await driver.ensure_network(BACK)

    world.run(change)
    assert refused(world, "i0", "203.0.113.9")


def test_networks_that_are_no_more_leave_nothing(world: World) -> None:
    connect(world, on_back(2))
    bridge = bridge_name(BACK.id)

    async def in_use(driver: BridgeDriver) -> None:
        await driver.keep_networks({NETWORK.id})

    world.run(in_use)
    assert bridge in world.links("layer"), "a port is on it"

    async def free(driver: BridgeDriver) -> None:
        for id in await driver.inventory():
            assert id.startswith("port_")
            await driver.detach(id)
        await driver.keep_networks({NETWORK.id})

    world.run(free)
    assert bridge not in world.links("layer") and bridge_name(NETWORK.id) in world.links("layer")
    rules = world.in_("layer", "nft", "list", "ruleset")
    assert bridge not in rules and BACK.id not in rules


def test_a_bridge_of_somebody_else_stays(world: World) -> None:
    async def use(driver: BridgeDriver) -> None:
        world.in_("layer", "ip", "link", "add", "lamforeign", "type", "bridge")
        await driver.keep_networks(set())

    world.run(use)
    assert "lamforeign" in world.links("layer")


def test_packets_from_one_network_do_not_leave_by_the_address_of_another(world: World) -> None:
    """An instance that takes an address of the other network is not heard at all."""
    connect(world, on_back(2), port(2))
    world.in_("i0", "ip", "addr", "add", "10.83.0.77/16", "dev", "eth0")
    with pytest.raises(OSError):
        world.ask("i0", "10.83.0.2", 80, bind="10.83.0.77")
    with pytest.raises(subprocess.CalledProcessError):
        world.in_("i0", "ping", "-c1", "-W1", "-I", "10.83.0.77", "10.84.0.1")
