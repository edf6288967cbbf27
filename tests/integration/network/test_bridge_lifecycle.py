"""The driver's things appear, survive a restart, are repaired, and go without a trace."""

import asyncio
import os
import socket
from pathlib import Path

import pytest
from network_world import NETWORK, World, port

from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import DesiredNetwork, DesiredPort
from lamella.model.errors import Conflict, Invalid, NotFound, Unavailable, Unsupported
from lamella.model.ids import new_id
from lamella.model.instance import Publish

pytestmark = pytest.mark.root


def forwarding(world: World) -> str:
    return world.in_("host", "sysctl", "-n", "net.ipv4.ip_forward").strip()


def test_teardown_leaves_nothing(world: World) -> None:
    assert forwarding(world) == "0"
    links, rules = world.links("host"), world.in_("host", "nft", "list", "ruleset")
    one = port(2, Publish(host_port=8080, port=80))
    world.add("i0")

    async def use(driver: BridgeDriver) -> None:
        await driver.attach_namespace(one, world.path("i0"))
        await driver.publish(one)
        assert await driver.inventory() == {one.id}
        assert forwarding(world) == "1"
        await driver.teardown()

    world.run(use)
    assert forwarding(world) == "0"
    assert (world.links("host"), world.in_("host", "nft", "list", "ruleset")) == (links, rules)
    assert world.links("layer") == {"lo"}
    assert world.in_("layer", "nft", "list", "ruleset") == ""
    assert world.links("i0") == {"lo"}


def test_teardown_works_without_open_and_without_the_layers_namespace(world: World) -> None:
    links = world.links("host")

    async def nothing(driver: BridgeDriver) -> None:
        assert forwarding(world) == "1"

    world.run(nothing)
    world.inside("host", lambda: asyncio.run(BridgeDriver(world.home, world.path("layer")).teardown()))
    assert (world.links("host"), forwarding(world)) == (links, "0")
    world.run(nothing)
    world.inside("host", lambda: asyncio.run(BridgeDriver(world.home, Path("/run/netns/absent")).teardown()))
    assert (world.links("host"), forwarding(world)) == (links, "0")
    assert world.in_("host", "nft", "list", "ruleset") == ""


def test_forwarding_that_others_need_stays_on(world: World) -> None:
    async def use(driver: BridgeDriver) -> None:
        world.in_("host", "nft", "add table ip other; add chain ip other f { type filter hook forward priority 0; }")
        await driver.teardown()

    world.run(use)
    assert forwarding(world) == "1"


def test_a_restarted_daemon_finds_what_runs(world: World) -> None:
    one = port(2, Publish(host_port=8080, port=80), Publish(host_address="127.0.0.1", host_port=0, port=81))
    world.add("i0")

    async def first(driver: BridgeDriver) -> list[Publish]:
        await driver.attach_namespace(one, world.path("i0"))
        return await driver.publish(one)

    async def second(driver: BridgeDriver) -> list[Publish]:
        assert await driver.inventory() == {one.id}
        with pytest.raises(Conflict, match="8080"):
            await driver.publish(port(3, Publish(host_port=8080, port=1)))
        again = await driver.publish(one)
        world.serve("i0", 80, "web")
        assert world.ask("internet", "203.0.113.1", 8080) == "web 203.0.113.9"
        received, sent = await driver.counters(one.id)
        assert received > 0 and sent > 0
        await driver.detach(one.id)
        await driver.detach(one.id)
        assert await driver.inventory() == set()
        with pytest.raises(NotFound):
            await driver.counters(one.id)
        return again

    published = world.run(first)
    assert published[0] == one.publish[0]
    assert published[1].host_port in range(32768, 61000)
    assert world.run(second) == published
    assert world.links("i0") == {"lo"}


def test_publish_makes_exactly_these(world: World) -> None:
    one = port(2, Publish(host_port=8080, port=80), Publish(host_port=8081, port=80))
    world.add("i0")
    world.serve("i0", 80, "eighty")
    world.serve("i0", 81, "eighty-one")

    def reachable() -> dict[int, str]:
        found: dict[int, str] = {}
        for number in (8080, 8081, 8082):
            try:
                found[number] = world.ask("host", "203.0.113.1", number).split()[0]
            except OSError:
                continue
        return found

    async def use(driver: BridgeDriver) -> None:
        await driver.attach_namespace(one, world.path("i0"))
        await driver.publish(one)
        await driver.publish(one)
        assert reachable() == {8080: "eighty", 8081: "eighty"}
        changed = DesiredPort(
            id=one.id,
            network=one.network,
            address=one.address,
            mac=one.mac,
            publish=[Publish(host_port=8081, port=81), Publish(host_port=8082, port=80)],
        )
        await driver.publish(changed)
        assert reachable() == {8081: "eighty-one", 8082: "eighty"}
        # What was let go may be taken again.
        await driver.publish(port(3, Publish(host_port=8080, port=80)))

    world.run(use)


