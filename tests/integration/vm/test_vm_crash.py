"""A daemon that dies while it makes a machine, at any moment: the next one finds something whole, or clears it up."""

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest
from vm_lab import Lab, read_until

from lamella.host.compute.vm.driver import VmDriver
from lamella.model.board import Board, Seed
from lamella.model.instance import Phase

pytestmark = pytest.mark.root


@pytest.mark.parametrize("moment", [0.0, 0.03, 0.06, 0.1, 0.15, 0.3])
async def test_a_daemon_that_dies_in_the_middle(lab: Lab, driver: VmDriver, guest_disk: Path, moment: float) -> None:
    machine = lab.machine(disk=guest_disk, board=Board(tpm=True), seed=Seed())
    description = lab.home.path / "machine.json"
    description.write_bytes(msgspec.json.encode(machine, enc_hook=str))
    daemon = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("vm_daemon.py")),
        str(lab.home.path),
        lab.home.mark,
        str(description),
        stdout=asyncio.subprocess.PIPE,
    )
    assert daemon.stdout is not None
    async with asyncio.timeout(90):
        assert await daemon.stdout.readline() == b"opened\n"
    await asyncio.sleep(moment)
    daemon.kill()
    await daemon.wait()

    seen = await driver.observe(machine.id)
    assert seen is None or seen.phase in (Phase.STOPPED, Phase.STARTING, Phase.RUNNING)
    assert await driver.inventory() <= {machine.id}
    await driver.create(machine)
    console = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(console, "ready\n")
    await driver.remove(machine.id)


async def test_a_create_that_is_called_off_leaves_nothing(lab: Lab, driver: VmDriver, guest_disk: Path) -> None:
    machine = lab.machine(disk=guest_disk, board=Board(tpm=True), seed=Seed())
    for moment in (0.0, 0.02, 0.05, 0.1, 0.2):
        making = asyncio.create_task(driver.create(machine))
        await asyncio.sleep(moment)
        making.cancel()
        await asyncio.wait([making])
        if making.cancelled():
            # One that was whole, and is cleared for the next, may still be on its way out.
            async with asyncio.timeout(90):
                while (seen := await driver.observe(machine.id)) is not None and seen.phase is not Phase.STOPPED:
                    await asyncio.sleep(0.05)
    await driver.remove(machine.id)
