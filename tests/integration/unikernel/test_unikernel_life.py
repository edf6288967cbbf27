"""One unikernel from its making to its removal."""

import asyncio
from contextlib import suppress

import pytest
from unikernel_lab import MIB, Lab, drain, log_of, ran, read_until, until_stopped

from lamella.host.compute.driver import DataDisk, Limits, Rootfs
from lamella.host.compute.unikernel.driver import UnikernelDriver
from lamella.model.board import Board, Firmware, Hardware
from lamella.model.contract import LIMIT
from lamella.model.errors import Conflict, NotFound, Unsupported
from lamella.model.image import ImageConfig
from lamella.model.instance import Phase
from lamella.model.stream import ExecSpec, Signal, Stdin, StdinEnd

pytestmark = pytest.mark.root


async def test_a_whole_life(lab: Lab, driver: UnikernelDriver) -> None:
    machine = lab.machine("echo exit=3", command=["one", "two words"], initrd=b"first bytes of it and more")
    id = machine.id
    await driver.create(machine)
    seen = await driver.observe(id)
    assert seen is not None and seen.phase is Phase.STARTING and seen.started_at is None
    assert await driver.inventory() == {id}
    stream = await driver.attach(id)
    await driver.start(id)
    await driver.start(id)
    out = await read_until(stream, b"initrd=")
    out += await read_until(stream, b"\n") if not out.endswith(b"\n") else b""
    assert out.startswith(b'pvh line=echo exit=3 one "two words"\n')
    assert b"initrd=26 first bytes of i\n" in out
    seen = await driver.observe(id)
    assert seen is not None and seen.phase is Phase.RUNNING and seen.pid is not None
    assert seen.launched == Limits(cpu=1000, memory=16 * MIB)
    assert seen.accelerator in ("kvm", "tcg") and seen.accelerator_reason and seen.board_type == "microvm"

    await stream.send(Stdin(b"ab"))
    out += await read_until(stream, b"<b>\n")
    await stream.send(StdinEnd())
    await the_walls_stand(driver, id, machine.id_base)
    await sizes_change_as_far_as_they_can(driver, id)
    await a_pause_is_a_pause(driver, id)
    await nothing_else_is_there(driver, id)
    usage = await driver.usage(id)
    assert usage.cpu_seconds and usage.memory and usage.memory_limit == 16 * MIB

    await stream.send(Stdin(b"q"))
    rest, end = await drain(stream)
    assert end is not None and end.code == 3 and not end.reason
    seen = await until_stopped(driver, id)
    assert seen.exit_code == 3 and seen.started_at and seen.finished_at and seen.started_at <= seen.finished_at
    assert await log_of(driver, id) == out + rest
    assert [entry.data async for entry in driver.logs(id, tail=1)][-1].endswith(b"\n")
    assert lab.changes == [id]
    assert await driver.mechanisms(id) == []
    with pytest.raises(Conflict):
        await driver.pause(id)

    # Again: what it wrote before is still in its log.
    await driver.create(machine)
    seen = await driver.observe(id)
    assert seen is not None and seen.phase is Phase.STARTING and seen.exit_code is None
    await driver.start(id)
    await driver.stop(id, signal="SIGKILL", timeout=10)
    seen = await driver.observe(id)
    assert seen is not None and seen.phase is Phase.STOPPED and seen.exit_code == 137
    assert (await log_of(driver, id)).startswith(out + rest)
    await driver.remove(id)
    await driver.remove(id)
    assert await driver.observe(id) is None
    with pytest.raises(NotFound):
        await driver.start(id)


async def the_walls_stand(driver: UnikernelDriver, id: str, user: int) -> None:
    found = {item.name: item for item in await driver.mechanisms(id)}
    for name in ("user", "capabilities", "no-new-privileges", "seccomp", "namespaces", "root", "control group"):
        assert found[name].in_force, found[name]
    assert str(user) in found["user"].value
    assert found[f"{LIMIT}memory"].value == "16MiB" and found[f"{LIMIT}disk"].value == "it has no disk"


async def sizes_change_as_far_as_they_can(driver: UnikernelDriver, id: str) -> None:
    await driver.update(id, Limits(cpu=500, memory=16 * MIB))
    limits = {item.name: item for item in await driver.mechanisms(id)}
    assert limits[f"{LIMIT}cpu"].value == "0.5 cores"
    for wanted in (Limits(cpu=2000), Limits(memory=32 * MIB), Limits(memory=8 * MIB)):
        with pytest.raises(Unsupported, match=r"cannot (change|use)"):
            await driver.update(id, wanted)
    await driver.update(id, Limits())


async def a_pause_is_a_pause(driver: UnikernelDriver, id: str) -> None:
    await driver.pause(id)
    await driver.pause(id)
    seen = await driver.observe(id)
    assert seen is not None and seen.phase is Phase.PAUSED
    with pytest.raises(Conflict):
        await driver.kill(id, 15)
    await driver.resume(id)
    seen = await driver.observe(id)
    assert seen is not None and seen.phase is Phase.RUNNING


async def nothing_else_is_there(driver: UnikernelDriver, id: str) -> None:
    """Each verb that cannot be says which and why."""
    with pytest.raises(Unsupported, match="second program"):
        await driver.exec(id, ExecSpec(command=["/bin/true"]))
    with pytest.raises(Unsupported, match="files"):
        await driver.stat(id, "/")
    with pytest.raises(Unsupported, match="files"):
        await driver.list_directory(id, "/")
    with pytest.raises(Unsupported, match="files"):
        _ = [piece async for piece in driver.read_file(id, "/x")]
    with pytest.raises(Unsupported, match="files"):
        await driver.make_directory(id, "/x")
    with pytest.raises(Unsupported, match="no processes"):
        await driver.kill(id, 10)


