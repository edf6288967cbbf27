"""A daemon for a test to kill: makes and starts the instance that it is told of, says so, and waits for its end."""

import asyncio
import sys
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home, Machine
from lamella.host.compute.wasm.driver import WasmDriver


async def main(home: str, mark: str, description: str, last: str) -> None:
    machine = msgspec.json.decode(
        Path(description).read_bytes(), type=Machine, dec_hook=lambda kind, value: kind(value)
    )
    driver = WasmDriver(Home(Path(home), mark), lambda _: None)
    await driver.open()
    assert "wasmtime" not in sys.modules
    assert "_libwasmtime" not in Path("/proc/self/maps").read_text()
    await driver.create(machine)
    if last == "start":
        await driver.start(machine.id)
    print("done", flush=True)
    await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
