"""The life of a machine, from firmware to its end, however that comes."""

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest
from vm_lab import MIB, Lab, read_until, tell, until, until_stopped

from lamella.host.compute.driver import Limits
from lamella.host.compute.qemu.places import Places
from lamella.host.compute.vm import memory
from lamella.host.compute.vm.driver import VmDriver
from lamella.model.board import Board, Graphics, OnCrash, Watchdog
from lamella.model.errors import Conflict, NotFound, Unsupported
from lamella.model.instance import Phase
from lamella.model.stream import Exit, Stdin

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


async def test_pause_resume_and_reset(lab: Lab, driver: VmDriver, guest_disk: Path) -> None:
    machine = lab.machine(disk=guest_disk)
    await driver.create(machine)
    with pytest.raises(Conflict, match="not been started"):
        await driver.pause(machine.id)
    console = await driver.attach(machine.id)
    other = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(console, "ready\n")
    await driver.pause(machine.id)
    await driver.pause(machine.id)
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.phase is Phase.PAUSED
    with pytest.raises(Conflict, match="resume it first"):
        await driver.kill(machine.id, signal.SIGTERM)
    await console.send(Stdin(b"echo later\n"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await console.receive()
    await driver.resume(machine.id)
    await read_until(console, "later\n")
    await driver.reset(machine.id)
    await read_until(console, "ready\n")
    assert (await read_until(other, "later\n")).startswith("ready\n"), "everybody sees the console"
    with pytest.raises(Unsupported, match="no signal 1"):
        await driver.kill(machine.id, signal.SIGHUP)
    await other.close()
    await driver.kill(machine.id, signal.SIGKILL)
    end = await until_stopped(driver, machine.id)
    assert end.exit_code == 137 and lab.changes == [machine.id]
    assert await console.receive() == Exit(137)
    assert await console.receive() is None
    with pytest.raises(Conflict, match="does not run"):
        await driver.reset(machine.id)


async def test_stop_presses_the_power_button_and_then_pulls_the_cord(
    lab: Lab, driver: VmDriver, guest_disk: Path
) -> None:
    machine = lab.machine(disk=guest_disk)
    await driver.create(machine)
    console = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(console, "ready\n")
    await driver.stop(machine.id, signal="SIGTERM", timeout=120)
    end = await driver.observe(machine.id)
    assert end is not None and end.phase is Phase.STOPPED and end.exit_code == 0
    await driver.stop(machine.id, signal="SIGTERM", timeout=120)

    await driver.create(machine)
    console = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(console, "ready\n")
    await tell(console, "deaf", "deaf\n")
    await driver.stop(machine.id, signal="SIGTERM", timeout=10)
    end = await driver.observe(machine.id)
    assert end is not None and end.phase is Phase.STOPPED and end.exit_code == 137
    record = Places(lab.home, "vm", machine.id).exit()
    assert record is not None and "did not shut down in 10 s" in record.reason
    logged = b"".join([entry.data async for entry in driver.logs(machine.id)])
    assert logged.count(b"ready\n") == 2 and logged.endswith(b"button\n"), logged


async def test_a_qemu_that_is_killed_is_stopped_and_starts_again(lab: Lab, driver: VmDriver, guest_disk: Path) -> None:
    machine = lab.machine(disk=guest_disk)
    for _ in range(2):
        await driver.create(machine)
        console = await driver.attach(machine.id)
        await driver.start(machine.id)
        await read_until(console, "ready\n")
        seen = await driver.observe(machine.id)
        assert seen is not None and seen.pid is not None
        os.kill(seen.pid, signal.SIGKILL)
        end = await until_stopped(driver, machine.id)
        assert end.exit_code == 137 and end.board_type == seen.board_type


async def test_whoever_comes_next_finds_it(lab: Lab, driver: VmDriver, guest_disk: Path) -> None:
    machine = lab.machine(disk=guest_disk)
    await driver.create(machine)
    console = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(console, "ready\n")
    before = await driver.observe(machine.id)
    await driver.close()
    assert await console.receive() is None

    following = lab.driver()
    await following.open()
    assert await following.inventory() == {machine.id}
    seen = await following.observe(machine.id)
    assert seen is not None and before is not None
    assert (seen.phase, seen.pid, seen.started_at) == (Phase.RUNNING, before.pid, before.started_at)
    console = await following.attach(machine.id)
    await tell(console, "echo again", "again\n")
    await following.close()

    # It powers itself off while nobody is there: the next one learns how it ended.
    last = lab.driver()
    await last.open()
    console = await last.attach(machine.id)
    await tell(console, "later", "later\n")
    await last.close()
    await asyncio.sleep(3)
    end = await until_stopped(driver, machine.id)
    assert end.exit_code == 0


async def test_a_conversation_that_breaks_off_is_begun_anew(lab: Lab, driver: VmDriver, guest_disk: Path) -> None:
    machine = lab.machine(disk=guest_disk, board=Board(graphics=Graphics.NONE))
    await driver.create(machine)
    console = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(console, "ready\n")
    session = driver._sessions[machine.id]  # pyright: ignore[reportPrivateUsage]
    await (await session.monitor()).close()
    seen = await until(driver, machine.id, lambda seen: seen.devices is not None)
    assert seen.phase is Phase.RUNNING
    await until(driver, machine.id, lambda _: session.console.connected)
    await tell(console, "echo again", "again\n")
    await tell(console, "off", "")
    assert (await until_stopped(driver, machine.id)).exit_code == 0


async def test_a_panic_is_told_and_its_memory_kept(lab: Lab, driver: VmDriver, guest_disk: Path) -> None:
    board = Board(on_crash=OnCrash.DUMP, graphics=Graphics.NONE)
    machine = lab.machine(disk=guest_disk, board=board, limits=Limits(cpu=1000, memory=64 * MIB))
    await driver.create(machine)
    console = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(console, "ready\n")
    await tell(console, "fill", "filled\n")
    with pytest.raises(NotFound, match="no crash"):
        _ = [piece async for piece in driver.dump(machine.id, crash=True)]
    now = b"".join([piece async for piece in driver.dump(machine.id, crash=False)])
    await tell(console, "echo on", "on\n")
    await tell(console, "panic", "panic\n")
    end = await until_stopped(driver, machine.id)
    assert end.exit_code == 134
    record = Places(lab.home, "vm", machine.id).exit()
    assert record is not None and record.reason == "the guest's kernel panicked; its memory is kept"
    crashed = b"".join([piece async for piece in driver.dump(machine.id, crash=True)])
    for core in (now, crashed):
        assert core.startswith(b"\x7fELF") and core.count(b"MARK" * 1024) == 1
    for _ in range(memory.MOST_KEPT):
        await driver.create(machine)
        console = await driver.attach(machine.id)
        await driver.start(machine.id)
        await read_until(console, "ready\n")
        await console.send(Stdin(b"panic\n"))
        await until_stopped(driver, machine.id)
    assert len(memory.kept(Places(lab.home, "vm", machine.id).state)) == memory.MOST_KEPT


@pytest.mark.parametrize("watchdog", [Watchdog.RESET, Watchdog.POWEROFF, Watchdog.PAUSE, Watchdog.DUMP])
async def test_a_watchdog_that_is_not_fed(lab: Lab, driver: VmDriver, guest_disk: Path, watchdog: Watchdog) -> None:
    machine = lab.machine(disk=guest_disk, board=Board(watchdog=watchdog, graphics=Graphics.NONE))
    await driver.create(machine)
    console = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(console, "ready\n")
    await tell(console, "watchdog", "fed once\n")
    match watchdog:
        case Watchdog.PAUSE:
            await until(driver, machine.id, lambda seen: seen.phase is Phase.PAUSED)
        case Watchdog.POWEROFF:
            assert (await until_stopped(driver, machine.id)).exit_code == 137
            record = Places(lab.home, "vm", machine.id).exit()
            assert record is not None and "watchdog" in record.reason
        case _:
            await read_until(console, "ready\n")
    kept = memory.kept(Places(lab.home, "vm", machine.id).state)
    assert len(kept) == (watchdog is Watchdog.DUMP)


async def test_a_board_is_kept_and_an_unknown_one_refused(lab: Lab, driver: VmDriver, guest_disk: Path) -> None:
    machine = lab.machine(disk=guest_disk, board_type="pc-q35-6.2")
    await driver.create(machine)
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.board_type == "pc-q35-6.2"
    commands = Path(f"/proc/{seen.pid}/cmdline").read_bytes()
    assert b"pc-q35-6.2," in commands
    with pytest.raises(Unsupported, match="does not know"):
        await driver.create(msgspec.structs.replace(machine, board_type="pc-q35-99.9"))


async def test_slots_do_not_move_when_devices_are_added(lab: Lab, driver: VmDriver, guest_disk: Path) -> None:
    """A guest names its NIC and disks by where they are."""
    places: list[set[str]] = []
    for board in (Board(graphics=Graphics.NONE), Board(watchdog=Watchdog.RESET, graphics=Graphics.VIRTIO, tpm=True)):
        machine = lab.machine(disk=guest_disk, board=board)
        await driver.create(machine)
        console = await driver.attach(machine.id)
        await driver.start(machine.id)
        await read_until(console, "ready\n")
        said = await tell(console, "pci", "end\n")
        places.append({line for line in said.splitlines() if " " in line})
        await driver.remove(machine.id)
    assert places[0] < places[1]
    assert "07.0" in {line[:4] for line in places[1] - places[0]}, "the watchdog"
