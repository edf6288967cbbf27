"""Instances outlive the daemon that made them: killed at once, it is followed by one that knows all."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from wasm_lab import Lab, logged, phase, read_all, run

from lamella.host.compute.driver import Machine
from lamella.host.compute.wasm.driver import WasmDriver
from lamella.host.linux.processes import start_time
from lamella.model.instance import Phase
from lamella.model.stream import Stdin, StdinEnd

pytestmark = pytest.mark.root

DAEMON = Path(__file__).parent / "daemon.py"


def killed_daemon(lab: Lab, machine: Machine, last: str) -> None:
    """Have a daemon of its own make *machine*, and kill it when it says that it has."""
    description = lab.home.path / "machine.json"
    description.write_bytes(msgspec.json.encode(machine, enc_hook=str))
    daemon = subprocess.Popen(
        [sys.executable, str(DAEMON), str(lab.home.path), lab.home.mark, str(description), last],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert daemon.stdout is not None
    assert daemon.stdout.readline() == "done\n"
    daemon.kill()
    daemon.wait()


async def test_output_and_exit_code_are_kept_while_no_daemon_is_there(lab: Lab, driver: WasmDriver) -> None:
    machine = lab.machine("deeds", "ticks", "5")
    await asyncio.to_thread(killed_daemon, lab, machine, "start")
    await asyncio.sleep(1.5)
    assert machine.id in await driver.inventory()
    seen = await phase(driver, machine.id, Phase.STOPPED)
    assert seen.exit_code == 6 and seen.started_at is not None and seen.finished_at is not None
    assert await logged(driver, machine.id) == b"".join(b"tick %d\n" % number for number in range(5))


async def test_one_that_was_only_made_is_started_by_the_next(lab: Lab, driver: WasmDriver) -> None:
    machine = lab.machine("deeds", "cat", stdin=True)
    await asyncio.to_thread(killed_daemon, lab, machine, "create")
    await phase(driver, machine.id, Phase.STARTING)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    await stream.send(Stdin(b"from the next daemon"))
    await stream.send(StdinEnd())
    assert await read_all(stream) == (5, b"from the next daemon", b"")
    await stream.close()


async def test_one_that_runs_is_paused_and_stopped_by_the_next(lab: Lab, driver: WasmDriver) -> None:
    machine = lab.machine("deeds", "spin")
    await asyncio.to_thread(killed_daemon, lab, machine, "start")
    await phase(driver, machine.id, Phase.RUNNING)
    await driver.pause(machine.id)
    await phase(driver, machine.id, Phase.PAUSED)
    await driver.close()
    again = lab.driver()
    await again.open()
    await phase(again, machine.id, Phase.PAUSED)
    await again.resume(machine.id)
    await again.stop(machine.id, signal="INT", timeout=60)
    assert (await phase(again, machine.id, Phase.STOPPED)).exit_code == 130
    await again.remove(machine.id)
    await again.close()


async def test_a_fork_server_that_died_is_replaced(lab: Lab, driver: WasmDriver) -> None:
    running = lab.machine("deeds", "ticks", "8")
    await driver.create(running)
    await driver.start(running.id)
    pid = driver._parts.zygote.pid  # type: ignore[union-attr]  # pyright: ignore
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert (await run(driver, lab.machine("hello", "3")))[0] == 3
    assert (await phase(driver, running.id, Phase.STOPPED)).exit_code == 6


async def test_a_monitor_that_is_killed_takes_its_worker_along_and_is_told_of(lab: Lab, driver: WasmDriver) -> None:
    machine = lab.machine("deeds", "spin")
    await driver.create(machine)
    await driver.start(machine.id)
    seen = await phase(driver, machine.id, Phase.RUNNING)
    process = driver._sessions[machine.id].process  # pyright: ignore[reportPrivateUsage]
    assert process is not None and process.worker == seen.pid
    os.kill(process.pid, signal.SIGKILL)
    assert (await phase(driver, machine.id, Phase.STOPPED)).exit_code == 137
    async with asyncio.timeout(90):
        while start_time(process.worker) is not None:
            await asyncio.sleep(0.02)
    assert (await run(driver, lab.machine("hello", "2")))[0] == 2
