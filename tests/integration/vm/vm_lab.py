"""What the tests of full machines share: a layer's home, machines with disks and CDs, guests that start in a second, streams read.

``guest_disk`` is a disk with a small guest of our own (guest.c), which a BIOS starts in under a second and which does what it is told
on its serial line: it is no Linux, and it tells of its power button, its watchdog and its TPM.
"""

import asyncio
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lamella.host.compute.driver import (
    ComputeDriver,
    HasMachine,
    HasScreen,
    Home,
    Limits,
    Machine,
    Observed,
    Rootfs,
    StoredArtifact,
    TakesDevices,
    TakesTap,
)
from lamella.host.compute.vm.driver import VmDriver
from lamella.host.storage.driver import VolumeHandle
from lamella.model.board import Seed
from lamella.model.ids import new_id
from lamella.model.image import ArtifactKind, ImageConfig
from lamella.model.instance import Phase
from lamella.model.storage import VolumeForm
from lamella.model.stream import ProcessStream, Stdin, Stdout

MIB = 1 << 20
MEMTEST_ISO = Path("/usr/lib/memtest86+/memtest86+x64.iso")
MEMTEST_EFI = Path("/boot/memtest86+x64.efi")


class Lab:
    """A layer's home, and the machines that a test makes in it."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.changes: list[str] = []
        self.count = 0

    def driver(self) -> VmDriver:
        driver = VmDriver(self.home, self.changes.append)
        _: ComputeDriver = driver
        _takes: TakesTap = driver
        _devices: TakesDevices = driver
        _screen: HasScreen = driver
        _machine: HasMachine = driver
        return driver

    def volume(self, size: int = 64 * MIB, content: Path | None = None) -> VolumeHandle:
        """A raw volume, empty or with what *content* holds."""
        id = new_id("volume")
        path = self.home.path / "disks" / f"{id}.raw"
        path.parent.mkdir(exist_ok=True)
        if content is not None:
            shutil.copy(content, path)
            size = max(size, content.stat().st_size)
        with path.open("ab") as file:
            file.truncate(size)
        return VolumeHandle(id=id, form=VolumeForm.BLOCK, path=path, size=size)

    def machine(self, *, disk: Path | None = None, cdrom: Path | None = None, **more: Any) -> Machine:
        """A machine with 128 MiB, no seed and no NIC; *disk* is what its root disk holds, *cdrom* the CD of its image."""
        self.count += 1
        artifacts = []
        if cdrom is not None:
            digest = f"sha256:{hashlib.sha256(str(cdrom).encode()).hexdigest()}"
            size = cdrom.stat().st_size
            artifacts.append(StoredArtifact(kind=ArtifactKind.CDROM, digest=digest, path=cdrom, size=size))
        fields: dict[str, Any] = {
            "id": new_id("instance"),
            "name": f"box{self.count}",
            "project": "default",
            "rootfs": Rootfs(digest="sha256:" + "0" * 64, layers=[], config=ImageConfig(), artifacts=artifacts),
            "command": [],
            "environment": {},
            "working_directory": "/",
            "user": "",
            "hostname": "box",
            "terminal": True,
            "stdin": False,
            "limits": Limits(cpu=1000, memory=128 * MIB),
            "id_base": 1_900_000_000 + self.count * 65536,
            "disk": self.volume(content=disk),
            "nic": None,
            "nameservers": [],
            "stop_signal": "SIGTERM",
            "seed": Seed(enabled=False),
        }
        return Machine(**{**fields, **more})


def build_guest(directory: Path) -> Path:
    """The disk of the small guest: a boot sector (guest.S) and the program that it loads (guest.c), made by the C compiler."""
    here = Path(__file__).parent
    disk = directory / "guest.img"
    flags = (
        "-m32 -Os -ffreestanding -fno-pic -fno-stack-protector -fno-asynchronous-unwind-tables -mno-sse -Wall -Werror"
    )
    objects = [str(directory / "start.o"), str(directory / "guest.o")]
    for source, target in zip(("guest.S", "guest.c"), objects, strict=True):
        subprocess.run(["gcc", *flags.split(), "-c", str(here / source), "-o", target], check=True)
    script = [
        "-m",
        "elf_i386",
        "--section-start=.boot=0x7c00",
        "-Ttext=0x7e00",
        "-e",
        "boot",
        "--oformat",
        "binary",
        "--no-warn-rwx-segments",
    ]
    subprocess.run(["ld", *script, "-z", "noexecstack", "-o", str(disk), *objects], check=True)
    with disk.open("ab") as file:
        file.truncate(1 * MIB)
    return disk


async def read_until(stream: ProcessStream, text: str, timeout: float = 30.0) -> str:
    """What a console says until *text* has come by.

    :raise AssertionError: when it does not, with what came instead.
    """
    seen = ""
    try:
        async with asyncio.timeout(timeout):
            while text not in seen:
                frame = await stream.receive()
                if frame is None:
                    break
                if isinstance(frame, Stdout):
                    seen += frame.data.decode(errors="replace")
    except TimeoutError:
        pass
    assert text in seen, f"no {text!r} in {seen!r}"
    return seen


async def tell(stream: ProcessStream, word: str, answer: str, timeout: float = 30.0) -> str:
    """Type a line at the small guest and read until *answer*."""
    await stream.send(Stdin(f"{word}\n".encode()))
    return await read_until(stream, answer, timeout)


async def until(driver: VmDriver, id: str, right: Callable[[Observed], bool], timeout: float = 30.0) -> Observed:
    """Look until what is seen is *right*."""
    async with asyncio.timeout(timeout):
        while True:
            seen = await driver.observe(id)
            assert seen is not None
            if right(seen):
                return seen
            await asyncio.sleep(0.05)


async def until_stopped(driver: VmDriver, id: str, timeout: float = 30.0) -> Observed:
    return await until(driver, id, lambda seen: seen.phase is Phase.STOPPED, timeout)
