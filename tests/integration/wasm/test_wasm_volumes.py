"""Volumes of modules: found where they are asked, used as 0 on the disk, and let go of at the end."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from wasm_lab import Lab, run

from lamella.host.compute.driver import MountedVolume
from lamella.host.compute.wasm.driver import WasmDriver
from lamella.model.errors import Invalid, Unsupported

pytestmark = pytest.mark.root


def volume(path: Path, target: str, *, read_only: bool = False) -> MountedVolume:
    return MountedVolume(
        name="data",
        id="vol_data",
        device="data",
        target=target,
        filesystem="ext4",
        path=path,
        size=0,
        read_only=read_only,
    )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of its own, mounted on the host, as storage gives a block volume to a module."""
    image, place = tmp_path / "disk.img", tmp_path / "mounted"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, timeout=90)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, timeout=90)
    yield place
    subprocess.run(["umount", str(place)], check=True, timeout=90)


async def test_what_a_module_makes_belongs_to_0_on_the_volume(lab: Lab, driver: WasmDriver, disk: Path) -> None:
    here = [volume(disk, "/data")]
    code, out, errors = await run(driver, lab.machine("deeds", "write", "/data/new", volumes=here))
    assert (code, out) == (0, b""), errors
    made = (disk / "new").stat()
    assert (made.st_uid, made.st_gid) == (0, 0) and (disk / "new").read_text() == "written inside\n"
    # What a container's root has made there since is the module's own too.
    (disk / "other").write_text("another level")
    (disk / "other").chmod(0o600)
    code, out, _ = await run(driver, lab.machine("deeds", "read", "/data/other", volumes=here))
    assert (code, out) == (0, b"/data/other: read another level\n")
    code, _, _ = await run(
        driver, lab.machine("deeds", "write", "/data/no", volumes=[volume(disk, "/data", read_only=True)])
    )
    assert not (disk / "no").exists()
    with pytest.raises(Unsupported, match="no disks"):
        await driver.create(lab.machine("hello", volumes=[volume(disk, "")]))
    with pytest.raises(Invalid, match="two directories"):
        await driver.create(lab.machine("hello", volumes=[volume(disk, "/data"), volume(disk, "/data")]))
