"""A real guest that used its memory once gives it back, gets it again when it comes short, and its host's other guests with it."""

import asyncio

from microvm_lab import Lab, run
from tests.memory_house import MIB, Resident, plenty, rounds, value

from lamella.host.compute.driver import Limits, Machine
from lamella.host.compute.microvm.driver import MicrovmDriver
from lamella.host.memory.driver import Held
from lamella.host.memory.keeper import MemoryKeeper
from lamella.host.memory.ladder import HostMemory

FLOOR, CEILING = 160 * MIB, 512 * MIB
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


async def test_a_guest_gives_back_what_it_touched_once_and_has_it_again_when_it_comes_short(
    lab: Lab, driver: MicrovmDriver
) -> None:
    machine = await running(lab, driver)
    one = Resident(driver, machine, FLOOR)
    keeper = MemoryKeeper(lambda: [one], plenty)
    seen = await held(driver, machine.id)
    assert seen.held == seen.ceiling == CEILING

    await touch(driver, machine.id, 300)
    full = (await held(driver, machine.id)).resident
    await rounds(keeper, lambda: has(keeper, machine.id) < 288 * MIB, "giving back")
    after = await held(driver, machine.id)
    assert after.held >= FLOOR and after.resident < full - 100 * MIB, (full, after)
    lines = keeper.mechanisms(machine.id, await driver.mechanisms(machine.id))
    assert value(lines, "limit.memory").startswith("512MiB, of which it has ")
    assert "it says that it uses" in value(lines, "memory now")
    assert "its balloon" in value(lines, "memory taken back")

    # More than it was left, at once: what its kernel lacks it takes back itself, and is given before it lacks more.
    await need(driver, machine.id, 300)
    await rounds(keeper, lambda: has(keeper, machine.id) > 350 * MIB, "relief")
    assert (await run(driver, machine.id, "echo", "well"))[1] == "well\n"
    assert one.told == []

    # Another daemon finds it as it is; without a guarantee it has all that it was given.
    await run(driver, machine.id, "umount", "/m")
    await rounds(keeper, lambda: has(keeper, machine.id) < 288 * MIB, "giving back anew")
    await driver.close()
    successor = lab.driver()
    await successor.open()
    try:
        other = Resident(successor, machine, None)
        later = MemoryKeeper(lambda: [other], plenty)
        async with asyncio.timeout(90):
            while (await held(successor, machine.id)).held < CEILING:
                await later.round()
                await asyncio.sleep(0.2)
    finally:
        await successor.close()


async def test_a_neighbour_that_does_not_need_it_makes_room_and_one_that_lies_gets_no_more(
    lab: Lab, driver: MicrovmDriver
) -> None:
    machines = [await running(lab, driver) for _ in range(2)]
    idle, short = (Resident(driver, machine, FLOOR) for machine in machines)

    def look() -> HostMemory:
        """A host that has room for both floors and 320 MiB more, whatever this one has."""
        taken = sum(found.resident for found in (keeper.held(idle.id), keeper.held(short.id)) if found)
        return HostMemory(total=640 * MIB, available=max(0, 640 * MIB - taken))

    keeper = MemoryKeeper(lambda: [idle, short], look)
    keeper.reserve = 0

    def both(keeper: MemoryKeeper) -> int:
        return has(keeper, idle.id) + has(keeper, short.id)

    await touch(driver, idle.id, 200)
    await rounds(keeper, lambda: 0 < both(keeper) <= 640 * MIB, "both fit")
    await need(driver, short.id, 260)
    await rounds(keeper, lambda: has(keeper, short.id) >= 360 * MIB, "relief by the neighbour")
    assert has(keeper, idle.id) >= FLOOR
    assert both(keeper) <= 656 * MIB
