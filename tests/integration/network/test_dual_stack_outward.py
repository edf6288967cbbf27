"""IPv6 out of its network: who comes where, as whom, and what is put back in the end."""

import errno
from collections.abc import Iterator

import pytest
from dual_stack_world import DUAL, UDP, answer, dual, endpoint, passes, pings, plug, serve
from msgspec.structs import replace
from network_world import World, command

from lamella.host.network.bridge import BridgeDriver

pytestmark = pytest.mark.root
HOST, FAR, SECRET = "2001:db8:c::1", "2001:db8:c::9", "fd00:ec2::254"


@pytest.fixture
def joined(world: World) -> Iterator[World]:
    """The world with IPv6 between host and internet, where a server answers who asked."""
    host, internet = world.full("host"), world.full("internet")
    command("ip", "-n", host, "addr", "add", f"{HOST}/64", "dev", "a0", "nodad")
    command("ip", "-n", internet, "addr", "add", f"{FAR}/64", "dev", "c0", "nodad")
    command("ip", "-n", internet, "addr", "add", f"{SECRET}/128", "dev", "c0", "nodad")
    command("ip", "-n", host, "-6", "route", "add", "default", "via", FAR)
    # Somebody out there thinks that the host leads to what is the layer's alone.
    command("ip", "-n", internet, "-6", "route", "add", "fd90::/64", "via", HOST)
    for kind in (UDP, 1):
        serve(world, "internet", 80, kind)
    yield world


def refused(world: World, address: str) -> int:
    """How a connection from ``i0`` ends at once: the error's number."""
    with pytest.raises(OSError) as caught:
        endpoint(world, "i0").connect((address, 80))
    return caught.value.errno or 0


def test_it_goes_out_as_the_host_and_nobody_comes_in(joined: World) -> None:
    plug(joined, dual(2))
    serve(joined, "i0", 80)
    assert passes(joined, "i0", FAR, 80) and passes(joined, "i0", FAR, 80, UDP) and pings(joined, "i0", FAR)
    assert answer(joined, "i0", FAR, 80, seconds=30.0) == HOST
    # A cloud's metadata is the host's own; nobody asks from outside.
    assert not answer(joined, "i0", SECRET, 80, seconds=1.0) and not answer(joined, "internet", "fd90::2", 80)
    assert pings(joined, "i0", "fd90::1")


def test_an_isolated_network_is_told_at_once_and_what_went_out_ends(joined: World) -> None:
    plug(joined, dual(2))
    assert passes(joined, "i0", FAR, 80)
    client = endpoint(joined, "i0", UDP)
    client.connect((FAR, 80))
    client.send(b"?")
    assert client.recv(100).decode() == HOST

    async def isolate(driver: BridgeDriver) -> None:
        await driver.ensure_network(DUAL)
        await driver.ensure_network(replace(DUAL, isolated=True))

    joined.run(isolate)
    assert refused(joined, FAR) in (errno.EACCES, errno.EPERM, errno.EHOSTUNREACH)
    with pytest.raises(OSError):
        for _ in range(3):
            client.send(b"?")
            client.recv(100)
    assert pings(joined, "i0", "fd90::1")


def test_what_somebody_removes_is_put_right_and_in_the_end_all_is_as_it_was(joined: World) -> None:
    one = dual(2)
    listens, forwards = "net.ipv6.conf.a0.accept_ra", "net.ipv6.conf.all.forwarding"
    joined.in_("host", "sysctl", "-qw", f"{listens}=1")
    plug(joined, one)
    assert joined.in_("host", "sysctl", "-n", listens, forwards).split() == ["2", "1"]

    async def use(driver: BridgeDriver) -> None:
        await driver.repair([DUAL], [one])
        for where, table in (("host", f"{joined.home.mark}-6"), ("layer", f"{joined.home.mark}-n6")):
            joined.in_(where, "nft", f"delete table ip6 {table}")
            assert await driver.look() != []
            assert await driver.look() == []
            assert answer(joined, "i0", FAR, 80, seconds=30.0) == HOST
        found = {one.name: one for one in await driver.findings()}
        assert found["network.ipv6-outside"].available
        command("ip", "-n", joined.full("host"), "-6", "route", "del", "default")
        assert refused(joined, "2001:db8:d::9") in (errno.ENETUNREACH, errno.EHOSTUNREACH)
        found = {one.name: one for one in await driver.findings()}
        assert "no default route" in found["network.ipv6-outside"].reason
        await driver.teardown()

    joined.run(use, fresh=False)
    assert joined.in_("host", "sysctl", "-n", listens, forwards).split() == ["1", "0"]
    assert "ip6" not in joined.in_("host", "nft", "list", "tables") + joined.in_("layer", "nft", "list", "tables")
