"""What the tests of microVMs share: a layer's home with a small image in it, machines made from it, streams read to their end."""

import asyncio
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from lamella.host.compute.driver import ComputeDriver, Home, Limits, Machine, Observed, Rootfs
from lamella.host.compute.microvm.driver import MicrovmDriver
from lamella.host.storage.driver import VolumeHandle
from lamella.model.ids import new_id
from lamella.model.image import ImageConfig
from lamella.model.instance import Phase
from lamella.model.storage import VolumeForm
from lamella.model.stream import ExecSpec, Exit, ProcessStream, Stderr, Stdout

MIB = 1 << 20


class Lab:
    """A layer's home with a small image in it, and the machines that a test makes from it."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.layers = [home.path / "layers" / "upper", home.path / "layers" / "lower"]
        self.changes: list[str] = []
        self.count = 0

    def driver(self) -> MicrovmDriver:
        driver = MicrovmDriver(self.home, self.changes.append)
        _: ComputeDriver = driver
        return driver

    def machine(self, *command: str, **more: Any) -> Machine:
        self.count += 1
        id = new_id("instance")
        disk = self.home.path / "disks" / f"{id}.raw"
        disk.parent.mkdir(exist_ok=True)
        with disk.open("wb") as file:
            file.truncate(1 << 30)
        digest = hashlib.sha256(str(self.layers).encode()).hexdigest()
        fields: dict[str, Any] = {
            "id": id,
            "name": f"box{self.count}",
            "project": "default",
            "rootfs": Rootfs(digest=f"sha256:{digest}", layers=self.layers, config=ImageConfig()),
            "command": list(command),
            "environment": {"PATH": "/bin", "GREETING": "good day"},
            "working_directory": "/",
            "user": "",
            "hostname": "box",
            "terminal": False,
            "stdin": False,
            "limits": Limits(cpu=1000, memory=256 * MIB, pids=200),
            "id_base": 1_900_000_000 + self.count * 65536,
            "disk": VolumeHandle(id=new_id("volume"), form=VolumeForm.BLOCK, path=disk, size=1 << 30),
            "nic": None,
            "nameservers": [],
            "stop_signal": "SIGTERM",
        }
        return Machine(**{**fields, **more})


def make_image(lower: Path, upper: Path) -> None:
    """Two layers as overlayfs wants them: busybox below; above it files, a whiteout, an opaque directory, odd owners."""
    for name in ("bin", "etc", "tmp", "old/sub"):
        (lower / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, lower / "bin" / "busybox")
    for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (lower / "bin" / applet).symlink_to("busybox")
    (lower / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nann:x:1000:1001::/:/bin/sh\n")
    (lower / "etc/group").write_text("root:x:0:\nann:x:1001:\n")
    (lower / "etc/gone").write_text("an upper layer removed this\n")
    (lower / "old/hidden").write_text("an upper layer hides this\n")
    (lower / "old/sub/deep").write_text("and this\n")
    (lower / "escape").symlink_to("/../../../../etc/passwd")
    for name in ("etc", "old"):
        (upper / name).mkdir(parents=True)
    os.mknod(upper / "etc/gone", 0o020000, 0)
    # A whiteout of something that never was, in the lowest place of all, must not show either.
    os.mknod(lower / "etc/never", 0o020000, 0)
    os.setxattr(upper / "old", "trusted.overlay.opaque", b"y")
    (upper / "old/seen").write_text("only this\n")
    (upper / "etc/hello").write_text("from the upper layer\n")
    (upper / "owned").write_text("by ann\n")
    os.chown(upper / "owned", 1000, 1001)
    (upper / "owned").chmod(0o4750)
    os.setxattr(upper / "owned", "user.colour", b"blue")


async def drain(stream: ProcessStream) -> tuple[bytes, bytes, Exit | None]:
    """Everything that a process writes, and how it ended."""
    out, err, end = b"", b"", None
    while (frame := await stream.receive()) is not None:
        match frame:
            case Stdout(data):
                out += data
            case Stderr(data):
                err += data
            case Exit():
                end = frame
    await stream.close()
    return out, err, end


async def run(driver: MicrovmDriver, id: str, *command: str, **more: Any) -> tuple[int, str]:
    """Exit code and all output of a command beside the instance's own."""
    out, err, end = await drain(await driver.exec(id, ExecSpec(command=list(command), **more)))
    assert end is not None
    return end.code, (out + err).decode(errors="replace")


async def until_stopped(driver: MicrovmDriver, id: str, timeout: float = 90) -> Observed:
    async with asyncio.timeout(timeout):
        while True:
            seen = await driver.observe(id)
            assert seen is not None
            if seen.phase is Phase.STOPPED:
                return seen
            await asyncio.sleep(0.05)
