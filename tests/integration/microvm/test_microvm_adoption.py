"""The daemon dies, the microVM does not: whoever comes next finds it, with its log and its exit code."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest
from microvm_lab import Lab, run, until_stopped

from lamella.host.compute.driver import Machine
from lamella.host.compute.microvm.driver import MicrovmDriver
from lamella.host.linux.processes import start_time
from lamella.model.instance import Phase

pytestmark = pytest.mark.root


async def start_in_another_daemon(lab: Lab, machine: Machine) -> asyncio.subprocess.Process:
    """Start *machine* in a process of its own; it runs when this returns."""
    description = lab.home.path / "machine.json"
    description.write_bytes(msgspec.json.encode(machine, enc_hook=str))
    daemon = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("daemon.py")),
        str(lab.home.path),
        lab.home.mark,
        str(description),
        stdout=asyncio.subprocess.PIPE,
    )
    assert daemon.stdout is not None
    async with asyncio.timeout(120):
        assert await daemon.stdout.readline() == b"started\n"
    return daemon


async def test_a_killed_daemon_takes_nothing_with_it(lab: Lab) -> None:
    script = "i=0; while [ ! -e /tmp/end ]; do echo line $i; i=$((i+1)); sleep 0.02; done; sleep 1; echo over; exit 5"
    machine = lab.machine("/bin/sh", "-c", script)
    daemon = await start_in_another_daemon(lab, machine)
    await asyncio.sleep(1)
    daemon.send_signal(signal.SIGKILL)
    await daemon.wait()

    # The first successor finds it running, and what it wrote while nobody looked.
    driver = lab.driver()
    await driver.open()
    try:
        assert await driver.inventory() == {machine.id}
        seen = await driver.observe(machine.id)
        assert seen is not None and seen.phase is Phase.RUNNING and seen.pid is not None and seen.started_at is not None
        assert Path(f"/proc/{seen.pid}/stat").exists()
        assert await run(driver, machine.id, "echo", "here") == (0, "here\n")
        await driver.pause(machine.id)
        await driver.close()

        # The second finds it paused.
        driver = lab.driver()
        await driver.open()
        seen = await driver.observe(machine.id)
        assert seen is not None and seen.phase is Phase.PAUSED
        await driver.resume(machine.id)
        await run(driver, machine.id, "touch", "/tmp/end")
        await driver.close()

        # It ends while there is no daemon: the guest keeps exit code and log until the third has taken them.
        await asyncio.sleep(3)
        assert Path(f"/proc/{seen.pid}").exists()
        driver = lab.driver()
        await driver.open()
        seen = await until_stopped(driver, machine.id)
        assert seen.exit_code == 5 and seen.finished_at is not None
        assert lab.changes == [machine.id]
        lines = (b"".join([entry.data async for entry in driver.logs(machine.id)])).decode().splitlines()
        assert lines[-1] == "over"
        assert lines[:-1] == [f"line {number}" for number in range(len(lines) - 1)]
        assert len(lines) > 10
    finally:
        await driver.remove(machine.id)
        await driver.close()


async def test_what_died_with_nobody_there_is_stopped(lab: Lab, driver: MicrovmDriver) -> None:
    machine = lab.machine("/bin/sleep", "1000")
    daemon = await start_in_another_daemon(lab, machine)
    daemon.send_signal(signal.SIGKILL)
    await daemon.wait()
    pid = (await driver.observe(machine.id)).pid  # type: ignore[union-attr]
    assert pid is not None
    await driver.close()
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}/stat").exists() and b") Z " not in Path(f"/proc/{pid}/stat").read_bytes():
        await asyncio.sleep(0.01)
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.phase is Phase.STOPPED and seen.exit_code == 137

    # A process that happens to have the pid is not taken for it: here, this one.
    path = lab.home.state / "microvm" / machine.id / "process.json"
    record = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**record, "pid": os.getpid()}))
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.phase is Phase.STOPPED
    await driver.remove(machine.id)


async def test_a_half_made_one_is_made_again(lab: Lab, driver: MicrovmDriver) -> None:
    """The daemon died between starting QEMU and configuring the guest."""
    machine = lab.machine("/bin/sh", "-c", "echo made; exit 4")
    creating = asyncio.create_task(driver.create(machine))
    path = lab.home.state / "microvm" / machine.id / "process.json"
    while not path.exists():
        await asyncio.sleep(0.005)
    description = path.read_bytes()
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    record = msgspec.json.decode(description)
    assert start_time(record["pid"]) != record["started"]
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.phase is Phase.STOPPED and seen.exit_code is None
    await driver.create(machine)
    await driver.start(machine.id)
    assert (await until_stopped(driver, machine.id)).exit_code == 4
