"""What tests of a network's services share: worlds whose services end with them, and clients that ask."""

import asyncio
import shutil
import stat
import subprocess
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

import pytest
from name_questions import Refused, resolve
from network_world import NETWORK, World

from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import DesiredNetwork, DesiredPort
from lamella.host.network.services import process
from lamella.model.ids import new_id

GATEWAY = "10.83.0.1"
BACK = DesiredNetwork(
    id=new_id("network"), name="back", subnet="10.85.0.0/24", gateway="10.85.0.1", mtu=1400, isolated=True
)

T = TypeVar("T")
Use = Callable[[BridgeDriver], Awaitable[None]]


def on_back(number: int) -> DesiredPort:
    mac = f"02:00:0a:55:00:{number:02x}"
    return DesiredPort(id=new_id("port"), network=BACK.id, address=f"10.85.0.{number}/24", mac=mac, publish=[])


@contextmanager
def services_in(world: World) -> Generator[None]:
    """The services of *world* end with it."""
    if process.program() is None:
        pytest.skip("dnsmasq is not installed")
    (world.home.path / "resolv.conf").write_text("nameserver 127.0.0.53\n")
    try:
        yield
    finally:

        async def end() -> None:
            await BridgeDriver(world.home, world.path("layer")).teardown()

        world.inside("host", lambda: asyncio.run(end()))
        Cgroups(ROOT, world.home.mark).remove()
        assert not (world.home.run / "network" / "services").exists()


def life(world: World, use: Use) -> None:
    """One life of a daemon, whose host asks the resolvers of a file."""

    async def run() -> None:
        driver = BridgeDriver(world.home, world.path("layer"), (world.home.path / "resolv.conf",))
        await driver.open()
        try:
            await driver.ensure_network(NETWORK)
            await use(driver)
        finally:
            await driver.close()

    world.inside("host", lambda: asyncio.run(run()))


async def until(check: Callable[[], T], why: str = "") -> T:
    """*check* is asked in a thread until what it returns is true, which is returned; errors of sockets count as no."""
    deadline = time.monotonic() + 90
    while True:
        try:
            if found := await asyncio.to_thread(check):
                return found
        except (OSError, Refused):
            pass
        assert time.monotonic() < deadline, why
        await asyncio.sleep(0.05)


async def join(world: World, driver: BridgeDriver, *ports: DesiredPort) -> None:
    for index, one in enumerate(ports):
        world.add(f"i{index}", loopback=False)
        await driver.attach_namespace(one, world.path(f"i{index}"))


def refuses(world: World, where: str, server: str, name: str) -> bool:
    try:
        resolve(world, where, server, name)
    except Refused as error:
        return error.code in (3, 5)
    return False


def lease(world: World, where: str, *, options: tuple[str, ...] = ("mtu", "staticroutes")) -> dict[str, str]:
    """What a DHCP client in the namespace *where* is told; nothing when nobody answers it."""
    script, told = world.home.path / "told.sh", world.home.path / f"told-{where}"
    script.write_text(f'#!/bin/sh\n[ "$1" = bound ] && env >{told}\nexit 0\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    told.unlink(missing_ok=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    wanted = [word for option in options for word in ("-O", option)]
    client = [busybox, "udhcpc", "-f", "-n", "-q", "-i", "eth0", "-t", "2", "-T", "1", *wanted, "-s", str(script)]
    words = ["ip", "netns", "exec", world.full(where), *client]
    subprocess.run(words, capture_output=True, timeout=90, check=False)
    if not told.exists():
        return {}
    return dict(line.split("=", 1) for line in told.read_text().splitlines() if "=" in line)
