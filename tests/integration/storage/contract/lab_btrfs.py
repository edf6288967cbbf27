"""The btrfs driver on a btrfs of its own, in a file that it makes itself."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from contract_lab import Lab

DRIVER = "lamella.host.storage.btrfs:BtrfsDriver"


def why_not() -> str:
    """Why this machine cannot have a btrfs in a file, or an empty string."""
    if os.geteuid():
        return "mounting a btrfs needs root"
    subprocess.run(["modprobe", "-q", "btrfs"], check=False)
    if "btrfs" not in Path("/proc/filesystems").read_text():
        return "this kernel has no btrfs"
    return ""


@contextmanager
def lab(scratch: Path) -> Iterator[Lab]:
    if reason := why_not():
        pytest.skip(reason)
    path = scratch / "btrfs"
    made = Lab(
        name="btrfs",
        driver=DRIVER,
        path=str(path),
        scratch=scratch,
        options={"image": "4GiB"},
        foreign_volumes=400,
        cuts=6,
    )
    driver = made.make()
    asyncio.run(driver.open())
    # Something in it is open all the time: it stays mounted when a driver is closed, and the next one takes it as it is.
    held = os.open(path, os.O_RDONLY)
    asyncio.run(driver.close())
    try:
        yield made
    finally:
        os.close(held)
        subprocess.run(["umount", str(path)], check=True, timeout=90)
