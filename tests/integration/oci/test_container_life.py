"""The lifecycle of a container, with the real crun and conmon."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from oci_lab import Lab, collect, run

from lamella.host.compute.driver import Limits
from lamella.host.compute.oci.driver import OciDriver
from lamella.host.linux.processes import start_time
from lamella.model.errors import Conflict, Invalid, NotFound
from lamella.model.instance import Phase

pytestmark = pytest.mark.root


async def phase(driver: OciDriver, id: str) -> Phase | None:
    seen = await driver.observe(id)
    return seen.phase if seen else None


async def test_a_command_runs_and_its_exit_code_is_known(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("sh", "-c", "echo out; echo err >&2; cat /hello; exit 7")
    assert await driver.observe(machine.id) is None
    await driver.create(machine)
    seen = await driver.observe(machine.id)
    assert seen is not None
    assert (seen.phase, seen.launched) == (Phase.STARTING, machine.limits)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    assert await collect(stream) == (7, b"out\nfrom the upper layer\n", b"err\n")
    seen = await driver.observe(machine.id)
    assert seen is not None
    assert (seen.phase, seen.exit_code) == (Phase.STOPPED, 7)
    assert seen.started_at is not None
    assert seen.finished_at is not None
    assert seen.started_at <= seen.finished_at
    assert lab.changes == [machine.id]
    assert await driver.inventory() == {machine.id}
    await driver.remove(machine.id)
    await driver.remove(machine.id)
    assert await driver.observe(machine.id) is None
    assert await driver.inventory() == set()


async def test_it_is_as_the_machine_says(lab: Lab, driver: OciDriver) -> None:
    script = "id; pwd; hostname; echo $A $HOME; cat /etc/hosts /etc/hostname /etc/resolv.conf; ip -o link | wc -l"
    machine = lab.machine(
        "sh",
        "-c",
        script,
        user="ann",
        working_directory="/srv/new",
        hostname="db-1",
        environment={"A": "one two"},
        nameservers=["10.0.0.1"],
    )
    code, output, errors = await run(driver, machine)
    assert (code, errors) == (0, b"")
    lines = output.decode().splitlines()
    assert lines[0] == "uid=1000(ann) gid=1000(ann) groups=10(wheel),1000(ann)"
    assert lines[1:4] == ["/srv/new", "db-1", "one two /home/ann"]
    assert f"127.0.1.1\tdb-1 {machine.name}" in lines
    assert lines[-2:] == ["db-1", "1"]


async def test_stop_asks_first(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("sh", "-c", "trap 'echo bye; exit 3' USR1; echo ready; while :; do sleep 0.05; done")
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    assert await stream.receive() is not None
    await driver.stop(machine.id, signal="SIGUSR1", timeout=20)
    assert (await collect(stream))[:2] == (3, b"bye\n")
    await driver.stop(machine.id, signal="SIGUSR1", timeout=20)


async def test_stop_forces_after_its_deadline(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("sleep", "1000")
    await driver.create(machine)
    await driver.start(machine.id)
    await driver.start(machine.id)
    begin = time.monotonic()
    await driver.stop(machine.id, signal="TERM", timeout=0.3)
    assert time.monotonic() - begin >= 0.3
    seen = await driver.observe(machine.id)
    assert seen is not None
    assert (seen.phase, seen.exit_code) == (Phase.STOPPED, 137)


async def test_a_created_one_is_stopped_and_removed(lab: Lab, driver: OciDriver) -> None:
    one, other = lab.machine("true"), lab.machine("true")
    for machine in (one, other):
        await driver.create(machine)
    await driver.stop(one.id, signal="TERM", timeout=5)
    assert await phase(driver, one.id) == Phase.STOPPED
    await driver.remove(other.id)
    assert await driver.inventory() == {one.id}


async def test_kill_sends_the_signal(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("sh", "-c", "trap 'exit 42' HUP; echo ready; while :; do sleep 0.05; done")
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    await stream.receive()
    await driver.kill(machine.id, signal.SIGHUP)
    assert (await collect(stream))[0] == 42
    with pytest.raises(Conflict, match="stopped"):
        await driver.kill(machine.id, signal.SIGHUP)
    with pytest.raises(NotFound):
        await driver.kill("inst_00000000000000000000000000", signal.SIGHUP)


async def test_paused_means_that_nothing_moves(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("sh", "-c", "while :; do :; done")
    await driver.create(machine)
    await driver.start(machine.id)
    await driver.pause(machine.id)
    await driver.pause(machine.id)
    assert await phase(driver, machine.id) == Phase.PAUSED
    before = (await driver.usage(machine.id)).cpu_seconds
    await asyncio.sleep(0.2)
    after = (await driver.usage(machine.id)).cpu_seconds
    assert before is not None
    assert after is not None
    assert after - before < 0.01
    with pytest.raises(Conflict, match="paused"):
        await driver.stat(machine.id, "/")
    await driver.resume(machine.id)
    await driver.resume(machine.id)
    assert await phase(driver, machine.id) == Phase.RUNNING
    await driver.pause(machine.id)
    await driver.stop(machine.id, signal="TERM", timeout=0.1)
    assert await phase(driver, machine.id) == Phase.STOPPED


async def test_a_paused_one_is_removed(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("sleep", "1000")
    await driver.create(machine)
    await driver.start(machine.id)
    await driver.pause(machine.id)
    await driver.remove(machine.id)
    assert await driver.observe(machine.id) is None


async def test_its_files_and_its_log_outlive_a_restart(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("sh", "-c", "echo again >> /tmp/runs; cat /tmp/runs")
    assert (await run(driver, machine))[1] == b"again\n"
    assert (await run(driver, machine))[1] == b"again\nagain\n"
    assert [entry.data async for entry in driver.logs(machine.id)] == [b"again\n"] * 3


@pytest.mark.parametrize(("command", "code"), [("nope", 127), ("/etc/passwd", 126), ("/nope/x", 127), ("/etc", 126)])
async def test_a_command_that_cannot_run_is_a_sentence(lab: Lab, driver: OciDriver, command: str, code: int) -> None:
    machine = lab.machine(command)
    with pytest.raises(Invalid, match="command"):
        await driver.create(machine)
    seen = await driver.observe(machine.id)
    assert seen is not None
    assert (seen.phase, seen.exit_code) == (Phase.STOPPED, code)


async def test_an_unknown_user_is_a_sentence_and_leaves_nothing(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("true", user="nobody-knows")
    with pytest.raises(Invalid, match="nobody-knows"):
        await driver.create(machine)
    assert await driver.inventory() == set()


async def test_a_new_driver_finds_what_the_old_one_made(lab: Lab, driver: OciDriver) -> None:
    running, ended, created = (
        lab.machine("sh", "-c", "read x; exit 5", stdin=True),
        lab.machine("false"),
        lab.machine("true"),
    )
    for machine in (running, ended, created):
        await driver.create(machine)
    for machine in (running, ended):
        await driver.start(machine.id)
    await driver.close()

    adopted = lab.driver()
    await adopted.open()
    try:
        for _ in range(4500):
            if await phase(adopted, ended.id) == Phase.STOPPED:
                break
            await asyncio.sleep(0.02)
        seen = await adopted.observe(ended.id)
        assert seen is not None
        assert seen.exit_code == 1
        assert await phase(adopted, running.id) == Phase.RUNNING
        assert await phase(adopted, created.id) == Phase.STARTING
        assert await adopted.inventory() == {running.id, ended.id, created.id}
        lab.changes.clear()
        await adopted.kill(running.id, signal.SIGKILL)
        for _ in range(4500):
            if lab.changes:
                break
            await asyncio.sleep(0.02)
        assert lab.changes == [running.id]
        seen = await adopted.observe(running.id)
        assert seen is not None
        assert (seen.phase, seen.exit_code) == (Phase.STOPPED, 137)
        await adopted.start(created.id)
    finally:
        await adopted.close()


async def test_a_killed_shim_is_noticed(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("sleep", "1000")
    await driver.create(machine)
    await driver.start(machine.id)
    shim = int((lab.home.run / "oci" / machine.id / "conmon.pid").read_text())
    seen = await driver.observe(machine.id)
    assert seen is not None
    assert seen.pid is not None
    os.kill(shim, signal.SIGKILL)
    for _ in range(4500):
        if lab.changes:
            break
        await asyncio.sleep(0.02)
    assert lab.changes == [machine.id]
    after = await driver.observe(machine.id)
    assert after is not None
    assert (after.phase, after.exit_code) == (Phase.STOPPED, 137)
    assert start_time(seen.pid) is None
    await driver.remove(machine.id)


@pytest.mark.parametrize(
    "lost",
    ["conmon.pid", "container.pid", "machine.json", "config.json", "rootfs", "started", "everything but a name"],
)
async def test_half_made_things_are_removed_whole(lab: Lab, driver: OciDriver, lost: str) -> None:
    machine = lab.machine("sleep", "1000")
    await driver.create(machine)
    await driver.start(machine.id)
    bundle = lab.home.run / "oci" / machine.id
    if lost == "everything but a name":
        for path in bundle.iterdir():
            if path.is_file():
                with_mount = path.name.startswith("ns-")
                if not with_mount:
                    path.unlink()
    elif lost == "rootfs":
        os.kill(int((bundle / "conmon.pid").read_text()), signal.SIGKILL)
    else:
        (bundle / lost).unlink()
    await driver.close()
    fresh = lab.driver()
    await fresh.open()
    try:
        assert await fresh.inventory() == {machine.id}
        assert await fresh.observe(machine.id) is not None
        await fresh.remove(machine.id)
        assert await fresh.inventory() == set()
    finally:
        await fresh.close()


async def test_limits_are_the_kernels(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("sh", "-c", "while :; do :; done", limits=Limits(cpu=200, memory=64 << 20, pids=20))
    await driver.create(machine)
    await driver.start(machine.id)
    # Both ends are inside what the clock measures: a machine that stands still in between makes the share smaller, never larger.
    begin = time.monotonic()
    before = (await driver.usage(machine.id)).cpu_seconds
    assert before is not None
    async with asyncio.timeout(90):
        while True:
            await asyncio.sleep(1.0)
            usage = await driver.usage(machine.id)
            assert usage.cpu_seconds is not None
            if usage.cpu_seconds - before > 0.1:
                break
    assert usage.cpu_seconds - before < 0.3 * (time.monotonic() - begin)
    assert usage.memory_limit == 64 << 20
    await driver.update(machine.id, Limits(cpu=500, memory=128 << 20, pids=30))
    assert (await driver.usage(machine.id)).memory_limit == 128 << 20
    values = {mechanism.name: mechanism.value for mechanism in await driver.mechanisms(machine.id)}
    assert values["limit.cpu"] == "0.5 cores"
    assert values["limit.pids"] == "30 processes"


async def test_a_memory_hog_is_killed(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("dd", "if=/dev/zero", "of=/dev/null", "bs=128M", "count=1", limits=Limits(memory=16 << 20))
    assert (await run(driver, machine))[0] == 137
    assert not Path("oom").exists(), "conmon writes this file where it stands"


async def test_processes_are_bounded(lab: Lab, driver: OciDriver) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; echo all"
    machine = lab.machine("sh", "-c", script, limits=Limits(pids=8))
    _, output, errors = await run(driver, machine)
    assert b"can't fork" in errors
    assert output == b""
