"""What confines a machine, read from the kernel; and its TPM, which is a process of its own behind the same walls."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from vm_lab import Lab, read_until, tell, until_stopped

from lamella.host.compute.vm import tpm
from lamella.host.compute.vm.driver import VmDriver
from lamella.host.linux.cgroup import ROOT, Cgroup, Cgroups
from lamella.host.linux.processes import readable
from lamella.model.board import Board, Firmware, Graphics
from lamella.model.instance import Phase

pytestmark = pytest.mark.root


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def group(lab: Lab, id: str) -> Cgroup:
    return Cgroups(ROOT, lab.home.mark).group(id)


async def test_qemu_and_its_tpm_have_no_privileges_and_see_nothing(
    lab: Lab, driver: VmDriver, guest_disk: Path
) -> None:
    machine = lab.machine(disk=guest_disk, board=Board(tpm=True, spice=True, firmware=Firmware.UEFI, secure_boot=True))
    await driver.create(machine)
    await driver.start(machine.id)
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.pid is not None
    other = tpm.process(group(lab, machine.id))
    assert other is not None
    assert group(lab, machine.id).pids() == {seen.pid, other}
    shown = {seen.pid: {"dev", "lib64", "screen", "usr"}, other: {"lib64", "state", "usr"}}
    for pid, names in shown.items():
        read = status(pid)
        assert read["Uid"].split() == read["Gid"].split() == [str(machine.id_base)] * 4
        assert read["Groups"] == ""
        assert {read[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert read["NoNewPrivs"] == "1" and read["Seccomp"] == "2"
        for space in ("mnt", "net", "pid", "ipc", "uts", "cgroup"):
            assert Path(f"/proc/{pid}/ns/{space}").readlink() != Path(f"/proc/self/ns/{space}").readlink(), space
        assert {entry.name for entry in Path(f"/proc/{pid}/root").iterdir()} == names
        assert len(list(Path(f"/proc/{pid}/root/usr/bin").iterdir())) == 1
        mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
        assert [fields[4] for fields in mounts if not fields[5].startswith("ro")] == (
            ["/state"] if pid == other else ["/dev/null"]
        )
    ports = Path(f"/proc/{seen.pid}/net/tcp").read_text().splitlines()
    assert len(ports) == 1, "a machine listens nowhere"
    found = {item.name: item for item in await driver.mechanisms(machine.id)}
    assert all(item.in_force for item in found.values()), found
    assert found["user"].value == f"uid {machine.id_base}, its own"
    assert {"TPM", "Secure Boot", "limit.cpu", "limit.memory", "limit.disk"} <= set(found)


async def test_a_tpm_remembers_over_restarts_of_machine_and_daemon(
    lab: Lab, driver: VmDriver, guest_disk: Path
) -> None:
    machine = lab.machine(disk=guest_disk, board=Board(tpm=True, graphics=Graphics.NONE))
    counts: list[int] = []
    for _ in range(3):
        await driver.create(machine)
        console = await driver.attach(machine.id)
        await driver.start(machine.id)
        await read_until(console, "ready\n")
        answer = await tell(console, "clock", "\n")
        words = answer.split()
        assert words[0:2] == ["code", "00000000"], answer
        counts.append(int(words[3], 16))
        await driver.close()
        console = await driver.attach(machine.id)
        assert (await tell(console, "clock", "\n")).split()[3] == words[3]
        await driver.stop(machine.id, signal="SIGTERM", timeout=120)
    assert counts[1] == counts[0] + 1 and counts[2] == counts[0] + 2, "the TPM counts its resets, and keeps that"
    fresh = lab.machine(disk=guest_disk, board=Board(tpm=True, graphics=Graphics.NONE))
    await driver.create(fresh)
    console = await driver.attach(fresh.id)
    await driver.start(fresh.id)
    await read_until(console, "ready\n")
    assert int((await tell(console, "clock", "\n")).split()[3], 16) < counts[2], "another machine has another TPM"


async def test_tpm_and_machine_each_outlive_or_follow_the_other(lab: Lab, driver: VmDriver, guest_disk: Path) -> None:
    machine = lab.machine(disk=guest_disk, board=Board(tpm=True, graphics=Graphics.NONE))
    await driver.create(machine)
    console = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(console, "ready\n")
    other = tpm.process(group(lab, machine.id))
    assert other is not None
    os.kill(other, signal.SIGKILL)
    await tell(console, "echo still here", "still here\n")
    found = {item.name: item for item in await driver.mechanisms(machine.id)}
    assert not found["TPM"].in_force
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.phase is Phase.RUNNING
    await driver.stop(machine.id, signal="SIGKILL", timeout=0)

    await driver.create(machine)
    await driver.start(machine.id)
    seen = await driver.observe(machine.id)
    other = tpm.process(group(lab, machine.id))
    assert seen is not None and seen.pid is not None and other is not None
    watch = os.pidfd_open(other)
    await driver.close()
    os.kill(seen.pid, signal.SIGKILL)
    await until_stopped(driver, machine.id)
    async with asyncio.timeout(90):
        await readable(watch)
    os.close(watch)
