"""Many ports on one host: what one more costs, and what a thousand cost against the same links made by ``ip -batch``."""

import asyncio
import os
import resource
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import Row, Series
from benchmarks.network import SPECS, clear, guarded, ratio
from tests.integration.network.network_world import NETWORK, World

from lamella.host.linux.syscalls import CLONE_NEWNET, unshare
from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import DesiredPort
from lamella.host.network.names import port_name


def rows(runs: int) -> list[Row]:
    return [one_more(5000, 10, runs * 2), many(1000, max(2, runs // 5))]


def one_more(many: int, few: int, runs: int) -> Row:
    """A port with a firewall comes to a host with *many*, against one with *few*: its rules alone, then its link too."""
    with _world() as world:
        end = world.add("end", loopback=False)
        seen = {
            count: world.run(lambda driver, count=count: _one_more(driver, count, end, runs)) for count in (few, many)
        }
    rules, links = ([step[number] for step in seen[many]] for number in (0, 1))
    other = [step[0] for step in seen[few]]
    what = f"one more guarded port on a host with {many:,}: its rules in force, against a host with {few}"
    linked = f"; with its link {statistics.median(links) * 1e3:.1f} ms"
    return Row(
        what, _text(rules) + linked, _text(other), statistics.median(rules) / statistics.median(other), "10 ms", "1 ms"
    )


async def _one_more(driver: BridgeDriver, count: int, end: Path, runs: int) -> list[tuple[float, float]]:
    """(seconds until its rules are in force, seconds until its link is there too) of each run."""
    ports = [guarded(number) for number in range(count)]
    await driver.protect(SPECS, ports)
    await driver.repair([NETWORK], ports)
    seen: list[tuple[float, float]] = []
    for number in range(runs):
        port = guarded(count + number)
        began = time.perf_counter()
        await driver.protect(SPECS, [*ports, port])
        ruled = time.perf_counter()
        await driver.attach_namespace(port, end)
        seen.append((ruled - began, time.perf_counter() - began))
        await driver.detach(port.id)
        await driver.protect(SPECS, ports)
    await driver.repair([], [])
    await driver.protect({}, [])
    return seen


def many(count: int, runs: int) -> Row:
    """Links of *count* ports, each into a namespace of its own. Ours has its address, route and rule as well."""
    mine, other = Series("ours"), Series("peer")
    for _ in range(runs):
        ports = [guarded(number) for number in range(count)]
        with _world() as world:
            with _namespaces(count) as ends:
                mine.seconds.append(world.run(lambda driver, ports=ports, ends=ends: _attach_all(driver, ports, ends)))
            _until_gone(world)
        with _world() as world:
            with _namespaces(count) as ends:
                other.seconds.append(_batch(world, ports, ends))
            _until_gone(world)
    what = f"{count:,} ports made, each into its namespace, with addresses and rules, against `ip -batch` making the same links alone"
    return Row(what, _text(mine.seconds), _text(other.seconds), ratio(mine, other), "4 ×", "2 ×")


async def _attach_all(driver: BridgeDriver, ports: Sequence[DesiredPort], ends: Sequence[Path]) -> float:
    began = time.perf_counter()
    await driver.protect(SPECS, ports)
    async with asyncio.TaskGroup() as group:
        for port, end in zip(ports, ends, strict=True):
            group.create_task(driver.attach_namespace(port, end))
    return time.perf_counter() - began


def _batch(world: World, ports: Sequence[DesiredPort], ends: Sequence[Path]) -> float:
    lines = ["link add br0 type bridge", "link set br0 up"]
    for port, end in zip(ports, ends, strict=True):
        name = port_name(port.id)
        lines.append(
            f"link add {name} mtu 1500 master br0 type veth peer name eth0 mtu 1500 address {port.mac} netns {end}"
        )
        lines.append(f"link set {name} alias {port.id} up")
    file = world.home.path / "links.batch"
    file.write_text("\n".join(lines) + "\n")
    began = time.perf_counter()
    subprocess.run(["ip", "-n", world.full("layer"), "-batch", str(file)], check=True, timeout=300)
    return time.perf_counter() - began


@contextmanager
def _world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch:
        world = World(Path(scratch))
        try:
            yield world
        finally:
            clear(world)


@contextmanager
def _namespaces(count: int) -> Iterator[list[Path]]:
    """Network namespaces without names, open as descriptors of this process; gone with them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 512)), hard))
    made: list[int] = []

    def make() -> None:
        for _ in range(count):
            unshare(CLONE_NEWNET)
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    try:
        if len(made) < count:
            raise RuntimeError(f"only {len(made)} of {count} network namespaces could be made")
        yield [Path(f"/proc/{os.getpid()}/fd/{descriptor}") for descriptor in made]
    finally:
        for descriptor in made:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _until_gone(world: World) -> None:
    """Let the kernel take the links down before the next run is timed."""
    deadline = time.monotonic() + 300
    while any(name.startswith("lap") for name in world.links("layer")):
        if time.monotonic() > deadline:
            raise RuntimeError("the kernel still takes links down")
        time.sleep(0.5)


def _text(seconds: Sequence[float]) -> str:
    values = [value * 1e3 for value in seconds]
    return f"{statistics.median(values):.2f} ms ({min(values):.2f} to {max(values):.2f}, n={len(values)})"
