"""Volumes and layers of a VM whose guest is a Linux with our agent: one boot and one more, many questions."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests import linux_guest
from vm_lab import MIB, Lab

from lamella.host.compute.driver import DataDisk, Freezes, Limits, Machine, MountedVolume, OpensDisks
from lamella.host.compute.vm.driver import VmDriver
from lamella.host.storage.driver import Layer
from lamella.model.board import Board, Graphics
from lamella.model.errors import Conflict, Unsupported
from lamella.model.instance import Phase
from lamella.model.stream import ExecSpec, Exit, Stderr, Stdout

pytestmark = pytest.mark.root


@pytest.fixture(scope="session")
def linux_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asyncio.run(linux_guest.build(tmp_path_factory.mktemp("linux")))


def ext4(path: Path, size: int = 64 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "root_owner=0:0", str(path)], check=True, timeout=90)
    return path


def attached(path: Path, device: str, **more: Any) -> MountedVolume:
    fields: dict[str, Any] = {"target": f"/srv/{device}", "filesystem": "ext4", **more}
    return MountedVolume(name=device, id=f"vol_{device}", device=device, path=path, size=path.stat().st_size, **fields)


def new_layer(directory: Path, name: str, size: int) -> Layer:
    path = directory / f"{name}.qcow2"
    options = "cluster_size=128k,extended_l2=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(path), str(size)], check=True)
    return Layer(path=path, format="qcow2")


async def run(driver: VmDriver, id: str, command: str) -> tuple[int, str]:
    stream = await driver.exec(id, ExecSpec(command=["/bin/sh", "-c", command]))
    said, code = b"", -1
    try:
        async with asyncio.timeout(90):
            while (frame := await stream.receive()) is not None:
                match frame:
                    case Stdout(data) | Stderr(data):
                        said += data
                    case Exit():
                        code = frame.code
                    case _:
                        pass
    finally:
        await stream.close()
    return code, said.decode(errors="replace")


async def until(driver: VmDriver, id: str, name: str, words: str) -> None:
    """Wait until a mechanism says *words*."""
    async with asyncio.timeout(90):
        while not any(one.name == name and words in one.value for one in await driver.mechanisms(id)):
            await asyncio.sleep(0.2)


@pytest.fixture
async def machine(lab: Lab, driver: VmDriver, linux_disk: Path, tmp_path: Path) -> AsyncIterator[Machine]:
    cold = attached(ext4(tmp_path / "cold.raw"), "cold")
    disks = [DataDisk(name="more", volume=lab.volume())]
    board = Board(graphics=Graphics.NONE)
    machine = lab.machine(
        disk=linux_disk, board=board, volumes=[cold], disks=disks, limits=Limits(cpu=1000, memory=256 * MIB)
    )
    await driver.create(machine)
    await driver.start(machine.id)
    yield machine


async def test_volumes_come_and_go_and_layers_grow(
    lab: Lab, driver: VmDriver, machine: Machine, tmp_path: Path
) -> None:
    _freezes: Freezes = driver
    _opens: OpensDisks = driver
    id = machine.id
    seen = await driver.observe(id)
    assert seen is not None and seen.devices == machine.devices == ["cold", "more"]
    assert (await run(driver, id, "echo up"))[1] == "up\n"
    await until(driver, id, "volume cold", "ext4 at /srv/cold")
    assert (await run(driver, id, "echo kept >/srv/cold/file; sync; cat /srv/cold/file"))[1] == "kept\n"

    # Hot: mounted when the verb returns; a bare one is told from it; one that is in use does not go.
    hot = attached(ext4(tmp_path / "hot.raw"), "hot")
    bare = attached(ext4(tmp_path / "bare.raw"), "bare", target="", filesystem="")
    more = msgspec.structs.replace(machine, volumes=[*machine.volumes, hot, bare])
    await driver.rewire(more)
    seen = await driver.observe(id)
    assert seen is not None and seen.devices == more.devices == ["bare", "cold", "hot", "more"]
    assert (await run(driver, id, "echo new >/srv/hot/file && grep -c /srv/ /proc/mounts"))[1] == "2\n"
    facts = {one.name: one for one in await driver.mechanisms(id)}
    assert facts["volume hot"].in_force and "bare disk" in facts["volume bare"].value
    holder = asyncio.create_task(run(driver, id, "cd /srv/hot && sleep 8"))
    await asyncio.sleep(0.5)
    with pytest.raises(Conflict, match="uses"):
        await driver.rewire(machine)
    seen = await driver.observe(id)
    assert seen is not None and seen.devices == more.devices
    await holder
    await driver.rewire(machine)
    seen = await driver.observe(id)
    assert seen is not None and seen.devices == machine.devices
    subprocess.run(["e2fsck", "-fn", str(hot.path)], check=True, timeout=90, stdout=subprocess.DEVNULL)
    assert (await run(driver, id, "ls /srv/hot; grep -c /srv/ /proc/mounts"))[1] == "1\n"

    # Another daemon: what is mounted stays, and is known.
    await driver.close()
    await until(driver, id, "volume cold", "ext4 at /srv/cold")

    await a_larger_volume_is_seen(driver, id, machine.volumes[0])
    await a_freeze_ends_by_itself(driver, id)
    await layers_are_changed_at_one_instant(driver, machine, tmp_path)

    # The guest boots again by itself: the volume is where it was.
    await driver.reset(id)
    await asyncio.sleep(1)
    await until(driver, id, "volume cold", "bare disk: Lamella's agent")
    await until(driver, id, "volume cold", "ext4 at /srv/cold")
    assert (await run(driver, id, "cat /srv/cold/file"))[1] == "kept\n"

    # Started again over all that was laid over its disks meanwhile.
    await driver.stop(id, signal="SIGKILL", timeout=0)
    written = driver._places(id).machine()  # pyright: ignore[reportPrivateUsage]
    assert written is not None and written.disk is not None
    assert len(written.disk.below) == 4 and len(written.disks[0].volume.below) == 4
    await driver.create(written)
    await driver.start(id)
    code, said = await run(
        driver, id, "cat /data/marks; head -c 2 $(findfs_serial more)".replace("$(findfs_serial more)", FIND)
    )
    assert code == 0 and said.startswith("1\n2\n3\n4\n4"), said
    usage = await driver.usage(id)
    assert usage.disk_used is not None and usage.disk_used > 40 * MIB


FIND = '$(for d in /sys/block/vd*; do [ "$(cat $d/serial)" = more ] && echo /dev/${d##*/}; done)'


async def a_larger_volume_is_seen(driver: VmDriver, id: str, volume: MountedVolume) -> None:
    with volume.path.open("r+b") as file:
        file.truncate(96 * MIB)
    await driver.resized(id, volume.id, 96 * MIB)
    said = (await run(driver, id, "df -m /srv/cold | tail -1 | awk '{print $2}'"))[1]
    assert int(said) > 80


async def a_freeze_ends_by_itself(driver: VmDriver, id: str) -> None:
    begun = time.monotonic()
    assert await driver.freeze(id, 2.0) == 2  # the root partition and the volume
    write = asyncio.create_task(run(driver, id, "echo late >/data/late && sync"))
    assert (await write)[0] == 0 and time.monotonic() - begun > 1.9
    assert await driver.thaw(id) is False
    assert await driver.freeze(id, 60.0) == 2
    assert await driver.thaw(id) is True


async def layers_are_changed_at_one_instant(driver: VmDriver, machine: Machine, directory: Path) -> None:
    """Of both its own disks, four times, under a writer."""
    id, disk = machine.id, machine.disk
    assert disk is not None
    other = machine.disks[0].volume
    with pytest.raises(Unsupported):
        await driver.switch(id, {"vol_cold": new_layer(directory, "no", 64 * MIB)})
    script = "n=0; while [ ! -e /tmp/end ]; do echo $n >>/data/log || exit 9; sync -f /data; n=$((n+1)); done; echo $n"
    writer = asyncio.create_task(run(driver, id, script))
    for number in range(1, 5):
        mark = f"echo {number} >>/data/marks && sync && printf {number} | dd of={FIND} conv=notrunc,fsync 2>/dev/null"
        assert (await run(driver, id, mark))[0] == 0
        layers = {
            disk.id: new_layer(directory, f"root{number}", disk.size),
            other.id: new_layer(directory, f"more{number}", other.size),
        }
        await driver.switch(id, layers)
        await driver.switch(id, layers)
    seen = await driver.observe(id)
    assert seen is not None and seen.phase is Phase.RUNNING and seen.devices == machine.devices
    assert not writer.done()
    await run(driver, id, "touch /tmp/end")
    code, said = await writer
    assert code == 0
    lines = (await run(driver, id, "wc -l </data/log"))[1]
    assert lines == said and int(lines) > 8
    # What was before the second time is in the files that were written until then, and nothing later.
    node: dict[str, Any] = {"driver": "raw", "file": locked(other.path)}
    node = {"driver": "qcow2", "file": locked(directory / "more1.qcow2"), "backing": node}
    copied = directory / "second.raw"
    source = f"json:{msgspec.json.encode(node).decode()}"
    subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", source, str(copied)], check=True, timeout=90)
    assert copied.read_bytes()[:2] == b"2\0"
    # They are QEMU's: nobody else opens the one that is written.
    top = str(directory / "more4.qcow2")
    tried = subprocess.run(["qemu-img", "info", top], capture_output=True, text=True, check=False, timeout=90)
    assert tried.returncode != 0 and "lock" in tried.stderr


def locked(path: Path) -> dict[str, Any]:
    """A file that somebody else has open and writes no more."""
    return {"driver": "file", "filename": str(path), "locking": "off"}
