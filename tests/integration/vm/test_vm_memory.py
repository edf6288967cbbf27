"""A guest without a driver for its balloon: it is asked, its contract says that it does not follow, and it runs on."""

from pathlib import Path

from tests.memory_house import MIB, Resident, rounds, value
from vm_lab import Lab

from lamella.host.compute.driver import Limits
from lamella.host.compute.vm.driver import VmDriver
from lamella.host.memory.keeper import MemoryKeeper
from lamella.host.memory.ladder import HostMemory
from lamella.model.instance import Phase

FLOOR = 64 * MIB


async def test_a_guest_that_does_not_follow_is_told_of_and_not_counted_on(
    lab: Lab, driver: VmDriver, guest_disk: Path
) -> None:
    machine = lab.machine(disk=guest_disk, limits=Limits(cpu=1000, memory=128 * MIB), memory_guarantee=FLOOR)
    await driver.create(machine)
    await driver.start(machine.id)
    session = await driver._running(machine.id)  # pyright: ignore[reportPrivateUsage]
    balloon = {"path": "/machine/peripheral/balloon", "property": "deflate-on-oom"}
    assert await (await session.monitor()).execute("qom-get", balloon) is True

    one = Resident(driver, machine, FLOOR)
    keeper = MemoryKeeper(lambda: [one], lambda: HostMemory(total=1 << 40, available=0))
    keeper.reserve = 1 << 40

    def said() -> bool:
        held = keeper.held(machine.id)
        return "memory.ignored" in one.told and held is not None and "no driver" in held.silent

    await rounds(keeper, said, "saying that it does not follow")
    assert one.told.count("memory.ignored") == 1
    held = keeper.held(machine.id)
    assert held is not None and held.held == held.ceiling == 128 * MIB
    lines = keeper.mechanisms(machine.id, await driver.mechanisms(machine.id))
    taken = next(item for item in lines if item.name == "memory taken back")
    assert not taken.in_force and "no driver of virtio-balloon" in taken.value
    assert "no driver" in value(lines, "memory now")
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.phase is Phase.RUNNING
    # What a person changes is not mixed up with what is taken: it keeps all that it holds.
    await driver.update(machine.id, Limits(cpu=500, memory=128 * MIB))
    assert (await driver.mechanisms(machine.id))[0]
