"""Disks whose power is cut. They lie in a short path: sockets may lie on them."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
sys.path.insert(0, str(Path(__file__).parents[2] / "volumes"))

from power_disk import Filesystem, PowerDisk, Start


@pytest.fixture
def powered() -> Iterator[Start]:
    """``powered(EXT4)`` is a disk that runs; how its power was cut is printed at the end."""
    scratch = Path(tempfile.mkdtemp(prefix="lpw-"))
    made: list[PowerDisk] = []

    def start(filesystem: Filesystem) -> PowerDisk:
        disk = PowerDisk(scratch, filesystem)
        made.append(disk)
        disk.start()
        return disk

    try:
        yield start
    finally:
        for disk in made:
            disk.close()
            print(f"\n{disk.tally}")
        shutil.rmtree(scratch)
