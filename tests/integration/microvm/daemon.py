"""A daemon for a test to kill: makes and starts the microVM that it is told of, says so, and waits for its end;
in the midst of keeping its memory, where it is told to."""

import asyncio
import sys
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home, Machine
from lamella.host.compute.microvm.driver import MicrovmDriver
from lamella.model.host import Copies


async def main(home: str, mark: str, description: str, memory: str = "") -> None:
    machine = msgspec.json.decode(
        Path(description).read_bytes(), type=Machine, dec_hook=lambda kind, value: kind(value)
    )
    driver = MicrovmDriver(Home(Path(home), mark), lambda _: None)
    # A template that was being made when it was killed would be ended by the next daemon, which some tests have not.
    driver.use_copies(Copies.OFF)
    await driver.open()
    await driver.create(machine)
    await driver.start(machine.id)
    print("started", flush=True)
    if memory:
        async with driver.remember(machine.id, memory):
            print("held", flush=True)
            await asyncio.sleep(3600)
    await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
