"""Volumes of a microVM, its disk as a chain of layers, and its file systems held still: two boots."""

import asyncio
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
from microvm_lab import MIB, Lab, run

from lamella.host.compute.driver import Freezes, MountedVolume, OpensDisks
from lamella.host.compute.microvm.driver import MicrovmDriver
from lamella.host.storage.driver import Layer, VolumeHandle
from lamella.model.errors import Unsupported
from lamella.model.instance import Phase

pytestmark = pytest.mark.root


def ext4(path: Path, size: int = 64 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "root_owner=0:0", str(path)], check=True, timeout=90)
    return path


def attached(path: Path, device: str, **more: object) -> MountedVolume:
    fields = {"target": f"/srv/{device}", "filesystem": "ext4", **more}
    return msgspec.convert(
        {"name": device, "id": f"vol_{device}", "device": device, "path": path, "size": path.stat().st_size, **fields},
        MountedVolume,
        dec_hook=lambda kind, value: value,
    )


def new_layer(directory: Path, number: int, size: int) -> Layer:
    path = directory / f"layer{number}.qcow2"
    options = "cluster_size=128k,extended_l2=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(path), str(size)], check=True)
    return Layer(path=path, format="qcow2")


async def test_volumes_layers_and_a_freeze(lab: Lab, driver: MicrovmDriver, tmp_path: Path) -> None:
    _freezes: Freezes = driver
    _opens: OpensDisks = driver
    data, shown = ext4(tmp_path / "data.raw"), ext4(tmp_path / "shown.raw")
    bare = tmp_path / "bare.raw"
    bare.write_bytes(b"bare bytes".ljust(MIB, b"\0"))
    machine = lab.machine(
        "/bin/sh",
        "-c",
        "while :; do date +%s%N >>/log; sleep 0.02; done",
        volumes=[
            attached(data, "data"),
            attached(shown, "shown", read_only=True),
            attached(bare, "bare", target="", filesystem=""),
        ],
    )
    id = machine.id
    await driver.create(machine)
    await driver.start(id)
    assert await run(driver, id, "sh", "-c", "echo kept >/srv/data/file && cat /srv/data/file") == (0, "kept\n")
    code, said = await run(driver, id, "sh", "-c", "echo no >/srv/shown/file")
    assert code != 0 and "Read-only" in said
    find = "for d in /sys/block/vd*; do [ $(cat $d/serial) = bare ] && head -c 10 /dev/${d##*/}; done; true"
    assert await run(driver, id, "sh", "-c", find) == (0, "bare bytes")
    facts = {one.name: one for one in await driver.mechanisms(id)}
    assert facts["volume data"].value == "ext4 at /srv/data, read and write" and facts["volume data"].in_force
    assert facts["volume shown"].in_force and "bare disk" in facts["volume bare"].value

    await a_freeze_ends_by_itself(driver, id)
    await the_guest_sees_a_larger_volume(driver, id, data)
    machine = await layers_are_changed_under_a_writer(lab, driver, machine, tmp_path)

    # Again, over all five layers; another daemon's record says what they are.
    written = driver._places(id).machine()  # pyright: ignore[reportPrivateUsage]
    assert written is not None and written.disk is not None and len(written.disk.below) == 4
    await driver.stop(id, signal="SIGTERM", timeout=1)
    for path in (data, shown):
        subprocess.run(["e2fsck", "-fn", str(path)], check=True, timeout=90, stdout=subprocess.DEVNULL)
    await driver.create(msgspec.structs.replace(machine, disk=written.disk))
    await driver.start(id)
    code, said = await run(driver, id, "sh", "-c", "cat /marks /srv/data/file")
    assert said == "1\n2\n3\n4\nkept\n"
    usage = await driver.usage(id)
    assert usage.disk_used is not None and usage.disk_used > 1 * MIB


async def a_freeze_ends_by_itself(driver: MicrovmDriver, id: str) -> None:
    """Its own disk and the volume that may be written; a write waits, and goes on at the deadline though nobody thaws."""
    begun = time.monotonic()
    assert await driver.freeze(id, 2.0) == 2
    write = asyncio.create_task(run(driver, id, "sh", "-c", "echo late >/srv/data/late && sync -f /srv/data/late"))
    assert (await write)[0] == 0 and time.monotonic() - begun > 1.9
    assert await driver.thaw(id) is False
    assert await driver.freeze(id, 60.0) == 2
    assert await driver.thaw(id) is True
    assert (await run(driver, id, "sh", "-c", "echo on >/srv/data/on"))[0] == 0


async def the_guest_sees_a_larger_volume(driver: MicrovmDriver, id: str, data: Path) -> None:
    with data.open("r+b") as file:
        file.truncate(96 * MIB)
    await driver.resized(id, "vol_data", 96 * MIB)
    _, said = await run(driver, id, "sh", "-c", "df -m /srv/data | tail -1 | awk '{print $2}'")
    assert int(said) > 80


async def layers_are_changed_under_a_writer(lab: Lab, driver: MicrovmDriver, machine, directory: Path):  # type: ignore[no-untyped-def]
    """Four times; each snapshot holds what was there when it was made."""
    id, disk = machine.id, machine.disk
    with pytest.raises(Unsupported):
        await driver.switch(id, {"vol_unknown": new_layer(directory, 0, disk.size)})
    for number in range(1, 5):
        assert (await run(driver, id, "sh", "-c", f"echo {number} >>/marks && sync"))[0] == 0
        layer = new_layer(directory, number, disk.size)
        await driver.switch(id, {disk.id: layer})
        await driver.switch(id, {disk.id: layer})
    seen = await driver.observe(id)
    assert seen is not None and seen.phase is Phase.RUNNING
    # The writer inside never saw a failure, and goes on.
    _, before = await run(driver, id, "sh", "-c", "wc -l </log")
    async with asyncio.timeout(90):
        while int((await run(driver, id, "sh", "-c", "wc -l </log"))[1]) <= int(before):
            await asyncio.sleep(0.1)
    # A copy of the chain up to the second snapshot: the raw disk and the first layer.
    raw = directory / "second.raw"
    chain = VolumeHandle(id="x", form=disk.form, path=disk.path, size=disk.size)
    assert marks_of(chain.path, raw, directory / "layer1.qcow2") == "1\n2\n"
    return machine


def marks_of(base: Path, target: Path, *layers: Path) -> str:
    """The file /marks of the writable layer in a chain that is open elsewhere: nothing of it is written any more."""
    node = {"driver": "raw", "file": {"driver": "file", "filename": str(base), "locking": "off"}}
    for layer in layers:
        file = {"driver": "file", "filename": str(layer), "locking": "off"}
        node = {"driver": "qcow2", "file": file, "backing": node}
    source = f"json:{msgspec.json.encode(node).decode()}"
    subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", source, str(target)], check=True, timeout=90)
    subprocess.run(["e2fsck", "-fy", str(target)], check=False, timeout=90, stdout=subprocess.DEVNULL)
    said = subprocess.run(
        ["debugfs", "-R", "cat /upper/marks", str(target)], capture_output=True, text=True, check=True, timeout=90
    )
    return said.stdout
