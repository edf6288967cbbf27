"""What the tests of WebAssembly share: a layer's home, modules compiled from a few lines of C, machines made from them."""

import asyncio
import functools
import hashlib
import subprocess
import time
from pathlib import Path
from typing import Any

from lamella.host.compute.driver import ComputeDriver, Home, Limits, Machine, Observed, Rootfs, StoredArtifact
from lamella.host.compute.wasm.driver import WasmDriver
from lamella.model.ids import new_id
from lamella.model.image import ArtifactKind, ImageConfig
from lamella.model.instance import Phase
from lamella.model.stream import Exit, ProcessStream, Stderr, Stdout

MIB = 1 << 20
SOURCES = Path(__file__).parent / "modules"


class Lab:
    """A layer's home, and the machines that a test makes in it. *built* holds the compiled modules."""

    def __init__(self, home: Home, built: Path) -> None:
        self.home = home
        self.built = built
        self.changes: list[str] = []
        self.count = 0

    def driver(self) -> WasmDriver:
        driver = WasmDriver(self.home, self.changes.append)
        _: ComputeDriver = driver
        return driver

    def rootfs(self, module: Path) -> Rootfs:
        digest = digest_of(module, module.stat().st_mtime_ns)
        artifact = StoredArtifact(kind=ArtifactKind.MODULE, digest=digest, path=module, size=module.stat().st_size)
        return Rootfs(digest=digest, layers=[], config=ImageConfig(), artifacts=[artifact], os="wasi")

    def machine(self, module: str | Path, *command: str, **more: Any) -> Machine:
        self.count += 1
        path = self.built / f"{module}.wasm" if isinstance(module, str) else module
        fields: dict[str, Any] = {
            "id": new_id("instance"),
            "name": f"box{self.count}",
            "project": "default",
            "rootfs": self.rootfs(path),
            "command": list(command),
            "environment": {"GREETING": "good day"},
            "working_directory": "/",
            "user": "",
            "hostname": "box",
            "terminal": False,
            "stdin": False,
            "limits": Limits(cpu=1000, memory=64 * MIB, pids=4096),
            "id_base": 1_900_000_000 + self.count * 65536,
            "disk": None,
            "nic": None,
            "nameservers": [],
            "stop_signal": "SIGTERM",
        }
        return Machine(**{**fields, **more})


@functools.cache
def digest_of(module: Path, _written: int) -> str:
    return f"sha256:{hashlib.sha256(module.read_bytes()).hexdigest()}"


def compile_module(source: Path, target: Path) -> None:
    """With clang and wasi-libc of the distribution."""
    command = ["clang", "--target=wasm32-wasi", "-O2", "-o", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


async def run(driver: WasmDriver, machine: Machine) -> tuple[int | None, bytes, bytes]:
    """Create, attach, start; the exit code and all output."""
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    try:
        await driver.start(machine.id)
        return await read_all(stream)
    finally:
        await stream.close()


async def read_all(stream: ProcessStream, timeout: float = 90) -> tuple[int | None, bytes, bytes]:
    """Exit code, standard output, standard error."""
    out, errors = bytearray(), bytearray()
    async with asyncio.timeout(timeout):
        while (frame := await stream.receive()) is not None:
            match frame:
                case Stdout(data):
                    out += data
                case Stderr(data):
                    errors += data
                case Exit(code):
                    return code, bytes(out), bytes(errors)
    return None, bytes(out), bytes(errors)


async def logged(driver: WasmDriver, id: str) -> bytes:
    return b"".join([entry.data async for entry in driver.logs(id)])


async def phase(driver: WasmDriver, id: str, wanted: Phase, timeout: float = 90) -> Observed:
    """Look until the instance is in *wanted*."""
    deadline = time.monotonic() + timeout
    while True:
        seen = await driver.observe(id)
        assert seen is not None
        if seen.phase == wanted:
            return seen
        assert time.monotonic() < deadline, f"{seen.phase}, not {wanted}"
        await asyncio.sleep(0.01)
