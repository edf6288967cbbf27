"""The network as instances have it, against a path of the same shape that is made by hand: in pairs, in the same run."""

import statistics
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import paths
from benchmarks.containers import AT
from benchmarks.house import api
from benchmarks.measure import Row, Series, pairs, timed
from tests.house import LayerUnderTest
from tests.integration.network.network_world import NETWORK, World

from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import DesiredPort
from lamella.model.firewall import FirewallSpec
from lamella.model.firewall_text import parse
from lamella.model.ids import new_id

# Short, so that what else the machine does befalls both of a pair.
BURST = 0.4
CONNECTIONS = 200
FIREWALL = new_id("firewall")
SPECS = {FIREWALL: FirewallSpec(inbound=[parse(f"tcp:{paths.PORT}"), parse("icmp")])}


def rows(layer: LayerUnderTest, runs: int) -> list[Row]:
    return [throughput(layer, runs), latency(1000, runs), attaching(layer, runs)]


def guarded(number: int) -> DesiredPort:
    """The port with that number, of at most 65,000, guarded by the firewall."""
    high, low = divmod(number, 250)
    return DesiredPort(
        id=new_id("port"),
        network=NETWORK.id,
        address=f"10.83.{high}.{low + 2}/16",
        mac=f"02:00:0a:53:{high:02x}:{low:02x}",
        publish=[],
        firewalls=[FIREWALL],
    )


def throughput(layer: LayerUnderTest, runs: int) -> Row:
    name = f"bench-{uuid.uuid4().hex[:8]}"
    layer.lamella("firewall", "create", name, "--allow", f"tcp:{paths.PORT}")
    boxes = [f"{name}-{end}" for end in ("a", "b")]
    try:
        for box in boxes:
            layer.lamella("run", "-d", "--name", box, "--firewall", name, "busybox", "--", "sleep", "100000")
        seen = [layer.wait_phase(box, "running")["status"] for box in boxes]
        first, second = (f"/proc/{status['pid']}/ns/net" for status in seen)
        with paths.between(first, second, seen[1]["address"].partition("/")[0]) as ours, paths.bare() as bare:
            mine, other = pairs(lambda: ours.throughput(BURST), lambda: bare.throughput(BURST), runs=runs * 2)
    finally:
        layer.lamella("rm", "--force", *boxes, check=False)
        layer.lamella("firewall", "rm", name, check=False)
    what = "throughput between two containers with a firewall, one TCP stream, against bare veth–bridge–veth"
    return Row(what, _gigabits(mine), _gigabits(other), ratio(mine, other), "0.85 ×", "0.93 ×")


def latency(count: int, runs: int) -> Row:
    """Of the driver's own path: the two ends are namespaces, the other ports elements of its sets."""
    ports = [guarded(number) for number in range(count)]
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch:
        world = World(Path(scratch))
        try:
            ends = [world.add(f"i{number}", loopback=False) for number in range(2)]

            async def use(driver: BridgeDriver) -> None:
                await driver.protect(SPECS, ports)
                await driver.repair([NETWORK], ports)
                for port, end in zip(ports, ends, strict=False):
                    await driver.attach_namespace(port, end)

            world.run(use)
            address = ports[1].address.partition("/")[0]
            with paths.between(ends[0], ends[1], address) as ours, paths.bare() as bare:
                mine, other = pairs(lambda: ours.connect(CONNECTIONS), lambda: bare.connect(CONNECTIONS), runs=runs * 2)
        finally:
            clear(world)
    what = f"TCP connect, p50 of {CONNECTIONS}, past a firewall with {count:,} ports, against bare veth–bridge–veth"
    return Row(what, _micro(mine), _micro(other), ratio(mine, other), "1.6 ×", "1.3 ×")


def clear(world: World) -> None:
    """End what the driver started in *world*, and all of it."""
    try:
        world.run(lambda driver: driver.teardown(), fresh=False)
    finally:
        world.close()


def attaching(layer: LayerUnderTest, runs: int) -> Row:
    """What a container's start takes longer with a NIC than without."""
    client = api(layer)

    def start(*networks: str) -> Callable[[], float]:
        spec = {"image": "busybox", "command": ["sleep", "100000"], "nics": [{"network": name} for name in networks]}

        def once() -> float:
            name = f"bench-{uuid.uuid4().hex[:8]}"
            seconds = timed(lambda: client.call("POST", f"{AT}?wait=30", {"name": name, "spec": spec}))
            client.call("DELETE", f"{AT}/{name}?force=true&wait=30")
            return seconds

        return once

    mine, other = pairs(start("default"), start(), runs=runs * 2, warm=3)
    longer = statistics.median(one - without for one, without in zip(mine.seconds, other.seconds, strict=True))
    what = "container: create and start with a NIC, against the same without: what the network adds"
    return Row(
        f"{what} ({longer * 1e3:+.1f} ms)", mine.text(), other.text(), mine.median / other.median, "+15 ms", "+6 ms"
    )


def ratio(ours: Series, theirs: Series) -> float:
    """The median of the pairs' ratios: a moment in which the machine does something else befalls both of a pair."""
    return statistics.median(mine / other for mine, other in zip(ours.seconds, theirs.seconds, strict=True))


def _gigabits(series: Series) -> str:
    return _text([rate * 8 / 1e9 for rate in series.seconds], "Gbit/s", 1)


def _micro(series: Series) -> str:
    return _text([seconds * 1e6 for seconds in series.seconds], "µs", 0)


def _text(values: Sequence[float], unit: str, digits: int) -> str:
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} {unit} ({low} to {high}, n={len(values)})"
