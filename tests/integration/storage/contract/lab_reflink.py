"""The directory driver where files can share blocks: snapshots and clones are files of their own, and no layers."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from contract_lab import Lab
from lab_btrfs import why_not


@contextmanager
def lab(scratch: Path) -> Iterator[Lab]:
    if reason := why_not():
        pytest.skip(reason)
    image, mount = scratch / "image", scratch / "mount"
    with image.open("wb") as file:
        file.truncate(2 << 30)
    mount.mkdir()
    subprocess.run(["mkfs.btrfs", "-q", image], check=True, timeout=90)
    subprocess.run(["mount", "-o", "loop,noatime", image, mount], check=True, timeout=90)
    try:
        driver = "lamella.host.storage.directory:DirectoryDriver"
        # What is the same as without shared blocks is tried there.
        yield Lab(
            name="reflink",
            driver=driver,
            path=str(mount / "pool"),
            scratch=scratch,
            foreign_volumes=50,
            depth=8,
            cuts=2,
        )
    finally:
        subprocess.run(["umount", mount], check=True, timeout=90)
