"""Images: a disk of another product is imported, and a Debian is built, against the bare tools."""

import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.measure import Row, compared, pairs, timed
from tests import debian as tests_debian
from tests.house import LayerUnderTest

from lamella.host.images import bootable, bootable_root, debian

GIB = 1 << 30
MIB = 1 << 20


def build_rows(runs: int) -> list[Row]:
    """A Debian root and its bootable disk, against mmdebstrap alone making the tar of a root with the same packages."""
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch:
        number = 0

        def ours() -> float:
            nonlocal number
            number += 1
            path = Path(scratch) / f"images{number}"
            seconds = timed(lambda: tests_debian.build(path, packages=[]))
            shutil.rmtree(path)
            return seconds

        def bare() -> float:
            target = Path(scratch) / "root.tar"
            wanted = debian.release("debian:12")
            names = bootable_root.packages(bootable.architecture())
            settings = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
            options = [f"--aptopt={line}" for line in debian.forwarded(settings)]
            archive, security = debian.mirrors(debian.read_sources())
            command = [
                "mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", f"--include={','.join(names)}", *options,
                wanted.suite, str(target), f"deb {archive} {wanted.suite} main", f"deb {archive} {wanted.suite}-updates main",
                f"deb {security} {wanted.suite}-security main",
            ]  # fmt: skip
            seconds = timed(lambda: subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True))
            target.unlink()
            return seconds

        mine, peer = pairs(ours, bare, runs=runs, warm=0)
    what = "Debian disk and rootfs build, against `mmdebstrap` alone with the same packages"
    return [compared(what, mine, peer, bar="1.6 ×", aim="1.25 ×")]


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
