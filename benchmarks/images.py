"""Images: a disk of another product is imported, and a Debian is built, against the bare tools."""

import os
import random
import subprocess
import tempfile
from pathlib import Path

from benchmarks.measure import Row, compared, pairs, timed
from tests.house import LayerUnderTest

GIB = 1 << 30
MIB = 1 << 20


def rows(made: LayerUnderTest, runs: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch:
        return [_imported(made, Path(scratch), runs)]


def _imported(made: LayerUnderTest, scratch: Path, runs: int) -> Row:
    """A disk of 2 GiB, half of it written, as VMware's tools would hand it over."""
    raw, vmdk, out = scratch / "disk.raw", scratch / "disk.vmdk", scratch / "out.raw"
    chance = random.Random(3)
    with raw.open("wb") as file:
        file.truncate(2 * GIB)
        for number in range(0, 2 * GIB // MIB, 2):
            file.seek(number * MIB)
            file.write(chance.randbytes(MIB))
    subprocess.run(["qemu-img", "convert", "-O", "vmdk", str(raw), str(vmdk)], check=True)
    raw.unlink()
    number = 0

    def ours() -> float:
        nonlocal number
        number += 1
        name = f"disk{number}"
        seconds = timed(lambda: made.lamella("image", "import", str(vmdk), "--name", name, timeout=300))
        made.lamella("image", "rm", name)
        made.lamella("image", "gc")
        return seconds

    def bare() -> float:
        out.unlink(missing_ok=True)
        command = ["qemu-img", "convert", "-W", "-m", "8", "-f", "vmdk", "-O", "raw", str(vmdk), str(out)]
        return timed(lambda: _durable(command, out))

    mine, peer = pairs(ours, bare, runs=runs)
    what = "import of a 2 GiB vmdk, digest included, against `qemu-img convert -W -m 8` and its data on the disk"
    return compared(what, mine, peer, bar="1.6 ×", aim="1.3 ×")


def _durable(command: list[str], out: Path) -> None:
    """As whoever converts a disk to keep it would: on the disk, not in the page cache."""
    subprocess.run(command, check=True)
    fd = os.open(out, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
