"""What the tests of unikernels share: a layer's home, and machines made from kernels that the tests compile."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

from lamella.host.compute.driver import ComputeDriver, Home, Limits, Machine, Observed, Rootfs, StoredArtifact, TakesTap
from lamella.host.compute.unikernel.driver import UnikernelDriver
from lamella.host.storage.driver import VolumeHandle
from lamella.model.board import Board
from lamella.model.ids import new_id
from lamella.model.image import ArtifactKind, ImageConfig
from lamella.model.instance import Phase
from lamella.model.storage import VolumeForm
from lamella.model.stream import Exit, ProcessStream, Stdout

MIB = 1 << 20


class Lab:
    """A layer's home, and the machines that a test makes in it."""

    def __init__(self, home: Home, kernels: dict[str, Path]) -> None:
        self.home = home
        self.kernels = kernels
        self.changes: list[str] = []
        self.count = 0

    def driver(self) -> UnikernelDriver:
        driver = UnikernelDriver(self.home, self.changes.append)
        _: ComputeDriver = driver
        __: TakesTap = driver
        return driver

    def disk(self, size: int) -> VolumeHandle:
        id = new_id("volume")
        path = self.home.path / "disks" / f"{id}.raw"
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size)
        return VolumeHandle(id=id, form=VolumeForm.BLOCK, path=path, size=size)

    def machine(self, line: str, *, kernel: str = "pvh", initrd: bytes | None = None, **more: Any) -> Machine:
        self.count += 1
        id = new_id("instance")
        artifacts = [self._artifact(ArtifactKind.KERNEL, self.kernels[kernel].read_bytes())]
        if initrd is not None:
            artifacts.append(self._artifact(ArtifactKind.INITRD, initrd))
        rootfs = Rootfs(digest=artifacts[0].digest, layers=[], config=ImageConfig(), artifacts=artifacts)
        fields: dict[str, Any] = {
            "id": id,
            "name": f"uni{self.count}",
            "project": "default",
            "rootfs": rootfs,
            "command": [],
            "environment": {},
            "working_directory": "/",
            "user": "",
            "hostname": "uni",
            "terminal": False,
            "stdin": False,
            "limits": Limits(cpu=1000, memory=16 * MIB, pids=200),
            "id_base": 1_950_000_000 + self.count * 65536,
            "disk": None,
            "nic": None,
            "nameservers": [],
            "stop_signal": "SIGTERM",
            "board": Board(command_line=line),
        }
        return Machine(**{**fields, **more})

    def _artifact(self, kind: ArtifactKind, content: bytes) -> StoredArtifact:
        """As the image library keeps them: root's alone."""
        digest = hashlib.sha256(content).hexdigest()
        path = self.home.path / "library" / digest
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o400)
        return StoredArtifact(kind=kind, digest=f"sha256:{digest}", path=path, size=len(content))


async def drain(stream: ProcessStream) -> tuple[bytes, Exit | None]:
    """Everything that comes out, and how it ended."""
    out, end = b"", None
    while (frame := await stream.receive()) is not None:
        match frame:
            case Stdout(data):
                out += data
            case Exit():
                end = frame
            case _:
                raise AssertionError(frame)
    await stream.close()
    return out, end


async def read_until(stream: ProcessStream, text: bytes, timeout: float = 90) -> bytes:
    """What comes out up to the piece in which *text* is complete."""
    out = b""
    async with asyncio.timeout(timeout):
        while text not in out:
            frame = await stream.receive()
            assert isinstance(frame, Stdout), (frame, out)
            out += frame.data
    return out


async def until_stopped(driver: UnikernelDriver, id: str, timeout: float = 90) -> Observed:
    async with asyncio.timeout(timeout):
        while True:
            seen = await driver.observe(id)
            assert seen is not None
            if seen.phase is Phase.STOPPED:
                return seen
            await asyncio.sleep(0.02)


async def ran(driver: UnikernelDriver, machine: Machine) -> tuple[bytes, Exit, Observed]:
    """A whole run, attached from before it begins to its end."""
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    async with asyncio.timeout(90):
        out, end = await drain(stream)
    assert end is not None
    return out, end, await until_stopped(driver, machine.id)


async def log_of(driver: UnikernelDriver, id: str) -> bytes:
    return b"".join([entry.data async for entry in driver.logs(id)])