@pytest.mark.parametrize("kernel", ["multiboot", "raw"])
@pytest.mark.parametrize("hardware", list(Hardware))
async def test_multiboot_elf_and_raw_on_both_boards(
    lab: Lab, driver: UnikernelDriver, kernel: str, hardware: Hardware
) -> None:
    board = Board(command_line="exit=5", hardware=hardware)
    out, end, seen = await ran(driver, lab.machine("", kernel=kernel, initrd=b"abc", board=board))
    assert out == b"multiboot line=/boot/kernel exit=5\ninitrd=3 abc\n"
    assert end.code == 5 and seen.exit_code == 5
    assert seen.board_type.startswith("microvm" if hardware is Hardware.VIRTIO else "pc-q35-")


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        ("exit=0", 0, ""),
        ("exit=127", 127, ""),
        ("exit501=42", 42, ""),
        ("ged-off", 0, ""),
        ("panic", 134, "panicked"),
        ("triple", 134, "triple fault"),
        ("reset", 134, "reset its machine"),
    ],
)
async def test_how_a_run_ends(lab: Lab, driver: UnikernelDriver, line: str, code: int, reason: str) -> None:
    _, end, seen = await ran(driver, lab.machine(line))
    assert (end.code, seen.exit_code) == (code, code)
    assert reason in end.reason and bool(end.reason) == bool(reason)


async def test_a_pc_turns_itself_off(lab: Lab, driver: UnikernelDriver) -> None:
    board = Board(command_line="pci pc-off", hardware=Hardware.GENERIC)
    out, end, _ = await ran(driver, lab.machine("", board=board, disk=lab.disk(1 << 20)))
    assert end.code == 0
    # Virtio devices of the transitional kind, which drivers of every age know: 1001 is a disk, 1005 the entropy device.
    assert b"10011af4" in out and b"10051af4" in out


async def test_devices_only_as_asked(lab: Lab, driver: UnikernelDriver) -> None:
    out, _, _ = await ran(driver, lab.machine("mmio exit=0"))
    assert [line for line in out.splitlines() if line.startswith(b"virtio")] == [b"virtio 2 4"]
    disks = [DataDisk(name="more", volume=lab.disk(1 << 20))]
    out, _, _ = await ran(driver, lab.machine("mmio exit=0", disk=lab.disk(1 << 20), disks=disks))
    found = sorted(line for line in out.splitlines() if line.startswith(b"virtio"))
    assert found == [b"virtio 2 2", b"virtio 2 2", b"virtio 2 4"]


async def test_the_power_button(lab: Lab, driver: UnikernelDriver) -> None:
    """A kernel that listens turns itself off; one that does not is ended when the time is up."""
    machine = lab.machine("listen")
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(stream, b"listening\n")
    await driver.stop(machine.id, signal="SIGTERM", timeout=120)
    out, end = await drain(stream)
    # Between the order and the end of the machine it may say a little more.
    assert out.startswith(b"button\n") and end is not None and end.code == 0

    machine = lab.machine("deaf")
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(stream, b"spinning\n")
    await stream.send(Signal(15))
    await driver.stop(machine.id, signal="SIGTERM", timeout=0.3)
    _, end = await drain(stream)
    assert end is not None and end.code == 137 and "signal 9" in end.reason


async def test_what_was_never_started_has_no_exit_code(lab: Lab, driver: UnikernelDriver) -> None:
    machine = lab.machine("exit=1")
    await driver.create(machine)
    await driver.stop(machine.id, signal="SIGTERM", timeout=1)
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.phase is Phase.STOPPED and seen.exit_code is None


async def test_what_cannot_be_is_refused_with_a_reason(lab: Lab, driver: UnikernelDriver) -> None:
    refused = {
        "64-bit ELF": lab.machine("", kernel="multiboot64"),
        "firmware": lab.machine("", board=Board(firmware=Firmware.UEFI)),
        "at least": lab.machine("", limits=Limits(memory=1 * MIB)),
        "no kernel": lab.machine("", rootfs=Rootfs(digest="sha256:0", layers=[], config=ImageConfig())),
    }
    for words, machine in refused.items():
        with pytest.raises(Unsupported, match=words):
            await driver.create(machine)
        await driver.remove(machine.id)
    assert await driver.inventory() == set()


async def test_a_flood_is_complete_for_a_slow_reader_and_bounded_on_disk(lab: Lab, driver: UnikernelDriver) -> None:
    lines = 8000
    machine = lab.machine(f"flood={lines} exit=0")
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    await asyncio.sleep(0.5)
    out, end = await drain(stream)
    assert end is not None and end.code == 0
    assert out.count(b"flood ") == lines and f"flood {lines - 1} ".encode() in out
    assert await log_of(driver, machine.id) == out


async def test_looking_while_it_is_made_disturbs_nothing(lab: Lab, driver: UnikernelDriver) -> None:
    """Whoever observes or reads the log between two runs meets the last one or the next one, never a half of each."""
    machine = lab.machine("exit=4")

    async def look() -> None:
        while True:
            await driver.observe(machine.id)
            with suppress(NotFound):
                await log_of(driver, machine.id)
            await asyncio.sleep(0.005)

    looking = asyncio.create_task(look())
    try:
        for number in range(1, 6):
            out, end, seen = await ran(driver, machine)
            assert out == b"pvh line=exit=4\n" and end.code == 4 and seen.exit_code == 4
            assert await log_of(driver, machine.id) == out * number
            assert not looking.done()
    finally:
        looking.cancel()
