"""Names and addresses of IPv6 from the network's own dnsmasq: what a machine is told that asks as machines do."""

import secrets
import socket
import struct
from collections.abc import Iterator

import pytest
from dual_stack_world import DUAL, dual, pings
from name_questions import AAAA, resolve
from network_world import World
from services_world import life, services_in, until

from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import Resident
from lamella.host.network.six.plan import link_local

pytestmark = pytest.mark.root
SOLICIT, REPLY = 1, 7
CLIENT, ADDRESSES, ADDRESS, ORDER, RAPID, SERVERS = 1, 3, 5, 6, 14, 23


@pytest.fixture(autouse=True)
def services(world: World) -> Iterator[None]:
    with services_in(world):
        yield


def option(code: int, body: bytes) -> bytes:
    return struct.pack(">HH", code, len(body)) + body


def options(body: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(body) >= 4:
        code, length = struct.unpack_from(">HH", body)
        found[code] = body[4 : 4 + length]
        body = body[4 + length :]
    return found


def lease6(world: World, where: str, mac: str) -> tuple[str, str]:
    """(address, resolver) that a DHCPv6 client with that MAC is given (RFC 8415, two messages). :raise OSError: when nobody answers."""
    client = world.inside(where, lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    index = world.inside(where, lambda: socket.if_nametoindex("eth0"))
    world.sockets.append(client)
    client.settimeout(2.0)
    try:
        client.bind((str(link_local(mac)), 546, 0, index))
        number = secrets.token_bytes(3)
        duid = struct.pack(">HH", 3, 1) + bytes.fromhex(mac.replace(":", ""))
        asked = bytes([SOLICIT]) + number + option(CLIENT, duid) + option(RAPID, b"")
        asked += option(ADDRESSES, struct.pack(">III", 1, 0, 0)) + option(ORDER, struct.pack(">H", SERVERS))
        client.sendto(asked, ("ff02::1:2", 547, 0, index))
        answer = client.recv(2000)
    finally:
        client.close()
    if answer[0] != REPLY or answer[1:4] != number:
        raise OSError("that is no reply")
    told = options(answer[4:])
    given = options(told[ADDRESSES][12:]).get(ADDRESS)
    if given is None:
        raise OSError("no address is given")
    servers = told.get(SERVERS, bytes(16))[:16]
    return socket.inet_ntop(socket.AF_INET6, given[:16]), socket.inet_ntop(socket.AF_INET6, servers)


def test_a_machine_gets_route_address_and_names_of_ipv6(world: World) -> None:
    one, two = dual(2), dual(3)

    async def use(driver: BridgeDriver) -> None:
        await driver.ensure_network(DUAL)
        for index, port in enumerate((one, two)):
            world.add(f"i{index}", loopback=False)
            await driver.attach_namespace(port, world.path(f"i{index}"))
        residents = [Resident(port=one, name=("one",)), Resident(port=two, name=("two",))]
        await driver.serve(residents)
        # As a machine that was told nothing: routers are believed, and addresses asked for.
        world.in_("i0", "ip", "-6", "route", "del", "default")
        world.in_("i0", "ip", "-6", "addr", "flush", "dev", "eth0", "scope", "global")
        found = await until(lambda: lease6(world, "i0", one.mac), "DHCPv6 gives an address")
        assert found == ("fd90::2", "fd90::1")
        world.in_("i0", "ip", "-6", "addr", "add", "fd90::2/64", "dev", "eth0")
        world.in_("i0", "sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=1")
        world.in_("i0", "ip", "link", "set", "eth0", "down")
        world.in_("i0", "ip", "link", "set", "eth0", "up")
        world.in_("i0", "ip", "-6", "addr", "replace", "fd90::2/64", "dev", "eth0")
        route = await until(
            lambda: "via fe80::" in world.in_("i0", "ip", "-6", "route", "show", "default"), "a router is heard"
        )
        assert route
        # What it says gives nobody another address.
        assert (
            "fd90::2/64" in world.in_("i0", "ip", "-6", "addr")
            and world.in_("i0", "ip", "-6", "addr").count("fd90:") == 1
        )

        def named() -> bool:
            return resolve(world, "i1", "fd90::1", "one.dual.internal", kind=AAAA) == ["fd90::2"]

        assert await until(named, "names of IPv6 are told, by IPv6")
        assert resolve(world, "i1", "10.90.0.1", "one.dual.internal", kind=AAAA) == ["fd90::2"]
        assert resolve(world, "i1", "fd90::1", "one.dual.internal") == ["10.90.0.2"]

    life(world, use)
    assert pings(world, "i0", "fd90::3")
