"""A daemon for a test to kill: makes and starts the machine that it is told of, or keeps the memory of one, and waits for its end."""

import asyncio
import sys
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home, Machine
from lamella.host.compute.vm.driver import VmDriver


async def remember(home: str, mark: str, id: str) -> None:
    driver = VmDriver(Home(Path(home), mark), lambda _: None)
    await driver.open()
    print("opened", flush=True)
    async with driver.remember(id, "half"):
        print("held", flush=True)
        await asyncio.sleep(3600)


async def main(home: str, mark: str, description: str) -> None:
    machine = msgspec.json.decode(
        Path(description).read_bytes(), type=Machine, dec_hook=lambda kind, value: kind(value)
    )
    driver = VmDriver(Home(Path(home), mark), lambda _: None)
    await driver.open()
    print("opened", flush=True)
    await driver.create(machine)
    await driver.start(machine.id)
    print("started", flush=True)
    await asyncio.sleep(3600)


if __name__ == "__main__":
    home, mark, *rest = sys.argv[1:]
    asyncio.run(remember(home, mark, rest[1]) if rest[0] == "remember" else main(home, mark, *rest))
