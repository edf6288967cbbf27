"""Volumes of containers: whose they are inside, what may be done with them, and that nothing of them stays."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from oci_lab import Lab, collect, run

from lamella.host.compute.driver import MountedVolume
from lamella.host.compute.oci.driver import OciDriver
from lamella.host.linux import mounts
from lamella.model.errors import Invalid, NotFound, Unsupported
from lamella.model.stream import ExecSpec

pytestmark = pytest.mark.root


def volume(path: Path, target: str, *, read_only: bool = False) -> MountedVolume:
    name = path.name
    return MountedVolume(
        name=name,
        id=f"vol_{name}",
        device=name,
        target=target,
        filesystem="ext4",
        path=path,
        size=0,
        read_only=read_only,
    )


@pytest.fixture
def disk(lab: Lab) -> Iterator[Path]:
    """An ext4 of its own, mounted on the host, as storage gives a block volume to a container."""
    image, place = lab.home.state / "disk.img", lab.home.state / "mounted"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, timeout=90)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, timeout=90)
    yield place
    # Not lazily: whoever still has it would show here.
    subprocess.run(["umount", str(place)], check=True, timeout=90)


async def said(driver: OciDriver, id: str, command: str) -> tuple[int, str]:
    stream = await driver.exec(id, ExecSpec(command=["/bin/sh", "-c", command]))
    code, out, err = await collect(stream)
    return code, (out + err).decode()


async def test_a_volume_is_the_containers_own(lab: Lab, driver: OciDriver, disk: Path) -> None:
    plain, shown = lab.home.state / "plain", lab.home.state / "shown"
    for path in (plain, shown):
        path.mkdir()
    (shown / "word").write_text("read me\n")
    os.mknod(plain / "null", 0o020666, os.makedev(1, 3))
    (lab.layers[0] / "escape").symlink_to("/../../../../etc")
    volumes = [
        volume(plain, "/escape/deep/er"),
        volume(shown, "/srv/shown", read_only=True),
        volume(disk, "/srv"),
    ]
    machine = lab.machine("/bin/sleep", "1000", volumes=volumes)
    await driver.create(machine)
    await driver.start(machine.id)
    assert [entry.point for entry in mounts.below(lab.home.run / "oci" / machine.id / "volumes")] == []

    # Root inside owns it, and so does 0 on the disk: another level finds the same.
    code, text = await said(
        driver, machine.id, "echo hi >/srv/file && chown ann /srv/file && stat -c '%u %g' /srv /srv/file"
    )
    assert (code, text) == (0, "0 0\n1000 0\n")
    assert ((disk / "file").stat().st_uid, (disk / "file").stat().st_gid) == (1000, 0)
    assert (disk / "file").read_text() == "hi\n"
    # A link in the image leads nowhere but inside.
    assert (await said(driver, machine.id, "echo in >/etc/deep/er/file"))[0] == 0
    assert (plain / "file").read_text() == "in\n" and not Path("/etc/deep").exists()
    # What is a device on the disk is none inside.
    code, text = await said(driver, machine.id, "cat /etc/deep/er/null")
    assert code != 0 and "ermission denied" in text
    code, text = await said(driver, machine.id, "cat /srv/shown/word; echo no >/srv/shown/word")
    assert code != 0 and "read me" in text and "Read-only" in text
    assert (shown / "word").read_text() == "read me\n"
    found = {one.name: one for one in await driver.mechanisms(machine.id)}
    assert found["volume mounted"].in_force and found["volume mounted"].value.startswith("ext4 at /srv, read and write")
    assert found["volume shown"].in_force and "read-only" in found["volume shown"].value
    assert b"".join([piece async for piece in driver.read_file(machine.id, "/srv/file")]) == b"hi\n"

    # Ended but not removed: the fixture takes the disk away while the instance is still there.
    await driver.stop(machine.id, signal="SIGKILL", timeout=0)
    subprocess.run(["umount", str(disk)], check=True, timeout=90)
    subprocess.run(["mount", "-o", "loop", str(lab.home.state / "disk.img"), str(disk)], check=True, timeout=90)
    # Again, with the same files.
    code, out, _ = await run(driver, lab.machine("/bin/cat", "/srv/file", volumes=[volume(disk, "/srv")]))
    assert (code, out) == (0, b"hi\n")


async def test_what_cannot_be_is_refused_and_leaves_nothing(lab: Lab, driver: OciDriver) -> None:
    place = lab.home.state / "plain"
    place.mkdir()
    for target in ("/", "/proc", "/sys/fs", "/dev/shm", "/srv/../proc/self"):
        with pytest.raises(Invalid):
            await driver.create(lab.machine("/bin/true", volumes=[volume(place, target)]))
    with pytest.raises(Unsupported, match="no disks"):
        await driver.create(lab.machine("/bin/true", volumes=[volume(place, "")]))
    with pytest.raises(Invalid, match="two volumes"):
        await driver.create(lab.machine("/bin/true", volumes=[volume(place, "/a"), volume(place, "/a/")]))
    with pytest.raises(NotFound):
        await driver.create(lab.machine("/bin/true", volumes=[volume(lab.home.state / "gone", "/a")]))
    # A filesystem that shows no other owners: overlayfs.
    over = lab.home.state / "over"
    for name in ("low", "up", "work", "over"):
        (lab.home.state / name).mkdir()
    state = lab.home.state
    options = f"lowerdir={state}/low,upperdir={state}/up,workdir={state}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", str(over)], check=True, timeout=90)
    try:
        with pytest.raises(Unsupported, match="owners"):
            await driver.create(lab.machine("/bin/true", volumes=[volume(over, "/a")]))
    finally:
        subprocess.run(["umount", str(over)], check=True, timeout=90)
    assert await driver.inventory() == set()
