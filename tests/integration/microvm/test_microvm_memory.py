"""A real guest that used its memory once gives it back, gets it again when it comes short, and its host's other guests with it."""

import asyncio

from microvm_lab import Lab, run
from tests.memory_house import MIB, Resident, plenty, rounds, small, value

from lamella.host.compute.driver import Limits, Machine
from lamella.host.compute.microvm.driver import MicrovmDriver
from lamella.host.memory.driver import Held
from lamella.host.memory.keeper import MemoryKeeper

FLOOR, CEILING = 96 * MIB, 256 * MIB
BUDGET = 384 * MIB
SLEEP = ("/bin/sleep", "1000000")


async def running(lab: Lab, driver: MicrovmDriver, guarantee: int | None = FLOOR) -> Machine:
    machine = lab.machine(*SLEEP, limits=Limits(cpu=1000, memory=CEILING, pids=200), memory_guarantee=guarantee)
    await driver.create(machine)
    await driver.start(machine.id)
    return machine


async def touch(driver: MicrovmDriver, id: str, mebibytes: int) -> None:
    """Fill the guest's page cache, which it keeps."""
    code, said = await run(driver, id, "dd", "if=/dev/zero", "of=/big", "bs=1M", f"count={mebibytes}", timeout=120)
    assert code == 0, said


async def need(driver: MicrovmDriver, id: str, mebibytes: int) -> None:
    """Have a process use that much, which cannot be given back, for as long as it lives."""
    script = f"mkdir -p /m && mount -t tmpfs -o size=90% tmpfs /m && dd if=/dev/zero of=/m/x bs=1M count={mebibytes}"
    code, said = await run(driver, id, "sh", "-c", script, timeout=120)
    assert code == 0, said


async def held(driver: MicrovmDriver, id: str) -> Held:
    found = await driver.memory_held(id)
    assert found is not None
    return found


def has(keeper: MemoryKeeper, id: str) -> int:
    found = keeper.held(id)
    return 0 if found is None else found.held


async def test_a_guest_gives_back_what_it_touched_once_and_has_it_again_without_a_guarantee(
    lab: Lab, driver: MicrovmDriver
) -> None:
    machine = await running(lab, driver)
    one = Resident(driver, machine, FLOOR)
    keeper = MemoryKeeper(lambda: [one], plenty)
    seen = await held(driver, machine.id)
    assert seen.held == seen.ceiling == CEILING
    await touch(driver, machine.id, 120)
    full = (await held(driver, machine.id)).resident

    def gave_back() -> bool:
        found = keeper.held(machine.id)
        if found is None or found.silent:
            return False
        return found.held < 160 * MIB and found.resident < full - 16 * MIB

    await rounds(keeper, gave_back, "giving back")
    assert (await held(driver, machine.id)).held >= FLOOR
    lines = keeper.mechanisms(machine.id, await driver.mechanisms(machine.id))
    assert value(lines, "limit.memory").startswith("256MiB, of which it has ")
    assert "it says that it uses" in value(lines, "memory now")
    assert "its balloon" in value(lines, "memory taken back")

    # Another daemon finds it as it is, and without a guarantee it is to have all that it was given.
    await driver.close()
    successor = lab.driver()
    await successor.open()
    try:
        later = MemoryKeeper(lambda: [Resident(successor, machine, None)], plenty)
        async with asyncio.timeout(180):
            while (await held(successor, machine.id)).held < CEILING:
                await later.round()
                await asyncio.sleep(0.2)
    finally:
        await successor.close()


async def test_one_that_comes_short_has_what_its_neighbour_does_not_need(lab: Lab, driver: MicrovmDriver) -> None:
    machines = [await running(lab, driver) for _ in range(2)]
    idle, short = (Resident(driver, machine, FLOOR) for machine in machines)

    def both() -> int:
        return has(keeper, idle.id) + has(keeper, short.id)

    keeper = MemoryKeeper(lambda: [idle, short], lambda: small(keeper, idle, short, budget=BUDGET))
    await rounds(keeper, lambda: all(0 < has(keeper, one.id) <= 160 * MIB for one in (idle, short)), "both give back")
    assert both() <= BUDGET
    await need(driver, short.id, 80)
    await rounds(keeper, lambda: has(keeper, short.id) >= 208 * MIB and both() <= BUDGET, "relief")
    assert has(keeper, idle.id) >= FLOOR
    assert (await run(driver, short.id, "echo", "well"))[1] == "well\n"
