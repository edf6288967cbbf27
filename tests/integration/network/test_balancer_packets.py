"""Balancers against real packets: connections are spread, the dead are left out, what leaves has its time, nothing stays behind."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from network_world import NETWORK, World, port

from lamella.host.network.balance.desired import Backend, DesiredBalancer
from lamella.host.network.bridge import BridgeDriver
from lamella.model.balancer import BalancerReport, Check, Listener
from lamella.model.firewall import FirewallSpec
from lamella.model.firewall_text import parse
from lamella.model.ids import new_id
from lamella.model.instance import Publish

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
VIP = "10.83.0.200"
UDP = socket.SOCK_DGRAM
TCP = Listener(protocol="tcp", port=80)


def desired(*numbers: int, listeners: tuple[Listener, ...] = (TCP,), **more: object) -> DesiredBalancer:
    """Before the instances with these last bytes of their addresses, which answer at 8080."""
    backends = [
        Backend(listener=place, instance=new_id("instance"), name=f"i{number}", address=f"10.83.0.{number}", port=8080)
        for place in range(len(listeners))
        for number in numbers
    ]
    made = DesiredBalancer(
        id=new_id("balancer"),
        name="www",
        network=NETWORK.id,
        address=VIP,
        listeners=list(listeners),
        backends=backends,
        # Patient: a machine that is busy is no reason to leave one out.
        check=Check(interval=0.3, timeout=10),
    )
    return replace(made, **more)


def without(balancer: DesiredBalancer, *names: str) -> DesiredBalancer:
    return replace(balancer, backends=[backend for backend in balancer.backends if backend.name not in names])


class Heard:
    """What was told of balancers last."""

    def __init__(self) -> None:
        self.reports: list[BalancerReport] = []

    def __call__(self, report: BalancerReport) -> None:
        self.reports.append(report)

    @property
    def states(self) -> dict[str, str]:
        return {one.instance: one.state for one in self.reports[-1].backends} if self.reports else {}

    async def until(self, **states: str) -> None:
        async with asyncio.timeout(90):
            while self.states != states:
                await asyncio.sleep(0.02)


def instances(world: World, *numbers: int, served: bool = True) -> None:
    """``iN`` at 10.83.0.N, on the network; they answer at 8080 with their name."""
    ports = [port(number) for number in numbers]

    async def use(driver: BridgeDriver) -> None:
        for one, number in zip(ports, numbers, strict=True):
            await driver.attach_namespace(one, world.path(f"i{number}"))

    for number in numbers:
        world.add(f"i{number}", loopback=False)
        if served:
            world.serve(f"i{number}", 8080, f"i{number}")
            world.serve(f"i{number}", 8080, f"i{number}", UDP)
    world.run(use)


def answers(world: World, name: str, times: int, address: str = VIP, number: int = 80, kind: int = 1) -> Counter[str]:
    return Counter(world.ask(name, address, number, kind).split()[0] for _ in range(times))


async def asked(driver: BridgeDriver, balancer: DesiredBalancer, **states: str) -> Heard:
    heard = Heard()
    await driver.balance([balancer], heard)
    await heard.until(**states)
    return heard


async def inside(function: Callable[[], object]) -> None:
    await asyncio.to_thread(function)


def dies(world: World, name: str) -> None:
    """No packet comes or goes any more, and nobody says so."""
    world.in_(name, "ip", "link", "set", "eth0", "down")


def test_connections_are_spread_evenly_over_those_that_live(world: World) -> None:
    instances(world, 2, 3, 4)
    world.add("i5", loopback=False)
    client = port(5)

    async def use(driver: BridgeDriver) -> None:
        await driver.attach_namespace(client, world.path("i5"))
        heard = await asked(driver, desired(2, 3, 4), i2="up", i3="up", i4="up")
        assert heard.reports[-1].conditions[0].status
        await inside(check)

    def check() -> None:
        # From the same network, from a backend itself, and each in turn.
        assert answers(world, "i5", 12) == {"i2": 4, "i3": 4, "i4": 4}
        assert answers(world, "i2", 6) == {"i2": 2, "i3": 2, "i4": 2}
        # Under the balancer's address: the answer comes back by it.
        assert world.ask("i5", VIP, 80).split()[1] == VIP
        # The layer answers for that address, and refuses what it does not listen to only by silence.
        assert world.pings("i5", VIP)

    world.run(use)


def test_it_works_through_firewalls_which_see_the_client(world: World) -> None:
    """With br_netfilter, translation happens inside the bridge: another way through the kernel."""
    web, app = new_id("firewall"), new_id("firewall")
    specs = {web: FirewallSpec(inbound=[parse(f"from=firewall:{app}:tcp:8080")]), app: FirewallSpec()}
    ports = [
        replace(port(2), firewalls=[web]),
        replace(port(3), firewalls=[web]),
        replace(port(4), firewalls=[app]),
        port(5),
    ]

    async def use(driver: BridgeDriver) -> None:
        await driver.protect(specs, ports)
        for one, number in zip(ports, (2, 3, 4, 5), strict=True):
            await driver.attach_namespace(one, world.path(f"i{number}"))
        await asked(driver, desired(2, 3), i2="up", i3="up")
        await inside(check)

    def check() -> None:
        assert answers(world, "i4", 6) == {"i2": 3, "i3": 3}
        with pytest.raises(OSError, match="timed out"):
            world.ask("i5", VIP, 80)

    for number in (2, 3, 4, 5):
        world.add(f"i{number}", loopback=False)
        world.serve(f"i{number}", 8080, f"i{number}")
    world.run(use)


def test_a_client_keeps_its_backend_when_that_is_asked_for(world: World) -> None:
    instances(world, 2, 3, 4, 5)

    async def use(driver: BridgeDriver) -> None:
        await asked(driver, desired(2, 3, 4, source=True), i2="up", i3="up", i4="up")
        await inside(lambda: chosen.update(answers(world, "i5", 8)))

    chosen: Counter[str] = Counter()
    world.run(use)
    assert len(chosen) == 1


def test_what_is_published_comes_from_outside_and_keeps_its_address(world: World) -> None:
    instances(world, 2, 3)
    listeners = (TCP, Listener(protocol="udp", port=53))
    publish = [Publish(host_port=8080, port=80), Publish(host_port=5353, port=53, protocol="udp")]
    balancer = desired(2, 3, listeners=listeners, publish=publish, check=Check(port=8080, timeout=10))

    async def use(driver: BridgeDriver) -> None:
        await asked(driver, balancer, i2="up", i3="up")
        await inside(check)
        assert await driver.inventory() != set() and balancer.id not in await driver.inventory()

    def check() -> None:
        assert answers(world, "internet", 6, "203.0.113.1", 8080) == {"i2": 3, "i3": 3}
        assert world.ask("internet", "203.0.113.1", 8080).split()[1] == "203.0.113.9"
        assert answers(world, "internet", 6, "203.0.113.1", 5353, UDP) == {"i2": 3, "i3": 3}
        assert answers(world, "host", 4, "203.0.113.1", 8080) == {"i2": 2, "i3": 2}

    world.run(use)

    async def gone(driver: BridgeDriver) -> None:
        await driver.balance([], lambda _: None)
        async with asyncio.timeout(90):
            while "10.83.0.200" in world.in_("layer", "ip", "addr") or "8080" in world.in_(
                "host", "nft", "list", "ruleset"
            ):
                await asyncio.sleep(0.05)

    world.run(gone)
    with pytest.raises(OSError):
        world.ask("internet", "203.0.113.1", 8080)


def test_the_dead_are_out_in_time_and_come_back(world: World) -> None:
    instances(world, 2, 3, 5)

    async def use(driver: BridgeDriver) -> None:
        heard = await asked(driver, desired(2, 3, check=Check(timeout=5.0)), i2="up", i3="up")
        dies(world, "i2")
        await heard.until(i2="down", i3="up")
        assert heard.reports[-1].events[0][0] == "balancer.backend.down"
        assert "in time" in heard.reports[-1].backends[0].reason
        await inside(lambda: out.update(answers(world, "i5", 6)))
        world.in_("i2", "ip", "link", "set", "eth0", "up")
        await heard.until(i2="up", i3="up")
        await inside(lambda: back.update(answers(world, "i5", 6)))

    out: Counter[str] = Counter()
    back: Counter[str] = Counter()
    world.run(use)
    assert (out, back) == ({"i3": 6}, {"i2": 3, "i3": 3})


def test_nobody_left_is_refused_at_once(world: World) -> None:
    instances(world, 5)

    async def use(driver: BridgeDriver) -> None:
        heard = await asked(driver, desired(8, check=Check(), publish=[Publish(host_port=8080, port=80)]), i8="down")
        assert [(one.status, one.reason) for one in heard.reports[-1].conditions] == [(False, "no-backend")]
        for name, address, number in (("i5", VIP, 80), ("internet", "203.0.113.1", 8080)):
            with pytest.raises(ConnectionRefusedError):
                await inside(lambda name=name, address=address, number=number: world.ask(name, address, number))

    world.run(use)


def held(world: World, client: str, servers: dict[str, socket.socket]) -> tuple[socket.socket, str, socket.socket]:
    """A connection to the balancer that stays open: the client's end, who has it, and that one's end."""
    made = world.endpoint(client)
    made.connect((VIP, 80))
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        for name, server in servers.items():
            try:
                peer, _ = server.accept()
            except (TimeoutError, BlockingIOError):
                continue
            peer.settimeout(30)
            world.sockets.append(peer)
            return made, name, peer
    raise AssertionError("nobody has the connection")


def listening(world: World, *numbers: int) -> dict[str, socket.socket]:
    servers: dict[str, socket.socket] = {}
    for number in numbers:
        server = world.endpoint(f"i{number}")
        server.bind(("", 8080))
        server.listen()
        server.settimeout(0.05)
        servers[f"i{number}"] = server
    return servers


def test_a_backend_that_drains_keeps_its_connections_and_gets_no_more(world: World) -> None:
    instances(world, 2, 3, 5, served=False)
    servers = listening(world, 2, 3)
    balancer = desired(2, 3, check=Check(kind="none"))

    async def use(driver: BridgeDriver) -> None:
        await asked(driver, balancer, i2="up", i3="up")
        client, name, peer = await asyncio.to_thread(held, world, "i5", servers)
        other = "i3" if name == "i2" else "i2"
        flagged = [replace(one, draining=one.name == name) for one in balancer.backends]
        await asked(driver, replace(balancer, backends=flagged), **{name: "draining", other: "up"})
        for _ in range(4):
            assert (await asyncio.to_thread(held, world, "i5", servers))[1] == other
        client.send(b"still here")
        assert peer.recv(100) == b"still here"
        # It leaves altogether: its connections have their time too.
        await asked(driver, without(balancer, name), **{other: "up"})
        client.send(b"and now")
        assert peer.recv(100) == b"and now"

    world.run(use)


def test_connections_end_when_their_time_is_over_and_with_a_dead_backend(world: World) -> None:
    instances(world, 2, 3, 5, served=False)
    servers = listening(world, 2, 3)
    balancer = desired(2, 3, check=Check(kind="none"), drain=0)

    async def use(driver: BridgeDriver) -> None:
        await asked(driver, balancer, i2="up", i3="up")
        client, name, _ = await asyncio.to_thread(held, world, "i5", servers)
        other = "i3" if name == "i2" else "i2"
        await asked(driver, without(balancer, name), **{other: "up"})
        await asyncio.to_thread(ended, client)

    def ended(client: socket.socket) -> None:
        """The next word meets a backend that knows nothing of the connection."""
        deadline = time.monotonic() + 90
        with pytest.raises(ConnectionResetError):
            while time.monotonic() < deadline:
                client.send(b"?")
                time.sleep(0.02)

    world.run(use)


def test_a_new_daemon_changes_nothing_and_repairs_what_somebody_took(world: World) -> None:
    instances(world, 2, 3, 5)
    balancer = desired(2, 3, publish=[Publish(host_port=8080, port=80)])
    table = f"{world.home.mark}-b"
    world.run(lambda driver: asked(driver, balancer, i2="up", i3="up"))
    # Nobody is there: what was put in force serves on.
    assert answers(world, "i5", 4) == {"i2": 2, "i3": 2}
    assert answers(world, "internet", 4, "203.0.113.1", 8080) == {"i2": 2, "i3": 2}

    def works() -> bool:
        try:
            return bool(world.ask("i5", VIP, 80)) and bool(world.ask("internet", "203.0.113.1", 8080))
        except OSError:
            return False

    async def use(driver: BridgeDriver) -> None:
        await driver.ensure_network(NETWORK)
        await asked(driver, balancer, i2="up", i3="up")
        world.in_("layer", "nft", "delete", "table", "ip", table)
        world.in_("layer", "ip", "addr", "flush", "to", VIP)
        async with asyncio.timeout(90):
            while not await asyncio.to_thread(works):
                await asyncio.sleep(0.1)
        world.in_("layer", "nft", "flush", "ruleset")
        world.in_("host", "nft", "flush", "ruleset")
        await driver.repair([NETWORK], driver.ports.values())
        await driver.teardown()

    world.run(use)
    assert table not in world.in_("layer", "nft", "list", "ruleset")
    assert world.links("layer") == {"lo"}


def test_a_host_port_that_is_in_use_is_said(world: World) -> None:
    instances(world, 2, 5)
    world.serve("host", 8080, "somebody")

    async def use(driver: BridgeDriver) -> None:
        heard = await asked(driver, desired(2, publish=[Publish(host_port=8080, port=80)]), i2="up")
        assert "8080" in heard.reports[-1].conditions[0].message
        # Its own address works all the same.
        await inside(lambda: out.update(answers(world, "i5", 2)))

    out: Counter[str] = Counter()
    world.run(use)
    assert out == {"i2": 2}


def test_a_slow_check_of_one_holds_nobody_else_back_after_a_start(world: World) -> None:
    instances(world, 2, 3, 5)
    patient = Check(interval=0.3, timeout=60)
    first = desired(2, 3, check=patient)
    world.run(lambda driver: asked(driver, first, i2="up", i3="up"))
    # Silent, and still there: nobody says that there is no way to it.
    silence = (
        "add table ip x; add chain ip x in { type filter hook input priority 0; }; add rule ip x in tcp dport 8080 drop"
    )
    world.in_("i3", "nft", silence)
    second = replace(desired(2, check=Check(interval=0.3, timeout=10)), address="10.83.0.201")

    async def use(driver: BridgeDriver) -> None:
        heard = Heard()
        await driver.balance([first, second], heard)
        async with asyncio.timeout(90):
            while {report.id for report in heard.reports} != {first.id, second.id}:
                await asyncio.sleep(0.05)
        await inside(lambda: out.update(answers(world, "i5", 2, second.address)))
        # Of whom nothing is known yet, what was in force stays.
        assert "10.83.0.3 . 8080" in world.in_("layer", "nft", "list", "ruleset")

    out: Counter[str] = Counter()
    world.run(use)
    assert out == {"i2": 2}
