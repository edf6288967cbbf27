"""Memory of microVMs that used a gibibyte once: what they take with the controller and without, and how fast they have it again."""

import asyncio
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import Row
from tests.integration.microvm.microvm_lab import Lab, make_image, run
from tests.memory_house import MIB, Resident, plenty, rounds, small

from lamella.host.compute.driver import Home, Limits, Machine
from lamella.host.compute.microvm.driver import MicrovmDriver
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.memory.controller import LEAST_ROOM
from lamella.host.memory.keeper import MemoryKeeper

CEILING, FLOOR = 1280 * MIB, 256 * MIB
ONCE, IN_USE, MORE = 1024, 200, 500
SETTLED = 5


def rows() -> list[Row]:
    return asyncio.run(_measured())


async def _measured() -> list[Row]:
    with TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch:
        home = Home(Path(scratch) / "home", f"lamella-bench-m{os.getpid()}")
        home.state.mkdir(parents=True)
        home.run.mkdir()
        lab = Lab(home)
        upper, lower = lab.layers
        make_image(lower, upper)
        driver = lab.driver()
        try:
            await driver.open()
            return await _rows(lab, driver)
        finally:
            for id in await driver.inventory():
                await driver.remove(id)
            await driver.close()
            Cgroups(ROOT, home.mark).remove()


async def _rows(lab: Lab, driver: MicrovmDriver) -> list[Row]:
    without, kept = await _used_once(lab, driver, None), await _used_once(lab, driver, FLOOR)
    one = Resident(driver, kept, FLOOR)
    keeper = MemoryKeeper(lambda: [one], plenty)
    still: list[int] = []

    def settled() -> bool:
        found = keeper.held(kept.id)
        still.append(0 if found is None else found.held)
        return len(still) > SETTLED and still[-1] < CEILING - 256 * MIB and len(set(still[-SETTLED:])) == 1

    took = await rounds(keeper, settled, "giving back")
    plain, reclaimed = await _resident(driver, without), await _resident(driver, kept)
    print(f"resident: {plain / MIB:.0f} MiB without, {reclaimed / MIB:.0f} MiB with the controller", file=sys.stderr)
    relief = await _relief(driver, kept, without)
    return [
        Row(
            f"microVM that touched 1 GiB once and uses {IN_USE} MiB: resident without the controller, and with it",
            f"{reclaimed / MIB:.0f} MiB after {took:.0f} s",
            f"{plain / MIB:.0f} MiB",
            plain / reclaimed,
            "2 ×",
            "3 ×",
        ),
        Row(
            "from a guest's pressure to its relief, its neighbour having the memory (the longest of several)",
            f"{relief:.1f} s",
            "–",
            None,
            "3 s",
            "1 s",
        ),
    ]


async def _used_once(lab: Lab, driver: MicrovmDriver, guarantee: int | None) -> Machine:
    machine = lab.machine("/bin/sleep", "1000000", limits=Limits(memory=CEILING, pids=200), memory_guarantee=guarantee)
    assert machine.disk is not None
    os.truncate(machine.disk.path, 2 << 30)
    await driver.create(machine)
    await driver.start(machine.id)
    await _inside(driver, machine, f"dd if=/dev/zero of=/once bs=1M count={ONCE} && sync")
    await _inside(
        driver,
        machine,
        f"mkdir /m && mount -t tmpfs -o size=95% m /m && dd if=/dev/zero of=/m/use bs=1M count={IN_USE}",
    )
    return machine


async def _inside(driver: MicrovmDriver, machine: Machine, script: str) -> None:
    code, said = await run(driver, machine.id, "sh", "-c", script, timeout=300)
    assert code == 0, said


async def _resident(driver: MicrovmDriver, machine: Machine) -> int:
    found = await driver.memory_held(machine.id)
    assert found is not None
    return found.resident


async def _relief(driver: MicrovmDriver, short: Machine, neighbour: Machine) -> float:
    """The longest time, in seconds, in which the guest has less than 32 MiB left by its own word (which is up to a second old) while a
    process in it wants more. Its neighbour holds all that is left of the host."""
    several = [Resident(driver, machine, FLOOR) for machine in (short, neighbour)]
    start = await driver.memory_held(short.id)
    assert start is not None
    keeper = MemoryKeeper(lambda: several, lambda: small(keeper, *several, budget=start.held + CEILING))
    command = asyncio.create_task(_inside(driver, short, f"dd if=/dev/zero of=/m/more bs=1M count={MORE}"))
    began, longest = 0.0, 0.0
    while not command.done() or began:
        again = await keeper.round()
        found = keeper.held(short.id)
        comes_short = found is not None and found.used is not None and found.held < found.used + LEAST_ROOM
        at = time.monotonic()
        longest = max(longest, at - began if began else 0.0)
        began = (began or at) if comes_short else 0.0
        await asyncio.sleep(again)
    await command
    assert longest, "it never came short: nothing was measured"
    return longest
