"""What the tests of containers share: a layer's home with a small image in it, machines made from it, streams read to their end."""

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

from lamella.host.compute.driver import ComputeDriver, Home, Limits, Machine, Rootfs
from lamella.host.compute.oci.driver import OciDriver
from lamella.host.storage.driver import VolumeHandle
from lamella.model.ids import new_id
from lamella.model.image import ImageConfig
from lamella.model.storage import VolumeForm
from lamella.model.stream import Exit, ProcessStream, Stderr, Stdout


class Lab:
    """A layer's home with a small image in it, and the machines that a test makes from it."""

    def __init__(self, home: Home, layers: list[Path]) -> None:
        self.home = home
        self.layers = layers
        self.changes: list[str] = []
        self.count = 0

    def driver(self) -> OciDriver:
        driver = OciDriver(self.home, self.changes.append)
        _: ComputeDriver = driver
        return driver

    def machine(self, *command: str, **more: Any) -> Machine:
        self.count += 1
        id = new_id("instance")
        disk = self.home.state / "disks" / id
        disk.mkdir(parents=True)
        fields: dict[str, Any] = {
            "id": id,
            "name": f"box{self.count}",
            "project": "default",
            "rootfs": Rootfs(digest=f"sha256:{'0' * 64}", layers=self.layers, config=ImageConfig()),
            "command": list(command),
            "environment": {},
            "working_directory": "/",
            "user": "",
            "hostname": f"box{self.count}",
            "terminal": False,
            "stdin": False,
            "limits": Limits(pids=64),
            "id_base": 1_000_000_000 + 65536 * self.count,
            "disk": VolumeHandle(id=new_id("volume"), form=VolumeForm.FILESYSTEM, path=disk),
            "nic": None,
            "nameservers": [],
            "stop_signal": "SIGTERM",
        }
        return Machine(**(fields | more))


async def collect(stream: ProcessStream) -> tuple[int, bytes, bytes]:
    """Exit code, output and errors of a process; the stream is let go of."""
    output, errors = b"", b""
    try:
        while (frame := await stream.receive()) is not None:
            match frame:
                case Stdout(data=data):
                    output += data
                case Stderr(data=data):
                    errors += data
                case Exit(code=code):
                    return code, output, errors
    finally:
        await stream.close()
    raise AssertionError(f"the stream ended without an exit: {output!r} {errors!r}")


async def run(driver: OciDriver, machine: Machine) -> tuple[int, bytes, bytes]:
    """Create, attach, start, and read to the end."""
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    return await collect(stream)


def busybox(layer: Path) -> None:
    """A root with one static program and two accounts."""
    for name in ("bin", "etc", "tmp", "root", "home/ann"):
        (layer / name).mkdir(parents=True)
    (layer / "tmp").chmod(0o1777)
    shutil.copy("/usr/bin/busybox", layer / "bin" / "busybox")
    names = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        if name != "busybox":
            (layer / "bin" / name).symlink_to("busybox")
    (layer / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n")
    (layer / "etc" / "group").write_text("root:x:0:\nann:x:1000:\nwheel:x:10:ann\n")


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