def test_a_host_port_in_use_is_a_conflict_and_nothing_changes(world: World) -> None:
    world.serve("host", 9000, "host")
    world.serve("host", 9000, "host", socket.SOCK_DGRAM)

    async def use(driver: BridgeDriver) -> None:
        for protocol in ("tcp", "udp"):
            with pytest.raises(Conflict, match=f"9000/{protocol}"):
                await driver.publish(
                    port(2, Publish(host_port=9001, port=1), Publish(host_port=9000, port=1, protocol=protocol))
                )
            # Nothing of the refused request is held.
            other = port(3, Publish(host_port=9001, port=1))
            await driver.publish(other)
            await driver.detach(other.id)
        with pytest.raises(Invalid, match=r"192\.0\.2\.1 is not an address"):
            await driver.publish(port(2, Publish(host_address="192.0.2.1", host_port=1, port=1)))
        with pytest.raises(Unsupported, match="::1"):
            await driver.publish(port(2, Publish(host_address="::1", host_port=1, port=1)))
        with pytest.raises(Conflict, match="twice"):
            await driver.publish(port(2, Publish(host_port=7, port=1), Publish(host_port=7, port=2)))
        assert await driver.inventory() == set()

    world.run(use)
    assert world.ask("host", "127.0.0.1", 9000).startswith("host")


def test_a_published_port_is_held_against_others(world: World) -> None:
    async def use(driver: BridgeDriver) -> None:
        await driver.publish(port(2, Publish(host_port=9000, port=1)))
        with pytest.raises(OSError, match="in use"):
            world.serve("host", 9000, "late")

    world.run(use)


def test_repair_after_somebody_flushed_and_deleted(world: World) -> None:
    one = port(2, Publish(host_port=8080, port=80))
    world.add("i0")
    world.serve("i0", 80, "web")
    world.serve("internet", 80, "out")

    async def use(driver: BridgeDriver) -> None:
        await driver.attach_namespace(one, world.path("i0"))
        await driver.publish(one)
        for namespace in ("host", "layer"):
            world.in_(namespace, "nft", "flush", "ruleset")
        bridge = next(link for link in world.links("layer") if link.startswith("lam"))
        world.in_("layer", "ip", "link", "del", bridge)
        uplink = next(link for link in world.links("host") if link.endswith("-h"))
        world.in_("host", "ip", "link", "del", uplink)
        with pytest.raises(OSError):
            world.ask("internet", "203.0.113.1", 8080)
        await driver.repair([NETWORK], [one])
        assert world.ask("internet", "203.0.113.1", 8080) == "web 203.0.113.9"
        assert world.ask("i0", "203.0.113.9", 80) == "out 203.0.113.1"

    world.run(use)


def test_flushed_rules_heal_when_a_port_comes_or_goes(world: World) -> None:
    one, two = port(2, Publish(host_port=8080, port=80)), port(3, Publish(host_port=8081, port=80))
    for name in ("i0", "i1"):
        world.add(name)
        world.serve(name, 80, name)

    async def use(driver: BridgeDriver) -> None:
        await driver.attach_namespace(one, world.path("i0"))
        await driver.publish(one)
        world.in_("layer", "nft", "flush", "ruleset")
        await driver.attach_namespace(two, world.path("i1"))
        assert world.ask("internet", "203.0.113.1", 8080).startswith("i0")
        world.in_("host", "nft", "flush", "ruleset")
        await driver.publish(two)
        assert world.ask("internet", "203.0.113.1", 8080).startswith("i0")
        assert world.ask("internet", "203.0.113.1", 8081).startswith("i1")
        world.in_("host", "nft", "flush", "ruleset")
        await driver.detach(two.id)
        assert world.ask("internet", "203.0.113.1", 8080).startswith("i0")
        assert await driver.inventory() == {one.id}

    world.run(use)


def test_attach_again_replaces_the_link(world: World) -> None:
    one = port(2)
    world.add("i0")
    world.add("i1")

    async def use(driver: BridgeDriver) -> None:
        await driver.attach_namespace(one, world.path("i0"))
        await driver.attach_namespace(one, world.path("i0"))
        await driver.attach_namespace(one, world.path("i1"))

    world.run(use)
    assert (world.links("i0"), world.links("i1")) == ({"lo"}, {"lo", "eth0"})


