"""A pool with a disk of its own under a layer: nothing of a removed volume is found on it, and a flipped bit is."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.house import LayerUnderTest, layer_in

from lamella.host.linux import syscalls
from lamella.host.storage import loop

pytestmark = [pytest.mark.root, pytest.mark.timeout(600, method="thread")]

MIB = 1 << 20
ROUNDS = 6


class Disk:
    """An ext4 of 128 MiB in a file."""

    def __init__(self, place: Path) -> None:
        self.image, self.point = place / "disk.img", place / "disk"
        self.point.mkdir()
        with self.image.open("wb") as file:
            file.truncate(128 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", self.image], check=True, timeout=90)

    def mount(self) -> None:
        device, keeper = loop.attach(self.image)
        try:
            syscalls.mount(str(device), str(self.point), "ext4", 0, "")
        finally:
            os.close(keeper)

    def unmount(self) -> None:
        syscalls.umount(str(self.point))

    def holds(self, mark: bytes) -> int:
        """How often *mark* lies anywhere on it, in files or in what was given back."""
        subprocess.run(["sync", "-f", self.point], check=True, timeout=90)
        with self.image.open("rb") as file:
            return sum(piece.count(mark) for piece in iter(lambda: file.read(4 * MIB), b""))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    disk = Disk(tmp_path_factory.mktemp("fast"))
    disk.mount()
    yield disk
    disk.unmount()


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory, netns: str, root_tar: Path, disk: Disk) -> Iterator[LayerUnderTest]:
    """It finds the disk mounted when it begins: it has a mount namespace of its own."""
    with layer_in(tmp_path_factory.mktemp("layer") / "home", netns) as made:
        made.lamella("image", "import", str(root_tar), "--name", "busybox")
        made.lamella("pool", "create", "fast", "--driver", "directory", "--path", str(disk.point / "pool"))
        yield made


def run(layer: LayerUnderTest, volume: str, command: str) -> str:
    return layer.out("run", "--rm", "--volume", f"{volume}:/data", "busybox", "--", "sh", "-c", command)


def test_nothing_of_a_removed_volume_is_in_the_next_and_nothing_at_all_of_a_shredded_one(
    layer: LayerUnderTest, disk: Disk, tmp_path: Path
) -> None:
    mark = os.urandom(8).hex()
    fill = f"yes {mark} | head -c {48 * MIB} > /data/x && sync -f /data/x"
    for number in range(ROUNDS):
        layer.lamella("volume", "create", "v", "--pool", "fast", "--size", "80MiB")
        layer.lamella("volume", "export", "v", "-o", str(tmp_path / "seen.raw"), "--format", "raw")
        assert mark.encode() not in (tmp_path / "seen.raw").read_bytes(), f"round {number}"
        run(layer, "v", fill)
        layer.lamella("volume", "rm", "v")
    # What tells that a shredded one is gone can tell one that is there.
    assert disk.holds(mark.encode()) > 1000
    mark = os.urandom(8).hex()
    layer.lamella("volume", "create", "v", "--pool", "fast", "--size", "80MiB", "--shred")
    run(layer, "v", f"yes {mark} | head -c {24 * MIB} > /data/x && sync -f /data/x")
    assert disk.holds(mark.encode()) > 1000
    layer.lamella("volume", "rm", "v")
    assert disk.holds(mark.encode()) == 0


def test_a_scrub_names_the_volume_in_which_a_bit_was_flipped(layer: LayerUnderTest, disk: Disk) -> None:
    layer.lamella("volume", "create", "kept", "--pool", "fast", "--size", "16MiB")
    mark = os.urandom(16).hex()
    run(layer, "kept", f"echo {mark} > /data/x && sync -f /data/x")
    layer.lamella("snapshot", "create", "kept", "good")
    assert "nothing found" in layer.out("pool", "scrub", "fast")
    id = json.loads(layer.out("volume", "show", "kept", "-o", "json"))["id"]
    sealed = disk.point / "pool" / "volumes" / id / "disk.raw"
    content = sealed.read_bytes()
    place = next(re.finditer(mark.encode(), content)).start()
    with sealed.open("r+b") as file:
        file.seek(place)
        file.write(bytes([content[place] ^ 1]))
    found = layer.lamella("pool", "scrub", "fast", check=False)
    assert found.returncode == 1 and id.encode() in found.stdout + found.stderr, found
    sealed.write_bytes(content)
    assert "nothing found" in layer.out("pool", "scrub", "fast")
    layer.lamella("volume", "rm", "--force", "kept")
