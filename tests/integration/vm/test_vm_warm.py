"""Full machines that go on from a memory that was kept: as themselves, and as others."""

import asyncio
import subprocess
from pathlib import Path

import msgspec
import pytest
from tests import linux_guest
from vm_lab import MIB, Lab, read_until, tell

from lamella.host.compute.driver import (
    SUSPENDED_MEMORY,
    DataDisk,
    DriveImage,
    KeepsMemory,
    Limits,
    Machine,
)
from lamella.host.compute.vm.driver import VmDriver
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.model.board import Board, Graphics, Hardware
from lamella.model.errors import Conflict, Unsupported
from lamella.model.instance import Phase
from lamella.model.stream import ExecSpec, Exit, Stderr, Stdout

pytestmark = pytest.mark.root


@pytest.fixture(scope="session")
def linux_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asyncio.run(linux_guest.build(tmp_path_factory.mktemp("linux")))


async def test_a_suspended_machine_goes_on_under_a_new_driver(
    lab: Lab, driver: VmDriver, guest_disk: Path, tmp_path: Path
) -> None:
    _keeps: KeepsMemory = driver
    image = tmp_path / "image.iso"
    image.write_bytes(bytes(1 * MIB))
    machine = lab.machine(
        disk=guest_disk,
        board=Board(tpm=True),
        disks=[DataDisk(name="more", volume=lab.volume())],
        cdroms=[DriveImage(name="tools", path=image, size=1 * MIB)],
    )
    await driver.create(machine)
    console = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(console, "ready\n")
    clock = await tell(console, "clock", "\n")
    await tell(console, "deaf", "deaf\n")
    seen = await driver.observe(machine.id)
    assert seen is not None
    began = seen.started_at
    await driver.suspend(machine.id)
    await driver.suspend(machine.id)
    assert machine.id not in Cgroups(ROOT, lab.home.mark).ids()
    await driver.close()
    again = lab.driver()
    await again.open()
    seen = await again.observe(machine.id)
    assert seen is not None and seen.phase is Phase.SUSPENDED and seen.board_type.startswith("pc-q35-")
    larger = msgspec.structs.replace(machine, memory=SUSPENDED_MEMORY, limits=Limits(cpu=1000, memory=256 * MIB))
    with pytest.raises(Unsupported, match="more memory than that machine had"):
        await again.create(larger)
    seen = await again.observe(machine.id)
    assert seen is not None and seen.phase is Phase.SUSPENDED
    await again.create(msgspec.structs.replace(machine, memory=SUSPENDED_MEMORY))
    seen = await again.observe(machine.id)
    assert seen is not None and seen.phase is Phase.STARTING
    console = await again.attach(machine.id)
    await again.start(machine.id)
    seen = await again.observe(machine.id)
    assert seen is not None and seen.phase is Phase.RUNNING and seen.started_at == began
    assert seen.devices == ["more", "tools"]
    assert await tell(console, "echo still here", "still here\n") == "still here\n"
    assert await tell(console, "clock", "\n") == clock
    await again.stop(machine.id, signal="SIGTERM", timeout=0)
    assert not list((lab.home.state / "memory" / "vm").iterdir())
    await again.remove(machine.id)
    await again.close()


async def run(driver: VmDriver, id: str, command: str) -> str:
    stream = await driver.exec(id, ExecSpec(command=["/bin/sh", "-c", command]))
    said, code = b"", -1
    try:
        async with asyncio.timeout(90):
            while (frame := await stream.receive()) is not None:
                match frame:
                    case Stdout(data) | Stderr(data):
                        said += data
                    case Exit():
                        code = frame.code
                    case _:
                        pass
    finally:
        await stream.close()
    assert code == 0, said
    return said.decode(errors="replace").strip()


# The generation's id where the firmware put it (QEMU's docs/specs/vmgenid.txt), and how often ACPI was told of another one.
GENERATION = r"""
for table in /sys/firmware/acpi/tables/SSDT*; do
  at=$(grep -abo VGIA $table | head -n 1 | cut -d: -f1) && [ -n "$at" ] && break
done
address=$(od -An -tu4 -j $((at + 5)) -N 4 $table)
dd if=/dev/mem bs=1 skip=$((address + 40)) count=16 2>/dev/null | od -An -tx1
grep -o '^ *[0-9]*' /sys/firmware/acpi/interrupts/gpe05
"""


async def generation(driver: VmDriver, id: str) -> tuple[str, int]:
    said = (await run(driver, id, GENERATION)).splitlines()
    return said[0].replace(" ", ""), int(said[1])


async def test_copies_of_a_running_machine_are_others(lab: Lab, driver: VmDriver, linux_disk: Path) -> None:
    board = Board(graphics=Graphics.NONE)
    more = {"board": board, "limits": Limits(cpu=1000, memory=256 * MIB)}
    parent = lab.machine(disk=linux_disk, hostname="parent", **more)
    await driver.create(parent)
    await driver.start(parent.id)
    await run(
        driver,
        parent.id,
        "echo here > /tmp/kept; hostname parent; (while :; do date > /tmp/ticks; sleep 1; done) >/dev/null 2>&1 &",
    )
    print(await generation(driver, parent.id))
    print(await run(driver, parent.id, "ls /sys/firmware/acpi/tables; cat /sys/bus/acpi/devices/*/hid"))
    async with driver.remember(parent.id, "kept") as told:
        disk = lab.volume(content=parent.volume.path)
    print(f"kept {told.size >> 20} MiB, the parent stood still for {told.pause * 1e3:.0f} ms")
    copies = [lab.machine(hostname=name, memory="kept", fresh=True, **more) for name in ("one", "two")]
    for machine in copies:
        subprocess.run(["cp", "--sparse=always", disk.path, machine.volume.path], check=True)
    copies = [msgspec.structs.replace(one, disk=msgspec.structs.replace(one.volume, size=disk.size)) for one in copies]
    loop = asyncio.get_running_loop()
    for machine in copies:
        start = loop.time()
        await driver.create(machine)
        made = loop.time()
        await driver.start(machine.id)
        ran = loop.time()
        assert await run(driver, machine.id, "cat /tmp/kept") == "here"
        print(f"made in {made - start:.3f} s, started in {ran - made:.3f} s, answered in {loop.time() - ran:.3f} s")
    for machine in (parent, *copies):
        print(machine.hostname, await run(driver, machine.id, "hostname"), await generation(driver, machine.id))
