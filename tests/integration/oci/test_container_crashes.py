"""A daemon that is killed at any moment leaves nothing that the next one cannot find and remove."""

import asyncio
import os
import random
import signal
import time

import pytest
from oci_lab import Lab, run

from lamella.host.compute.driver import Home, Machine
from lamella.host.compute.oci.driver import OciDriver
from lamella.model.instance import Phase
from lamella.model.stream import ExecSpec, Stdin, StdinEnd

pytestmark = pytest.mark.root


def doomed(lab: Lab, machine: Machine, seconds: float) -> None:
    """A daemon that begins to make *machine*, start it and remove it, over and over, and is killed after *seconds*."""

    async def live() -> None:
        driver = OciDriver(lab.home, lambda _: None)
        await driver.open()
        os.write(told, b"1")
        while True:
            await driver.create(machine)
            await driver.start(machine.id)
            await driver.stop(machine.id, signal="KILL", timeout=0)
            await driver.remove(machine.id)

    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(heard)
            asyncio.run(live())
        finally:
            os._exit(1)
    os.close(told)
    assert os.read(heard, 1) == b"1"
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(heard)


def test_killed_at_any_moment(lab: Lab) -> None:
    """Synchronous: the daemons are forked, so this process may have no thread and no loop yet."""
    chance = random.Random(7)
    machines = [lab.machine("sleep", "1000") for _ in range(12)]
    for machine in machines:
        doomed(lab, machine, chance.uniform(0.0, 0.15))

    async def clean() -> None:
        driver = lab.driver()
        await driver.open()
        found = await driver.inventory()
        assert found <= {machine.id for machine in machines}
        for id in found:
            await driver.observe(id)
            await driver.remove(id)
        await driver.close()

    asyncio.run(clean())


def test_what_was_cut_short_is_made_anew(lab: Lab) -> None:
    machine = lab.machine("true")
    for seconds in (0.01, 0.03, 0.05, 0.07):
        doomed(lab, machine, seconds)

    async def again() -> None:
        driver = lab.driver()
        await driver.open()
        assert (await run(driver, machine))[0] == 0
        await driver.remove(machine.id)
        await driver.close()

    asyncio.run(again())


async def test_a_create_that_is_cancelled_leaves_nothing(lab: Lab, driver: OciDriver) -> None:
    for seconds in (0.0, 0.001, 0.002, 0.003, 0.005, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04):
        machine = lab.machine("sleep", "1000")
        making = asyncio.create_task(driver.create(machine))
        await asyncio.sleep(seconds)
        making.cancel()
        try:
            await making
        except asyncio.CancelledError:
            assert await driver.observe(machine.id) is None
        else:
            await driver.remove(machine.id)
    assert await driver.inventory() == set()


async def test_many_at_once(lab: Lab, driver: OciDriver) -> None:
    machines = [lab.machine("sh", "-c", f"exit {number}") for number in range(20)]
    codes = await asyncio.gather(*(run(driver, machine) for machine in machines))
    assert [code for code, _, _ in codes] == list(range(20))
    await asyncio.gather(*(driver.remove(machine.id) for machine in machines))
    assert await driver.inventory() == set()


async def test_a_home_with_a_long_path(lab: Lab) -> None:
    """Longer than a socket's address may be."""
    long = lab.home.path / ("a" * 100) / ("b" * 100)
    long.mkdir(parents=True)
    lab.home = Home(long, lab.home.mark)
    lab.home.state.mkdir()
    driver = lab.driver()
    assert (await driver.open())[0].available
    try:
        machine = lab.machine("cat", terminal=True, stdin=True)
        await driver.create(machine)
        stream = await driver.attach(machine.id)
        await driver.start(machine.id)
        beside = await driver.exec(machine.id, ExecSpec(command=["tty"], terminal=True))
        while await beside.receive() is not None:
            pass
        await beside.close()
        await stream.send(Stdin(b"word\n"))
        await stream.send(StdinEnd())
        while await stream.receive() is not None:
            pass
        await stream.close()
        seen = await driver.observe(machine.id)
        assert seen is not None
        assert (seen.phase, seen.exit_code) == (Phase.STOPPED, 0)
        await driver.remove(machine.id)
    finally:
        await driver.close()
