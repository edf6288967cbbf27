"""Copies of one memory are different machines: nothing random, no key and no id comes twice."""

import asyncio
import re
import subprocess
from collections import Counter

import pytest
from microvm_lab import MIB, Lab, run, until_stopped

from lamella.host.compute.driver import Limits, Machine
from lamella.host.compute.microvm.driver import MicrovmDriver

pytestmark = pytest.mark.root

# What tells one machine from another, a line each; what is drawn on each processor comes twice, at once.
WHO = (
    "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid;"
    "(taskset 1 head -c 16 /dev/urandom; taskset 2 head -c 16 /dev/urandom; head -c 32 /dev/random) | od -An -v -tx1;"
    "cat /root/warm"
)
AT_ONCE = 4


async def told(lab: Lab, driver: MicrovmDriver, machine: Machine) -> list[str]:
    """What one copy says of itself; nothing is left of it."""
    await driver.create(machine)
    await driver.start(machine.id)
    await until_stopped(driver, machine.id)
    said = b"".join([entry.data async for entry in driver.logs(machine.id)]).decode()
    await driver.remove(machine.id)
    machine.volume.path.unlink()
    return [line.strip() for line in said.splitlines()]


@pytest.mark.parametrize("count", [12, pytest.param(200, marks=pytest.mark.extended)])
async def test_nothing_comes_twice(lab: Lab, driver: MicrovmDriver, count: int) -> None:
    limits = Limits(cpu=2000, memory=192 * MIB, pids=200)
    base = lab.machine("/bin/true", hostname="base", limits=limits)
    await driver.create(base)
    warmup = (
        "mkdir -p /root; echo warm > /root/warm; cat /proc/sys/kernel/random/boot_id > /root/boot;"
        "head -c 16 /dev/urandom | od -An -v -tx1 > /root/drawn; tr -d ' -' < /root/boot > /etc/machine-id"
    )
    assert (await run(driver, base.id, "/bin/sh", "-c", warmup)) == (0, "")
    known = (await run(driver, base.id, "cat", "/root/boot", "/root/drawn", "/etc/machine-id"))[1].split("\n")
    async with driver.remember(base.id, "base"):
        disk = base.volume.path.with_suffix(".copy")
        subprocess.run(["cp", "--sparse=always", base.volume.path, disk], check=True)
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> list[str]:
        async with turn:
            machine = lab.machine(
                "/bin/sh", "-c", WHO, hostname=f"copy{number}", memory="base", fresh=True, limits=limits
            )
            subprocess.run(["cp", "--sparse=always", disk, machine.volume.path], check=True)
            return await told(lab, driver, machine)

    found = await asyncio.gather(*(one(number) for number in range(count)))
    assert [lines[0] for lines in found] == [f"copy{number}" for number in range(count)]
    assert all(lines[-1] == "warm" for lines in found)
    words = Counter(
        word for lines in found for word in [*lines[1:4], *re.findall(".{47}", " ".join(lines[4:-1]) + " ")]
    )
    assert len(words) == count * (3 + 4), [word for word, times in words.items() if times > 1]
    assert not words.keys() & {line.strip() for line in known}
