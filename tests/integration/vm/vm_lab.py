"""What the tests of full machines share: a layer's home, machines with disks and CDs, guests that start in a second, streams read.

``guest_disk`` is a disk with a small guest of our own (guest.c), which a BIOS starts in under a second and which does what it is told
on its serial line: it is no Linux, and it tells of its power button, its watchdog and its TPM.
"""

import asyncio
import hashlib
import shutil
import struct
import subprocess
import zlib
from collections import Counter
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


async def read_until(stream: ProcessStream, text: str, timeout: float = 90) -> str:
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


async def tell(stream: ProcessStream, word: str, answer: str, timeout: float = 90) -> str:
    """Type a line at the small guest and read until *answer*."""
    await stream.send(Stdin(f"{word}\n".encode()))
    return await read_until(stream, answer, timeout)


async def until(driver: VmDriver, id: str, right: Callable[[Observed], bool], timeout: float = 90) -> Observed:
    """Look until what is seen is *right*."""
    async with asyncio.timeout(timeout):
        while True:
            seen = await driver.observe(id)
            assert seen is not None
            if right(seen):
                return seen
            await asyncio.sleep(0.05)


async def until_stopped(driver: VmDriver, id: str, timeout: float = 90) -> Observed:
    return await until(driver, id, lambda seen: seen.phase is Phase.STOPPED, timeout)


def colours(png: bytes) -> dict[tuple[int, int, int], float]:
    """The colours of a picture (8 bits, RGB) and each one's share of it. Facts: PNG specification, sections 9 (filters) and 11."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and png[24:26] == b"\x08\x02"
    width, height = struct.unpack_from(">II", png, 16)
    place, packed = 8, b""
    while place < len(png):
        (size,) = struct.unpack_from(">I", png, place)
        if png[place + 4 : place + 8] == b"IDAT":
            packed += png[place + 8 : place + 8 + size]
        place += 12 + size
    data, count = zlib.decompress(packed), Counter[tuple[int, int, int]]()
    above = bytes(3 * width)
    for row in range(height):
        start = row * (3 * width + 1)
        kind, line = data[start], bytearray(data[start + 1 : start + 1 + 3 * width])
        if kind:
            for at, value in enumerate(line):
                left, up, corner = (line[at - 3], above[at], above[at - 3]) if at > 2 else (0, above[at], 0)
                line[at] = (value + _predict(kind, left, up, corner)) & 255
        above = bytes(line)
        count.update(zip(line[0::3], line[1::3], line[2::3], strict=True))
    return {colour: number / (width * height) for colour, number in count.items()}


def _predict(kind: int, left: int, up: int, corner: int) -> int:
    if kind < 4:
        return (0, left, up, (left + up) // 2)[kind]
    guess = left + up - corner
    return min((left, up, corner), key=lambda one: abs(guess - one))


async def until_blue(driver: VmDriver, id: str, timeout: float = 90) -> None:
    """Look at the screen until more than half of it is the blue of old text screens: 168 or 170 of 255, as the card has it."""
    found: dict[tuple[int, int, int], float] = {}
    try:
        async with asyncio.timeout(timeout):
            while sum(found.get((0, 0, blue), 0) for blue in (168, 170)) < 0.5:
                await asyncio.sleep(0.5)
                found = await asyncio.to_thread(colours, await driver.screenshot(id))
    except TimeoutError:
        raise AssertionError(f"the screen is not blue but {Counter(found).most_common(3)}") from None
