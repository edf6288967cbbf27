"""Instances ask who they are, from namespaces on real bridges, and behind a router."""

import asyncio
import subprocess
from collections.abc import Iterator

import pytest
from msgspec.structs import replace
from name_questions import resolve
from network_world import NETWORK, World, port
from services_world import BACK, GATEWAY, lease, life, on_back, services_in, until

from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import Resident
from lamella.host.network.routers.desired import DesiredRouter
from lamella.host.network.routers.spaces import Spaces
from lamella.model.firewall import FirewallSpec
from lamella.model.ids import new_id

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

HERE = "169.254.169.254"


@pytest.fixture
def served(world: World) -> Iterator[World]:
    with services_in(world):
        yield world


def ask(
    world: World, where: str, path: str, *, method: str = "GET", address: str = HERE, at: int = 80, head: str = ""
) -> tuple[int, str]:
    """Status and body. :raise OSError: when nobody answers within a second."""
    client = world.endpoint(where)
    client.connect((address, at))
    client.sendall(f"{method} {path} HTTP/1.1\r\nHost: {address}\r\n{head}\r\n".encode())
    data = b""
    while piece := client.recv(65536):
        data += piece
    first, _, body = data.decode().partition("\r\n\r\n")
    return int(first.split()[1]), body


@pytest.mark.parametrize("guarded", [False, True])
def test_everybody_is_told_of_themselves(served: World, guarded: bool) -> None:
    # A firewall that lets nothing in and nothing out is between instances, not between them and the layer.
    firewall = {new_id("firewall"): FirewallSpec(outbound=[])} if guarded else {}
    ports = [replace(one, firewalls=list(firewall)) for one in (port(2), port(3), on_back(2), port(9))]
    known = [
        Resident(port=one, name=(f"w{number}",), hostname=f"w{number}", user_data=f"data {number}")
        for number, one in enumerate(ports[:3])
    ]

    async def use(driver: BridgeDriver) -> None:
        await driver.ensure_network(BACK)
        await driver.protect(firewall, ports)
        for index, one in enumerate(ports):
            served.add(f"i{index}", loopback=False)
            await driver.attach_namespace(one, served.path(f"i{index}"))
        await driver.serve(known)
        for number in range(3):
            where, asked = f"i{number}", "/latest/user-data"
            await until(lambda: ask(served, where, asked) == (200, f"data {number}"))  # noqa: B023
        # Nobody knows this one.
        assert (await until(lambda: ask(served, "i3", "/latest/user-data")))[0] == 404
        head = "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n"
        status, token = await until(lambda: ask(served, "i0", "/latest/api/token", method="PUT", head=head))
        assert status == 200
        for where, expected in (("i0", 200), ("i1", 401)):
            head = f"X-aws-ec2-metadata-token: {token}\r\n"
            told = await until(lambda: ask(served, where, "/nocloud/meta-data", head=head))  # noqa: B023
            assert told[0] == expected
        # The gateway is no web server under its own address, nor is another network's.
        for address in () if guarded else (GATEWAY, BACK.gateway):
            for at in (80, 9254):
                with pytest.raises(OSError):
                    await asyncio.to_thread(lambda: ask(served, "i0", "/latest/", address=address, at=at))  # noqa: B023
        # Whoever says nothing, or too much, keeps nobody from asking.
        for _ in range(20):
            served.endpoint("i1").connect((HERE, 80))
        assert (await until(lambda: ask(served, "i0", "/" + "x" * 5000)))[0] == 404
        assert (await until(lambda: ask(served, "i0", "/latest/user-data")))[1] == "data 0"
        # What changes is told.
        await driver.serve([replace(known[0], user_data="new")])
        await until(lambda: ask(served, "i0", "/latest/user-data") == (200, "new"))

    life(served, use)


def test_behind_a_router_it_is_the_same(served: World) -> None:
    router = DesiredRouter(id=new_id("router"), name="edge", networks=[NETWORK.id], uplink=True)
    network = replace(NETWORK, router=router.id)
    one = port(2)

    async def use(driver: BridgeDriver) -> None:
        served.add("i0", loopback=False)
        await driver.attach_namespace(one, served.path("i0"))
        await driver.serve([Resident(port=one, name=("w1",), user_data="before")])
        await until(lambda: ask(served, "i0", "/latest/user-data") == (200, "before"))
        await driver.ensure_network(network)
        await driver.route([router])
        await driver.serve([Resident(port=one, name=("w1",), user_data="behind")])
        await until(lambda: ask(served, "i0", "/latest/user-data") == (200, "behind"))
        await until(lambda: resolve(served, "i0", GATEWAY, "w1") == ["10.83.0.2"])
        # Its router's namespace is another one at the same place.
        subprocess.run(("umount", "-l", str(Spaces.of(served.home).path(router.id))), check=True)
        await driver.repair([network], [one])
        await until(lambda: ask(served, "i0", "/latest/user-data") == (200, "behind"))
        served.in_("i0", "ip", "addr", "flush", "dev", "eth0")
        await until(lambda: lease(served, "i0").get("ip") == "10.83.0.2")
        served.in_("i0", "ip", "addr", "add", one.address, "dev", "eth0")
        served.in_("i0", "ip", "route", "add", "default", "via", GATEWAY)
        # And back.
        await driver.route([])
        await driver.ensure_network(NETWORK)
        await until(lambda: ask(served, "i0", "/latest/user-data") == (200, "behind"))

    life(served, use)