def test_a_tap_in_use_is_not_given_twice(world: World) -> None:
    one = port(2)

    async def use(driver: BridgeDriver) -> None:
        _, descriptor = await driver.attach_tap(one)
        with pytest.raises(Conflict, match="in use by a running machine"):
            await driver.attach_tap(one)
        os.close(descriptor)
        _, descriptor = await driver.attach_tap(one)
        os.close(descriptor)

    world.run(use)


def test_a_cancelled_caller_leaves_nothing(world: World) -> None:
    one = port(2, Publish(host_port=8080, port=80))

    async def use(driver: BridgeDriver) -> None:
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        cut = 0
        for verb in (driver.attach_tap, driver.publish):
            for turns in range(6):
                task = asyncio.create_task(verb(one))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    done = await task
                except asyncio.CancelledError:
                    cut += 1
                else:  # its thread was quicker than all the turns
                    if verb == driver.attach_tap:
                        os.close(done[1])
            await driver.detach(one.id)
        assert cut
        assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
        assert not any(link.startswith("lap") for link in world.links("layer"))
        assert await driver.publish(one) == one.publish

    world.run(use)


def test_what_is_not_there_is_not_found(world: World) -> None:
    async def use(driver: BridgeDriver) -> None:
        with pytest.raises(NotFound, match="network"):
            await driver.attach_namespace(
                DesiredPort(
                    id=new_id("port"),
                    network=new_id("network"),
                    address="10.0.0.2/8",
                    mac="02:00:00:00:00:01",
                    publish=[],
                ),
                world.path("host"),
            )
        with pytest.raises(NotFound, match="no network namespace"):
            await driver.attach_namespace(port(2), Path("/run/netns/absent"))
        with pytest.raises(Conflict, match="overlaps"):
            await driver.ensure_network(
                DesiredNetwork(id=new_id("network"), name="other", subnet="10.83.7.0/24", gateway="10.83.7.1", mtu=1500)
            )

    world.run(use)
    with pytest.raises(Unavailable, match="cannot be entered"):
        world.inside("host", lambda: asyncio.run(BridgeDriver(world.home, Path("/run/netns/absent")).open()))


def test_two_layers_share_a_host_and_a_subnet(world: World, tmp_path: Path) -> None:
    from lamella.host.compute.driver import Home

    for name in ("layer2", "i0", "i1"):
        world.add(name)
    world.serve("i0", 80, "first")
    world.serve("i1", 80, "second")
    other_home = Home(path=tmp_path / "other", mark=world.home.mark[:-4] + "beef")
    one, two = port(2, Publish(host_port=8080, port=80)), port(2, Publish(host_port=8081, port=80))

    async def first(driver: BridgeDriver) -> None:
        await driver.attach_namespace(one, world.path("i0"))
        await driver.publish(one)
        second = BridgeDriver(other_home, world.path("layer2"))
        await second.open()
        try:
            await second.ensure_network(NETWORK)
            await second.attach_namespace(two, world.path("i1"))
            with pytest.raises(Conflict, match="8080"):
                await second.publish(port(3, Publish(host_port=8080, port=80)))
            await second.publish(two)
            assert world.ask("internet", "203.0.113.1", 8080).startswith("first")
            assert world.ask("internet", "203.0.113.1", 8081).startswith("second")
        finally:
            await second.teardown()
        assert world.ask("internet", "203.0.113.1", 8080).startswith("first")
        assert forwarding(world) == "1"

    world.run(first)


def test_findings_name_what_stands_in_the_way(world: World) -> None:
    world.in_("host", "ip", "route", "add", "10.83.128.0/24", "via", "203.0.113.9")

    async def use(driver: BridgeDriver) -> dict[str, tuple[bool, str]]:
        return {found.name: (found.available, found.reason) for found in await driver.findings()}

    found = world.run(use)
    assert found["network.forward"][0] and found["network.uplink"][0]
    assert not found["network.subnet.default"][0] and "10.83.128.0/24" in found["network.subnet.default"][1]
    chain = "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"
    world.in_("host", "nft", chain)
    available, reason = world.run(use)["network.forward"]
    assert not available and "policy drop in chain FORWARD of nft table ip filter" in reason
    world.in_("host", "nft", "delete table ip filter")
    world.in_("host", "nft", "add table inet fw; add chain inet fw last { type filter hook forward priority 0; }")
    world.in_("host", "nft", "add rule inet fw last counter reject")
    available, reason = world.run(use)["network.forward"]
    assert not available and "table inet fw" in reason
