"""Microvms that begin as copies: of templates that nobody named, and of memories that were kept."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from microvm_lab import Lab, run, until_stopped

from lamella.host.compute.driver import SUSPENDED_MEMORY, Machine
from lamella.host.compute.microvm.driver import MicrovmDriver
from lamella.host.compute.qemu import passing
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.model.errors import Conflict, Corrupt, Unsupported
from lamella.model.host import Copies
from lamella.model.instance import Phase

pytestmark = pytest.mark.root

COUNT = "i=0; echo here > /dev/shm/kept; while :; do i=$((i + 1)); echo $i > /count; sleep 0.05; done"


async def begun(driver: MicrovmDriver, machine: Machine) -> Machine:
    await driver.create(machine)
    await driver.start(machine.id)
    return machine


async def counted(driver: MicrovmDriver, id: str) -> int:
    async with asyncio.timeout(90):
        while True:
            code, said = await run(driver, id, "cat", "/count")
            if code == 0 and said.strip():
                return int(said)
            await asyncio.sleep(0.05)


async def pages(driver: MicrovmDriver, id: str) -> tuple[str, bool | None]:
    line = next(item for item in await driver.mechanisms(id) if item.name == "memory beginning")
    return line.value, line.in_force


def disk_of(machine: Machine) -> Path:
    """A copy of its disk as it is now, holes and all."""
    copy = machine.volume.path.with_suffix(".copy")
    subprocess.run(["cp", "--sparse=always", machine.volume.path, copy], check=True)
    return copy


async def names(driver: MicrovmDriver, id: str) -> dict[str, str]:
    wanted = {
        "hostname": ["hostname"],
        "random": ["cat", "/proc/sys/kernel/random/uuid"],
        "bytes": ["/bin/sh", "-c", "head -c 16 /dev/urandom | hexdump -C"],
    }
    return {name: (await run(driver, id, *command))[1] for name, command in wanted.items()}


async def test_the_second_of_an_image_is_a_copy(lab: Lab, driver: MicrovmDriver) -> None:
    first = await begun(driver, lab.machine("/bin/sh", "-c", "sleep 1000", hostname="first"))
    assert (await pages(driver, first.id)) == ("its own: it booted", True)
    await driver.templates.settle()
    second = await begun(driver, lab.machine("/bin/sh", "-c", "sleep 1000", hostname="second"))
    third = await begun(driver, lab.machine("/bin/sh", "-c", "sleep 1000", hostname="third"))
    value, right = await pages(driver, second.id)
    assert value.startswith("shared copy-on-write with image-") and value.endswith("in project default alone") and right
    told = [await names(driver, machine.id) for machine in (first, second, third)]
    assert [item["hostname"] for item in told] == ["first\n", "second\n", "third\n"]
    assert len({item["random"] for item in told}) == len({item["bytes"] for item in told}) == 3
    # Its disk is its own, and outlives it; then it is used, and a copy of a blank.
    assert (await run(driver, second.id, "/bin/sh", "-c", "echo mine > /mine; sync"))[0] == 0
    assert (await run(driver, third.id, "cat", "/mine"))[0] != 0
    for _ in range(2):
        await driver.stop(second.id, signal="SIGKILL", timeout=0)
        await begun(driver, second)
        assert await run(driver, second.id, "cat", "/mine") == (0, "mine\n")
        await driver.templates.settle()
    assert (await pages(driver, second.id))[0].startswith("shared copy-on-write with blank-")


async def test_who_may_not_begin_as_a_copy_boots(lab: Lab, driver: MicrovmDriver) -> None:
    await begun(driver, lab.machine("/bin/sh", "-c", "sleep 1000"))
    await driver.templates.settle()
    cold = await begun(driver, lab.machine("/bin/sh", "-c", "sleep 1000", cold=True))
    other = await begun(driver, lab.machine("/bin/sh", "-c", "sleep 1000", project="other"))
    for machine in (cold, other):
        assert (await pages(driver, machine.id))[0] == "its own: it booted"
    driver.use_copies(Copies.OFF)
    off = await begun(driver, lab.machine("/bin/sh", "-c", "sleep 1000"))
    assert (await pages(driver, off.id))[0] == "its own: it booted"


async def test_a_damaged_template_is_not_used(lab: Lab, driver: MicrovmDriver) -> None:
    await begun(driver, lab.machine("/bin/sh", "-c", "sleep 1000"))
    await driver.templates.settle()
    (place,) = [path for path in (lab.home.state / "memory" / "microvm").iterdir() if path.name.startswith("image-")]
    with (place / "memory").open("r+b") as file:
        file.seek(1 << 20)
        file.write(os.urandom(4096))
    await driver.close()
    again = lab.driver()
    await again.open()
    machine = await begun(again, lab.machine("/bin/sh", "-c", "sleep 1000"))
    assert (await pages(again, machine.id))[0] == "its own: it booted"
    await again.templates.settle()
    copy = await begun(again, lab.machine("/bin/sh", "-c", "sleep 1000"))
    assert (await pages(again, copy.id))[0].startswith("shared copy-on-write with image-")
    for id in await again.inventory():
        await again.remove(id)
    await again.close()


async def test_a_running_one_is_kept_and_begun_with(lab: Lab, driver: MicrovmDriver) -> None:
    parent = await begun(driver, lab.machine("/bin/sh", "-c", COUNT, hostname="parent"))
    before = await counted(driver, parent.id)
    async with driver.remember(parent.id, "kept") as told:
        copied = disk_of(parent)
    assert told.size > 0 and told.pause > 0
    print(f"kept {told.size >> 20} MiB, the parent stood still for {told.pause * 1e3:.0f} ms")
    after = await counted(driver, parent.id)
    assert after > before
    copies: list[Machine] = []
    for name in ("one", "two"):
        machine = lab.machine("/bin/sh", "-c", COUNT, hostname=name, memory="kept", fresh=True)
        subprocess.run(["cp", "--sparse=always", copied, machine.volume.path], check=True)
        copies.append(machine)
    await asyncio.gather(*(driver.create(machine) for machine in copies))
    seen = await driver.observe(copies[0].id)
    assert seen is not None and seen.phase is Phase.STARTING
    for machine in copies:
        await driver.start(machine.id)
        seen = await driver.observe(machine.id)
        assert seen is not None and seen.phase is Phase.RUNNING
        assert await counted(driver, machine.id) >= before
        assert await run(driver, machine.id, "cat", "/dev/shm/kept") == (0, "here\n")
    told_names = [await names(driver, machine.id) for machine in (parent, *copies)]
    assert [item["hostname"] for item in told_names] == ["parent\n", "one\n", "two\n"]
    assert len({item["random"] for item in told_names}) == len({item["bytes"] for item in told_names}) == 3
    assert (await pages(driver, copies[0].id)) == (
        "shared copy-on-write with kept, with copies in project default alone",
        True,
    )
    await driver.forget("kept")
    assert await counted(driver, copies[0].id) > 0
    with pytest.raises(Unsupported):
        async with driver.remember(parent.id, "again"):
            raise Unsupported("something in between went wrong")
    assert "again" not in {path.name for path in (lab.home.state / "memory" / "microvm").iterdir()}
    assert await counted(driver, parent.id) > after


async def test_one_that_is_suspended_goes_on(lab: Lab, driver: MicrovmDriver) -> None:
    machine = await begun(driver, lab.machine("/bin/sh", "-c", COUNT, hostname="sleeper"))
    before = await counted(driver, machine.id)
    await driver.suspend(machine.id)
    await driver.suspend(machine.id)
    assert machine.id not in Cgroups(ROOT, lab.home.mark).ids()
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.phase is Phase.SUSPENDED
    await driver.close()
    again = lab.driver()
    await again.open()
    seen = await again.observe(machine.id)
    assert seen is not None and seen.phase is Phase.SUSPENDED
    await again.create(msgspec.structs.replace(machine, memory=SUSPENDED_MEMORY))
    await again.start(machine.id)
    assert await counted(again, machine.id) >= before
    assert await run(again, machine.id, "cat", "/dev/shm/kept") == (0, "here\n")
    assert await run(again, machine.id, "hostname") == (0, "sleeper\n")
    # Once more, and then it is over: nothing is kept of it.
    await again.suspend(machine.id)
    await again.stop(machine.id, signal="SIGTERM", timeout=1)
    assert (await until_stopped(again, machine.id)).exit_code == 128 + signal.SIGKILL
    assert not [path for path in (lab.home.state / "memory" / "microvm").iterdir() if path.name.startswith("suspended")]
    await again.remove(machine.id)
    await again.close()


async def test_a_memory_fits_its_machine_alone(lab: Lab, driver: MicrovmDriver) -> None:
    parent = await begun(driver, lab.machine("/bin/sh", "-c", COUNT))
    async with driver.remember(parent.id, "kept"):
        copied = disk_of(parent)
    larger = lab.machine(
        "/bin/sh",
        "-c",
        COUNT,
        memory="kept",
        fresh=True,
        limits=msgspec.structs.replace(parent.limits, memory=320 << 20),
    )
    subprocess.run(["cp", "--sparse=always", copied, larger.volume.path], check=True)
    with pytest.raises(Unsupported, match="this memory is of 1 processors, 256 MiB"):
        await driver.create(larger)
    assert larger.id not in await driver.inventory()
    with (lab.home.state / "memory" / "microvm" / "kept" / "state").open("r+b") as file:
        file.write(b"x")
    await driver.close()
    again = lab.driver()
    await again.open()
    same = lab.machine("/bin/sh", "-c", COUNT, memory="kept", fresh=True)
    with pytest.raises(Corrupt, match="is not what was written"):
        await again.create(same)
    for id in await again.inventory():
        await again.remove(id)
    await again.close()


async def test_one_that_waits_is_told_what_it_is(lab: Lab, driver: MicrovmDriver) -> None:
    base = lab.machine("/bin/true", hostname="base")
    await driver.create(base)
    assert (await run(driver, base.id, "/bin/sh", "-c", "echo warm > /dev/shm/warmed"))[0] == 0
    async with driver.remember(base.id, "warmed"):
        copied = disk_of(base)
    waits = lab.machine("/bin/true", hostname="waits", memory="warmed", fresh=True, resting=True)
    subprocess.run(["cp", "--sparse=always", copied, waits.volume.path], check=True)
    await driver.create(waits)
    seen = await driver.observe(waits.id)
    assert seen is not None and seen.phase is Phase.STARTING
    told = msgspec.structs.replace(
        waits, command=["/bin/sh", "-c", "cat /dev/shm/warmed; hostname"], hostname="taken", resting=False
    )
    await driver.take(told)
    await driver.start(waits.id)
    await until_stopped(driver, waits.id)
    assert b"".join([entry.data async for entry in driver.logs(waits.id)]) == b"warm\ntaken\n"
    with pytest.raises(Conflict):
        await driver.take(told)


async def test_one_that_is_sent_before_it_is_held_is_sent_again(
    lab: Lab, driver: MicrovmDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = await begun(driver, lab.machine("/bin/sh", "-c", COUNT))
    before = await counted(driver, parent.id)
    # As under KVM it runs on meanwhile; and as slow is as fast as ever, everything is sent before the guest has answered.
    monkeypatch.setattr(MicrovmDriver, "_live", lambda *_: True)
    monkeypatch.setattr(passing, "_SLOW", 64 << 30)
    monkeypatch.setattr(passing, "_LITTLE", 1)
    async with driver.remember(parent.id, "kept"):
        copied = disk_of(parent)
    assert await counted(driver, parent.id) > before
    copy = lab.machine("/bin/sh", "-c", COUNT, hostname="copy", memory="kept", fresh=True)
    subprocess.run(["cp", "--sparse=always", copied, copy.volume.path], check=True)
    await begun(driver, copy)
    assert await run(driver, copy.id, "hostname") == (0, "copy\n")


async def test_who_was_held_goes_on_when_the_daemon_is_killed(lab: Lab) -> None:
    machine = lab.machine("/bin/sh", "-c", COUNT)
    description = lab.home.path / "machine.json"
    description.write_bytes(msgspec.json.encode(machine, enc_hook=str))
    daemon = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("daemon.py")),
        *(str(lab.home.path), lab.home.mark, str(description), "kept"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert daemon.stdout is not None
    async with asyncio.timeout(90):
        assert await daemon.stdout.readline() == b"started\n"
        assert await daemon.stdout.readline() == b"held\n"
    daemon.kill()
    await daemon.wait()
    driver = lab.driver()
    await driver.open()
    before = await counted(driver, machine.id)
    async with asyncio.timeout(90):
        while await counted(driver, machine.id) <= before:
            await asyncio.sleep(0.05)
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.phase is Phase.RUNNING
    # It was not kept, and who was to have its memory is gone; it can be kept now.
    assert Cgroups(ROOT, lab.home.mark).ids() == {machine.id}
    async with driver.remember(machine.id, "kept"):
        pass
    await driver.remove(machine.id)
    await driver.close()


async def test_what_is_suspended_goes_with_it(lab: Lab, driver: MicrovmDriver) -> None:
    machine = await begun(driver, lab.machine("/bin/sh", "-c", COUNT))
    await driver.suspend(machine.id)
    await driver.remove(machine.id)
    assert not (lab.home.state / "memory" / "microvm" / f"suspended-{machine.id}").exists()
