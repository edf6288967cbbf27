"""Routers against real packets: between networks, out by the uplink, routes, what is published, and what is left when they go."""

import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from msgspec.structs import replace
from network_world import World

from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import DesiredNetwork, DesiredPort
from lamella.host.network.names import bridge_name, gateway_name, router_name
from lamella.host.network.routers.desired import DesiredRoute, DesiredRouter
from lamella.host.network.routers.spaces import Spaces
from lamella.model.firewall import FirewallSpec
from lamella.model.firewall_text import parse
from lamella.model.ids import new_id
from lamella.model.instance import Publish

pytestmark = pytest.mark.root


def network(name: str, subnet: str, **more: object) -> DesiredNetwork:
    made = DesiredNetwork(id=new_id("network"), name=name, subnet=f"{subnet}.0/24", gateway=f"{subnet}.1", mtu=1500)
    return replace(made, **more)


def behind(router: str, *networks: DesiredNetwork) -> list[DesiredNetwork]:
    return [replace(one, router=router) for one in networks]


def on(network: DesiredNetwork, number: int, *publish: Publish) -> DesiredPort:
    prefix = network.gateway.rpartition(".")[0]
    return DesiredPort(
        id=new_id("port"),
        network=network.id,
        address=f"{prefix}.{number}/24",
        mac=f"02:00:0a:00:{len(network.name):02x}:{number:02x}",
        publish=list(publish),
    )


class Routed:
    """A world with networks, a router and ports; ``life`` runs the driver as one daemon would."""

    def __init__(self, world: World, networks: Iterable[DesiredNetwork], routers: Iterable[DesiredRouter]) -> None:
        self.world = world
        self.networks = list(networks)
        self.routers = list(routers)
        self.outside: list[str] = []
        self.ports: dict[str, DesiredPort] = {}

    def add(self, name: str, port: DesiredPort) -> None:
        self.ports[name] = port
        self.world.add(name)
        for number in (80, 5432):
            self.world.serve(name, number, name)

    async def settle(self, driver: BridgeDriver) -> None:
        """What an agent does with its news."""
        for one in self.networks:
            await driver.ensure_network(one)
        await driver.keep_networks({one.id for one in self.networks})
        await driver.route(self.routers, self.outside)
        await driver.protect({}, self.ports.values())

    def life(self, *starting: str) -> None:
        async def use(driver: BridgeDriver) -> None:
            await self.settle(driver)
            for name, port in self.ports.items():
                if name in starting:
                    await driver.attach_namespace(port, self.world.path(name))
                await driver.publish(port)

        self.world.run(use, fresh=False)

    def ask(self, name: str, address: str, port: int = 80, bind: str = "") -> str:
        """What is answered there; on a busy machine the first packet of many may be late."""
        deadline = time.monotonic() + 90
        while True:
            try:
                return self.world.ask(name, address, port, bind=bind)
            except OSError:
                if time.monotonic() > deadline:
                    return ""

    def silent(self, name: str, address: str, port: int = 80) -> bool:
        """Whether nobody answers there."""
        try:
            self.world.ask(name, address, port)
        except OSError:
            return True
        return False


def two_networks(world: World, **router: object) -> Routed:
    id = new_id("router")
    networks = behind(id, network("front", "10.10.0"), network("back", "10.20.0", isolated=True))
    edge = DesiredRouter(id=id, name="edge", networks=[one.id for one in networks], uplink=True)
    routed = Routed(world, networks, [replace(edge, **router)])
    world.serve("internet", 80, "web")
    routed.add("w1", on(networks[0], 2))
    routed.add("w2", on(networks[0], 3))
    routed.add("db", on(networks[1], 2))
    routed.life("w1", "w2", "db")
    return routed


def test_a_router_joins_networks_and_leads_out(world: World) -> None:
    routed = two_networks(world)
    assert routed.ask("w1", "10.20.0.2", 5432) == "db 10.10.0.2" and routed.ask("db", "10.10.0.2") == "w1 10.20.0.2"
    assert routed.ask("w1", "10.10.0.3") == "w2 10.10.0.2"
    # Outside it has the host's address, as everybody here; an isolated network stays in.
    assert routed.ask("w1", "203.0.113.9") == "web 203.0.113.1"
    assert routed.silent("db", "203.0.113.9")
    for name, gateway in (("w1", "10.10.0.1"), ("db", "10.20.0.1")):
        assert "1 received" in world.in_(name, "ping", "-c1", "-W15", gateway)
    # Nobody borrows another's address, nor asks what the layer or the host have of their own.
    world.in_("w1", "ip", "addr", "add", "10.20.0.9/32", "dev", "lo")
    with pytest.raises(OSError):
        world.ask("w1", "10.20.0.2", 80, bind="10.20.0.9")
    world.serve("layer", 8081, "layer")
    assert routed.silent("w1", "10.10.0.1", 8081)
    # To the bridge itself, a frame is nothing.
    mac = world.in_("layer", "cat", f"/sys/class/net/{bridge_name(routed.networks[1].id)}/address").strip()
    world.in_("db", "ip", "neigh", "replace", "10.20.0.1", "lladdr", mac, "dev", "eth0", "nud", "permanent")
    assert routed.silent("db", "203.0.113.9")


