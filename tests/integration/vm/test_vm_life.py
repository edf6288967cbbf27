"""The life of a machine, from firmware to its end, however that comes."""

import asyncio
from pathlib import Path

import pytest
from vm_lab import Lab, read_until, tell, until, until_stopped

from lamella.host.compute.vm.driver import VmDriver
from lamella.model.instance import Phase

pytestmark = pytest.mark.root


async def test_a_machine_is_made_runs_and_powers_itself_off(lab: Lab, driver: VmDriver, guest_disk: Path) -> None:
    machine = lab.machine(disk=guest_disk)
    await driver.create(machine)
    made = await driver.observe(machine.id)
    assert made is not None and made.phase is Phase.STARTING
    console = await driver.attach(machine.id)
    await driver.start(machine.id)
    await driver.start(machine.id)
    await read_until(console, "ready\n")
    assert "hello there\n" in await tell(console, "echo hello there", "hello there\n")
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.phase is Phase.RUNNING and seen.board_type.startswith("pc-q35-")
    await tell(console, "off", "")
    end = await until_stopped(driver, machine.id)
    assert end.exit_code == 0
