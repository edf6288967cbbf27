"""From host to host, two namespaces joined by an underlay: our tunnel against one that is made by hand, in pairs, in the same run."""

import secrets
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import paths
from benchmarks.measure import Row, pairs
from benchmarks.network import BURST, clear, ratio
from msgspec.structs import replace
from tests.house import named_netns
from tests.integration.network.network_world import NETWORK, World, port

from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import DesiredPort
from lamella.model.network import Neighbour

SPANNING = replace(NETWORK, vni=4711, mtu=1450)
UNDERLAY = ("192.0.2.1", "192.0.2.2")


def rows(runs: int) -> list[Row]:
    with ours() as mine, by_hand() as other:
        ends = pairs(lambda: mine.throughput(BURST), lambda: other.throughput(BURST), runs=runs * 2)
    what = "throughput across VXLAN between two namespaces-as-hosts, one TCP stream, against VXLAN made by hand"
    return [Row(what, _text(ends[0].seconds), _text(ends[1].seconds), ratio(*ends), "0.95 ×", "1 ×")]


@contextmanager
def ours() -> Iterator[paths.Route]:
    """Two hosts with a driver each, a port each."""
    with ExitStack() as stack:
        worlds: list[World] = []
        for _ in UNDERLAY:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp"))
            worlds.append(World(Path(scratch)))
            stack.callback(clear, worlds[-1])
        _join(worlds[0].full("host"), worlds[1].full("host"))
        ports = [port(number) for number in (2, 3)]
        ends = [
            _plug(world, own, other, n)
            for n, (world, own, other) in enumerate(zip(worlds, ports, ports[::-1], strict=True))
        ]
        yield stack.enter_context(paths.between(ends[0], ends[1], "10.83.0.3"))


def _plug(world: World, own: DesiredPort, other: DesiredPort, number: int) -> Path:
    end = world.add("end", loopback=False)
    far = Neighbour(port=other.id, network=SPANNING.id, address=other.address, mac=other.mac, host=UNDERLAY[1 - number])

    async def use(_: BridgeDriver) -> None:
        driver = BridgeDriver(world.home, world.path("layer"), underlay=UNDERLAY[number])
        await driver.open()
        try:
            await driver.ensure_network(SPANNING)
            await driver.span([far])
            await driver.attach_namespace(own, end)
        finally:
            await driver.close()

    world.run(use, fresh=False)
    return end


@contextmanager
def by_hand() -> Iterator[paths.Route]:
    """veth -- bridge -- VXLAN ====== VXLAN -- bridge -- veth, with entries by hand, and past no rule."""
    mark = f"lamella-bench-{secrets.token_hex(3)}"
    macs = ("02:00:0a:63:07:01", "02:00:0a:63:07:02")
    with ExitStack() as stack:
        hosts = [stack.enter_context(named_netns(f"{mark}-host{n}")) for n in (1, 2)]
        ends = [stack.enter_context(named_netns(f"{mark}-end{n}")) for n in (1, 2)]
        _join(*hosts)
        for n, (host, end) in enumerate(zip(hosts, ends, strict=True)):
            inside = ("ip", "-n", host, "link")
            _run(*inside, "add", "br0", "type", "bridge")
            shown = "/proc/sys/net/bridge/bridge-nf-call-iptables"
            quiet = f"if [ -e {shown} ]; then echo 0 >{shown}; fi"
            _run("nsenter", f"--net=/run/netns/{host}", "sh", "-c", quiet)
            _run(
                *inside,
                "add",
                "vx0",
                "type",
                "vxlan",
                "id",
                "4711",
                "dstport",
                "4789",
                "local",
                UNDERLAY[n],
                "nolearning",
            )
            _run(
                *inside,
                "add",
                "p0",
                "mtu",
                "1450",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "address",
                macs[n],
                "netns",
                end,
            )
            for name in ("vx0", "p0"):
                _run(*inside, "set", name, "master", "br0", "up")
            _run(*inside, "set", "br0", "up")
            _run("bridge", "-n", host, "fdb", "append", macs[1 - n], "dev", "vx0", "dst", UNDERLAY[1 - n])
            _run("bridge", "-n", host, "fdb", "append", "00:00:00:00:00:00", "dev", "vx0", "dst", UNDERLAY[1 - n])
            _run("ip", "-n", end, "link", "set", "eth0", "mtu", "1450", "up")
            _run("ip", "-n", end, "addr", "add", f"10.99.7.{n + 1}/24", "dev", "eth0")
        yield stack.enter_context(paths.between(f"/run/netns/{ends[0]}", f"/run/netns/{ends[1]}", "10.99.7.2"))


def _join(one: str, two: str) -> None:
    """The underlay between the namespaces *one* and *two*."""
    link = f"u{secrets.token_hex(3)}"
    _run("ip", "-n", one, "link", "add", link, "type", "veth", "peer", "name", link, "netns", two)
    for netns, address in zip((one, two), UNDERLAY, strict=True):
        _run("ip", "-n", netns, "addr", "add", f"{address}/24", "dev", link)
        _run("ip", "-n", netns, "link", "set", link, "up")


def _run(*words: str) -> None:
    subprocess.run(words, check=True, timeout=30)


def _text(rates: Sequence[float]) -> str:
    low, middle, high = (f"{rate * 8 / 1e9:.1f}" for rate in (min(rates), statistics.median(rates), max(rates)))
    return f"{middle} Gbit/s ({low} to {high}, n={len(rates)})"