def test_what_a_router_does_follows_what_is_asked(world: World) -> None:
    routed = two_networks(world, uplink=False)
    assert routed.silent("w1", "203.0.113.9") and routed.ask("w1", "10.20.0.2") == "db 10.10.0.2"
    before = routed.world.in_("w1", "ip", "neigh", "show", "10.10.0.1")
    edge, (front, back) = routed.routers[0], routed.networks
    # One network leaves it while instances are on it: its gateway is the layer's again, and has the same MAC.
    routed.routers, routed.networks = (
        [replace(edge, uplink=True, networks=[back.id])],
        [replace(front, router=""), back],
    )
    routed.life()
    assert routed.ask("w1", "203.0.113.9") == "web 203.0.113.1" and routed.silent("w1", "10.20.0.2")
    assert before.split()[4] == routed.world.in_("w1", "ip", "neigh", "show", "10.10.0.1").split()[4]
    # And comes back.
    routed.routers, routed.networks = [replace(edge, uplink=True)], [front, back]
    routed.life()
    assert routed.ask("w1", "203.0.113.9") == "web 203.0.113.1" and routed.ask("w1", "10.20.0.2") == "db 10.10.0.2"


def test_networks_go_from_one_router_to_another(world: World) -> None:
    routed = two_networks(world)
    edge, other = routed.routers[0], DesiredRouter(id=new_id("router"), name="other", networks=[], uplink=True)
    front, back = routed.networks
    routed.networks = [front, replace(back, router=other.id, isolated=False)]
    for order in (1, -1):
        routed.routers = [replace(edge, networks=[front.id]), replace(other, networks=[back.id])][::order]
        routed.life()
        assert routed.ask("db", "203.0.113.9") == "web 203.0.113.1" and routed.silent("w1", "10.20.0.2")
    routed.networks, routed.routers = [front, back], [edge]
    routed.life()
    assert routed.ask("w1", "10.20.0.2") == "db 10.10.0.2"
    assert Spaces.of(world.home).ids() == {edge.id} and router_name(other.id) not in world.links("layer")


def test_a_static_route_leads_behind_an_instance(world: World) -> None:
    routed = two_networks(world, routes=[DesiredRoute("10.99.0.0/24", "10.10.0.3")])
    world.in_("w2", "ip", "addr", "add", "10.99.0.1/32", "dev", "lo")
    # As one that forwards, it asks for its neighbours under its own address.
    world.in_("w2", "sh", "-c", "echo 2 > /proc/sys/net/ipv4/conf/all/arp_announce")
    assert routed.ask("db", "10.99.0.1") == "w2 10.20.0.2" and routed.ask("w1", "10.99.0.1") == "w2 10.10.0.2"
    # It may send as what lies behind it, and as nothing else.
    assert routed.ask("w2", "10.20.0.2", 80, bind="10.99.0.1") == "db 10.99.0.1"
    world.in_("w2", "ip", "addr", "add", "10.98.0.1/32", "dev", "lo")
    with pytest.raises(OSError):
        world.ask("w2", "10.20.0.2", 80, bind="10.98.0.1")
    routed.routers = [replace(routed.routers[0], routes=[])]
    routed.life()
    assert routed.silent("db", "10.99.0.1")
    with pytest.raises(OSError):
        world.ask("w2", "10.20.0.2", 80, bind="10.99.0.1")


def test_what_is_published_for_the_host_alone_is_for_no_instance(world: World) -> None:
    """By the address that the layer knows the router by, where the host's ports are led to."""
    routed = two_networks(world)
    plain = network("plain", "10.30.0")
    routed.networks.append(plain)
    routed.add("p1", on(plain, 2))
    publish = Publish(host_address="127.0.0.1", host_port=8080, port=80)
    routed.ports["w1"] = replace(routed.ports["w1"], publish=[publish])
    routed.life("p1")
    told = world.in_("layer", "ip", "-4", "-o", "addr", "show", "dev", router_name(routed.routers[0].id))
    # The layer's end is the first address of the two, the router's the second.
    layer = told.split("inet ")[1].split("/")[0]
    router = layer.rpartition(".")[0] + f".{int(layer.rpartition('.')[2]) + 1}"
    assert routed.ask("host", "127.0.0.1", 8080).startswith("w1 ")
    assert routed.ask("p1", "10.30.0.2") == "p1 10.30.0.2" and routed.silent("p1", router, 8080)


