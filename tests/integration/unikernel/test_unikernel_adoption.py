"""A unikernel outlives its daemon: the next one finds it, what it wrote meanwhile, and how it ended."""

import asyncio
import os
import signal

import pytest
from unikernel_lab import Lab, log_of, read_until, until_stopped

from lamella.host.compute.qemu.places import Places
from lamella.host.compute.unikernel.driver import UnikernelDriver
from lamella.host.linux.processes import start_time
from lamella.model.instance import Phase
from lamella.model.stream import Stdin

pytestmark = pytest.mark.root


async def gone(pid: int) -> None:
    async with asyncio.timeout(90):
        while start_time(pid) is not None:
            await asyncio.sleep(0.02)


async def until_silent(lab: Lab, id: str) -> int:
    """Wait until the serial line stands still; returns how many bytes came out."""
    path = Places(lab.home, "unikernel", id).state / "serial"
    async with asyncio.timeout(90):
        size = -1
        while (now := path.stat().st_size) != size:
            size = now
            await asyncio.sleep(0.3)
    return size


async def test_one_that_runs_is_adopted_with_all_that_it_wrote(lab: Lab, driver: UnikernelDriver) -> None:
    machine = lab.machine("echo exit=7")
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(stream, b"echo exit=7\n")
    await driver.close()

    second = lab.driver()
    await second.open()
    seen = await second.observe(machine.id)
    assert seen is not None and seen.phase is Phase.RUNNING and seen.started_at is not None
    again = await second.attach(machine.id)
    await again.send(Stdin(b"z"))
    await read_until(again, b"<z>\n")
    await second.pause(machine.id)
    await second.close()

    third = lab.driver()
    await third.open()
    seen = await third.observe(machine.id)
    assert seen is not None and seen.phase is Phase.PAUSED
    await third.resume(machine.id)
    again = await third.attach(machine.id)
    await again.send(Stdin(b"q"))
    seen = await until_stopped(third, machine.id)
    assert seen.exit_code == 7
    assert await log_of(third, machine.id) == b"pvh line=echo exit=7\n<z>\n"
    await third.remove(machine.id)
    await third.close()


async def test_what_ends_while_nobody_looks_is_known_to_the_last_byte(lab: Lab, driver: UnikernelDriver) -> None:
    machine = lab.machine("count=60000000 flood=50 exit=9")
    await driver.create(machine)
    await driver.start(machine.id)
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.pid is not None
    await driver.close()
    await gone(seen.pid)

    second = lab.driver()
    await second.open()
    seen = await second.observe(machine.id)
    assert seen is not None and seen.phase is Phase.STOPPED and seen.exit_code == 9
    assert seen.started_at and seen.finished_at and seen.started_at < seen.finished_at
    out = await log_of(second, machine.id)
    assert out.startswith(b"pvh line=count=") and out.count(b"flood ") == 50 and b"flood 49 " in out
    await second.remove(machine.id)
    await second.close()


async def test_a_flood_waits_for_the_next_daemon_and_loses_nothing(lab: Lab, driver: UnikernelDriver) -> None:
    lines = 12000
    machine = lab.machine(f"flood={lines} exit=0")
    await driver.create(machine)
    await driver.start(machine.id)
    await driver.close()
    size = await until_silent(lab, machine.id)
    assert size < 600_000, "the line is busy while nobody reads"

    second = lab.driver()
    await second.open()
    seen = await second.observe(machine.id)
    assert seen is not None and seen.phase is Phase.RUNNING
    seen = await until_stopped(second, machine.id)
    assert seen.exit_code == 0
    out = await log_of(second, machine.id)
    assert [line.split()[1] for line in out.splitlines()[1:]] == [str(number).encode() for number in range(lines)]
    await second.remove(machine.id)
    await second.close()


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, "signal 9"), (signal.SIGTERM, "signal 15 of the host")]
)
async def test_a_qemu_that_is_killed_is_told_from_one_that_ends(
    lab: Lab, driver: UnikernelDriver, number: signal.Signals, reason: str
) -> None:
    machine = lab.machine("tick")
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(stream, b"tick 1\n")
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.pid is not None
    await driver.close()
    os.kill(seen.pid, number)
    await gone(seen.pid)
    second = lab.driver()
    await second.open()
    seen = await second.observe(machine.id)
    assert seen is not None and seen.exit_code == 128 + number
    end = Places(lab.home, "unikernel", machine.id).exit()
    assert end is not None and reason in end.reason
    await second.remove(machine.id)
    await second.close()


async def test_a_daemon_that_dies_before_it_wrote_that_it_began(lab: Lab, driver: UnikernelDriver) -> None:
    """The processors were let run and nothing says so but they themselves."""
    machine = lab.machine("tick")
    await driver.create(machine)
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.phase is Phase.STARTING
    places = Places(lab.home, "unikernel", machine.id)
    made = places.process()
    assert made is not None and made.started_at is None
    await driver.start(machine.id)
    await driver.close()
    places.write(made)
    second = lab.driver()
    await second.open()
    seen = await second.observe(machine.id)
    assert seen is not None and seen.phase is Phase.RUNNING and seen.started_at is not None
    # A create that follows removes what runs, and begins anew.
    await second.create(machine)
    seen = await second.observe(machine.id)
    assert seen is not None and seen.phase is Phase.STARTING
    await second.remove(machine.id)
    await second.close()