def test_published_ports_come_through(world: World) -> None:
    routed = two_networks(world)
    front, back = routed.networks
    for name, publish in (("w1", Publish(host_port=8080, port=80)), ("db", Publish(host_port=0, port=5432))):
        routed.ports[name] = replace(routed.ports[name], publish=[publish])
    chosen: list[int] = []

    def again() -> None:
        async def use(driver: BridgeDriver) -> None:
            await routed.settle(driver)
            for name in ("w1", "db"):
                chosen.append((await driver.publish(routed.ports[name]))[0].host_port)

        world.run(use, fresh=False)

    def reached() -> bool:
        outside = routed.ask("internet", "203.0.113.1", 8080), routed.ask("internet", "203.0.113.1", chosen[1])
        return outside == ("w1 203.0.113.9", "db 203.0.113.9") and routed.ask("host", "127.0.0.1", 8080)[:2] == "w1"

    again()
    assert reached()
    # A daemon that starts again keeps what was chosen; a network that leaves its router is reached all the same, and when it is back.
    again()
    assert reached() and chosen[:2] == chosen[2:]
    edge = routed.routers[0]
    routed.routers, routed.networks = [replace(edge, networks=[front.id])], [front, replace(back, router="")]
    again()
    assert reached()
    routed.routers, routed.networks = [edge], [front, back]
    again()
    assert reached() and len(set(chosen)) == 2

    async def let_go(driver: BridgeDriver) -> None:
        await routed.settle(driver)
        for port in routed.ports.values():
            await driver.detach(port.id)

    world.run(let_go, fresh=False)
    assert routed.silent("internet", "203.0.113.1", 8080)


def test_what_somebody_breaks_is_repaired(world: World) -> None:
    routed = two_networks(world)
    edge, front = routed.routers[0], routed.networks[0]
    space = Spaces.of(world.home).path(edge.id)

    def inside(*words: str) -> None:
        subprocess.run(("nsenter", f"--net={space}", *words), check=True, capture_output=True, timeout=90)

    breakages = (
        lambda: world.in_("layer", "ip", "link", "del", router_name(edge.id)),
        lambda: world.in_("layer", "ip", "link", "del", gateway_name(front.id)),
        lambda: world.in_("layer", "ip", "link", "set", gateway_name(front.id), "nomaster"),
        lambda: inside("nft", "flush", "ruleset"),
        lambda: inside("ip", "addr", "flush", "dev", gateway_name(front.id)),
        lambda: inside("ip", "route", "del", "default"),
        lambda: world.in_("layer", "nft", "flush", "ruleset"),
        lambda: subprocess.run(("umount", "-l", str(space)), check=True),
    )

    async def use(driver: BridgeDriver) -> None:
        await routed.settle(driver)
        for breakage in breakages:
            breakage()
            await driver.repair(routed.networks, routed.ports.values())
            assert routed.ask("w1", "203.0.113.9") == "web 203.0.113.1"
            assert routed.ask("w1", "10.20.0.2") == "db 10.10.0.2"

    world.run(use, fresh=False)


def test_nothing_is_left(world: World) -> None:
    routed = two_networks(world)

    async def go(driver: BridgeDriver) -> None:
        await routed.settle(driver)
        routed.networks, routed.routers = [], []
        for port in routed.ports.values():
            await driver.detach(port.id)
        routed.ports = {}
        await routed.settle(driver)
        assert not Spaces.of(world.home).ids()
        assert not [link for link in world.links("layer") if link.startswith(("lar", "lag", "lam"))]

    world.run(go, fresh=False)
    routed = two_networks_again(world, routed)

    async def teardown(driver: BridgeDriver) -> None:
        await driver.teardown()

    world.run(teardown, fresh=False)
    assert world.links("layer") == {"lo"} and not Spaces.of(world.home).ids()
    assert str(world.home.run) not in Path("/proc/self/mounts").read_text()
    assert world.home.mark not in world.in_("layer", "nft", "list", "ruleset")


def two_networks_again(world: World, routed: Routed) -> Routed:
    id = new_id("router")
    routed.networks = behind(id, network("front", "10.10.0"))
    routed.routers = [DesiredRouter(id=id, name="edge", networks=[routed.networks[0].id], uplink=True)]
    routed.life()
    return routed


FLOAT, OTHER = "198.51.100.5", "198.51.100.6"


def led_in(world: World) -> None:
    """The internet knows by whom the external network is reached."""
    world.in_("internet", "ip", "route", "add", "198.51.100.0/24", "via", "203.0.113.1")


def test_a_floating_address_leads_to_a_port_and_back(world: World) -> None:
    routed = two_networks(world, floating={FLOAT: "10.10.0.2"})
    led_in(world)
    assert routed.ask("internet", FLOAT) == "w1 203.0.113.9" and routed.ask("internet", FLOAT, 5432) == "w1 203.0.113.9"
    assert routed.ask("host", FLOAT)[:2] == "w1"
    # Out it goes by the same address; others have the host's.
    assert routed.ask("w1", "203.0.113.9") == f"web {FLOAT}" and routed.ask("w2", "203.0.113.9") == "web 203.0.113.1"
    # From behind the same router, from the same network, and from itself.
    assert routed.ask("db", FLOAT)[:2] == routed.ask("w2", FLOAT)[:2] == routed.ask("w1", FLOAT)[:2] == "w1"
    # What nobody has is nobody's; what is published beside is still.
    assert routed.silent("internet", OTHER)

    routed.routers = [replace(routed.routers[0], floating={FLOAT: "10.20.0.2", OTHER: "10.10.0.2"})]
    routed.life()
    assert routed.ask("internet", FLOAT)[:2] == "db" and routed.ask("internet", OTHER)[:2] == "w1"
    assert routed.ask("w1", FLOAT) == f"db {OTHER}", "it is known by its own address"
    routed.routers = [replace(routed.routers[0], floating={})]
    routed.life()
    assert routed.silent("internet", FLOAT) and routed.ask("w1", "203.0.113.9") == "web 203.0.113.1"
    assert FLOAT not in world.in_("host", "ip", "route") + world.in_("layer", "ip", "route")


def test_floating_addresses_are_reached_from_every_network(world: World) -> None:
    routed = two_networks(world, floating={FLOAT: "10.10.0.2"})
    id = new_id("router")
    twin, plain = network("twin", "10.10.0", router=id), network("plain", "10.30.0")
    routed.networks += [twin, plain]
    edge = DesiredRouter(id=id, name="other", networks=[twin.id], uplink=True, floating={OTHER: "10.10.0.2"})
    routed.routers.append(edge)
    routed.add("t1", on(twin, 2))
    routed.add("p1", on(plain, 2))
    routed.life("t1", "p1")
    led_in(world)
    assert routed.ask("internet", FLOAT)[:2] == "w1" and routed.ask("internet", OTHER)[:2] == "t1"
    # Both have the same address inside.
    assert routed.ask("w1", OTHER) == f"t1 {FLOAT}" and routed.ask("t1", FLOAT) == f"w1 {OTHER}"
    assert routed.ask("p1", FLOAT)[:2] == "w1" and routed.ask("p1", OTHER)[:2] == "t1"
    assert routed.silent("p1", "10.10.0.2") and routed.silent("w1", "10.30.0.2")
    # A network that is kept in does not get out by that way either.
    routed.networks[-1] = replace(plain, isolated=True)
    routed.life()
    assert routed.silent("p1", FLOAT) and routed.ask("internet", FLOAT)[:2] == "w1"


def test_no_instance_takes_what_the_host_has(world: World) -> None:
    """Its own address, and by whom it reaches the others."""
    routed = two_networks(world, floating={"203.0.113.1": "10.10.0.2", "203.0.113.9": "10.10.0.3", FLOAT: "10.20.0.2"})
    led_in(world)
    world.serve("host", 80, "host")
    assert routed.ask("internet", "203.0.113.1")[:4] == "host" and routed.ask("host", "203.0.113.9")[:3] == "web"
    assert routed.ask("internet", FLOAT)[:2] == "db"


def test_firewalls_know_their_members_across_a_router(world: World) -> None:
    routed = two_networks(world)
    app, web = new_id("firewall"), new_id("firewall")
    specs = {app: FirewallSpec(), web: FirewallSpec(inbound=[parse(f"from=firewall:{app}:tcp:5432")])}
    for name, firewall in (("w1", app), ("db", web)):
        routed.ports[name] = replace(routed.ports[name], firewalls=[firewall])

    async def guarded(driver: BridgeDriver) -> None:
        await routed.settle(driver)
        await driver.protect(specs, routed.ports.values())
        assert reached()
        # Apart, and joined again.
        edge, networks = routed.routers, routed.networks
        routed.routers, routed.networks = [], [replace(one, router="") for one in networks]
        await routed.settle(driver)
        await driver.protect(specs, routed.ports.values())
        assert routed.silent("w1", "10.20.0.2", 5432)
        routed.routers, routed.networks = edge, networks
        await driver.protect(specs, routed.ports.values())
        for one in networks:
            await driver.ensure_network(one)
        await driver.route(edge)
        assert reached()

    def reached() -> bool:
        in_and_out = routed.ask("w1", "10.20.0.2", 5432)[:2] == "db" and routed.silent("w1", "10.20.0.2")
        return in_and_out and routed.silent("w2", "10.20.0.2", 5432) and routed.silent("db", "10.10.0.2")

    world.run(guarded, fresh=False)
