"""New layers, merges, moves and copies of volumes that are written meanwhile."""

import asyncio
import base64
import json
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from process_lab import MIB, Writer, content, lost, overlay, raw, volume

from lamella.host.storage.blocks import Stack
from lamella.host.storage.driver import Extent, Layer, Node
from lamella.host.storage.process import nodes
from lamella.host.storage.process.daemon import QemuStorageDaemon
from lamella.host.storage.qemu_img import written_by_somebody
from lamella.model.errors import Unavailable
from lamella.model.storage import IoLimits
from slow_disk import SlowDisk

KEY, OTHER = os.urandom(32), os.urandom(32)


async def written(daemon: QemuStorageDaemon, stack: Stack, **options: float) -> Writer:
    await daemon.add(stack)
    file = (await daemon.export(stack.id)).file
    assert file is not None
    writer = Writer(file, **options)  # pyright: ignore[reportArgumentType]
    await writer.go_on()
    return writer


async def test_layers_come_and_go_under_a_writer(daemon: QemuStorageDaemon, tmp_path: Path) -> None:
    stacks = [volume(tmp_path, id) for id in ("vol_a", "vol_b")]
    writers = [await written(daemon, stack) for stack in stacks]
    bottom = {stack.id: Layer(path=tmp_path / f"{stack.id}.raw", format="raw") for stack in stacks}
    made = [{stack.id: overlay(tmp_path / f"{stack.id}.{n}", 64 * MIB) for stack in stacks} for n in (1, 2, 3)]
    pauses: list[float] = []
    for layers in made:
        pauses.append(await daemon.switch(layers))
        assert await daemon.switch(layers) == 0
        for writer in writers:
            await writer.go_on()
    print("pauses", pauses)
    told: list[tuple[int, int]] = []
    # One in the middle, the one that is written, and the rest.
    await daemon.merge("vol_a", made[1]["vol_a"], made[0]["vol_a"], lambda done, total: told.append((done, total)))
    await daemon.merge("vol_a", made[1]["vol_a"], made[0]["vol_a"])
    await daemon.merge("vol_a", made[2]["vol_a"], made[0]["vol_a"])
    await daemon.merge("vol_a", made[0]["vol_a"], bottom["vol_a"])
    assert told
    assert nodes.paths(daemon.opened["vol_a"].node) == [str(tmp_path / "vol_a.raw")]
    for writer in writers:
        await writer.go_on()
    acknowledged = [await writer.stop() for writer in writers]
    ends = [daemon.opened[stack.id].node for stack in stacks]
    for stack, node, promised in zip(stacks, ends, acknowledged, strict=True):
        await daemon.remove(stack.id)
        assert not lost(content(node), promised)


@pytest.mark.parametrize("key", [b"", KEY], ids=["plain", "encrypted"])
async def test_a_volume_moves_under_a_writer(daemon: QemuStorageDaemon, tmp_path: Path, key: bytes) -> None:
    stack = volume(tmp_path, size=64 * MIB, key=key)
    target = Stack(id="vol_a", node=raw(tmp_path / "elsewhere.raw", 64 * MIB), key=key)
    if key:
        await daemon.make_luks(stack)
    writer = await written(daemon, stack)
    await daemon.mirror("vol_a", target, lambda done, total: None)
    await writer.go_on()
    acknowledged = await writer.stop()
    assert await daemon.size("vol_a") == 64 * MIB - (daemon.luks_overhead if key else 0)
    file = (await daemon.export("vol_a")).file
    assert file is not None
    assert not lost(await asyncio.to_thread(file.read_bytes), acknowledged)
    await daemon.remove("vol_a")
    if not key:
        assert not lost(content(target.node), acknowledged)


async def test_a_move_that_fails_or_is_cancelled_changes_nothing(daemon: QemuStorageDaemon, tmp_path: Path) -> None:
    stack = volume(tmp_path)
    writer = await written(daemon, stack)
    small = Stack(id="vol_a", node=raw(tmp_path / "small.raw", 4 * MIB))
    with pytest.raises(Unavailable):
        await daemon.mirror("vol_a", small)
    other = Stack(id="vol_a", node=raw(tmp_path / "other.raw", 64 * MIB))
    moving = asyncio.create_task(daemon.mirror("vol_a", other, speed=MIB))
    await asyncio.sleep(0.5)
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    await writer.go_on()
    acknowledged = await writer.stop()
    await daemon.remove("vol_a")
    assert not lost(content(stack.node), acknowledged)


async def test_writers_are_limited_and_held_while_a_volume_moves(daemon: QemuStorageDaemon, tmp_path: Path) -> None:
    stack = volume(tmp_path)
    await asyncio.to_thread((tmp_path / "vol_a.raw").write_bytes, os.urandom(64 * MIB))
    writer = await written(daemon, stack)
    target = Stack(id="vol_a", node=raw(tmp_path / "elsewhere.raw", 64 * MIB))
    begun = asyncio.Event()
    moving = asyncio.create_task(daemon.mirror("vol_a", target, lambda done, total: begun.set(), speed=4 * MIB))
    await begun.wait()
    await daemon.hold(["vol_a"])
    assert not moving.done(), "it was held while the move went on, not after it"
    before = len(writer.rounds())
    await asyncio.sleep(2)
    assert len(writer.rounds()) - before <= 3
    limits = IoLimits(iops=4000)
    await daemon.limit("vol_a", limits)
    await daemon.release(["vol_a"])
    assert not moving.done()
    await moving
    opened = daemon.known("vol_a")
    assert (opened.limits, opened.held, opened.node) == (limits, False, target.node), "neither undoes the other"
    await writer.go_on()
    acknowledged = await writer.stop()
    await daemon.remove("vol_a")
    assert not lost(content(target.node), acknowledged)


async def test_copies_are_of_one_instant(daemon: QemuStorageDaemon, tmp_path: Path) -> None:
    stack = volume(tmp_path)
    writer = await written(daemon, stack)
    before = {place: number for number, places, _ in writer.rounds() for place in places}
    target = Stack(id="vol_c", node=raw(tmp_path / "copy.raw", 96 * MIB))
    assert await daemon.copy(stack, target, speed=32 * MIB) == 64 * MIB
    await writer.go_on()
    await writer.stop()
    data = content(target.node)
    assert len(data) == 96 * MIB and not lost(data, before)
    await daemon.remove("vol_a")
    assert not list((tmp_path / "home").rglob("*#*"))


async def test_parts_are_copied_and_mapped(daemon: QemuStorageDaemon, tmp_path: Path) -> None:
    stack = volume(tmp_path)
    with (tmp_path / "vol_a.raw").open("r+b") as file:
        for place in (0, 8, 40):
            file.seek(place * MIB)
            file.write(os.urandom(MIB))
    mapped = await daemon.map(stack)
    data = [(extent.offset // MIB, extent.length // MIB) for extent in mapped if not extent.zero]
    assert data == [(0, 1), (8, 1), (40, 1)] and sum(extent.length for extent in mapped) == 64 * MIB
    target = Stack(id="vol_c", node=raw(tmp_path / "copy.raw", 64 * MIB))
    parts = [Extent(offset=8 * MIB, length=MIB), Extent(offset=40 * MIB, length=2 * MIB)]
    assert await daemon.copy(stack, target, extents=parts) == 3 * MIB
    origin, copied = content(stack.node), content(target.node)
    assert copied[8 * MIB : 9 * MIB] == origin[8 * MIB : 9 * MIB] and copied[40 * MIB :] == origin[40 * MIB :]
    assert not any(copied[: 8 * MIB]) and (tmp_path / "copy.raw").stat().st_blocks * 512 < 4 * MIB
    await daemon.add(stack)
    assert await daemon.map(stack) == mapped


@pytest.mark.parametrize("key", [b"", KEY], ids=["plain", "luks"])
async def test_holes_stay_holes(daemon: QemuStorageDaemon, tmp_path: Path, key: bytes) -> None:
    """In a new target, in one that is full of something else, where they have to be zeros, and when an open volume moves."""
    size = 96 * MIB
    stack = volume(tmp_path, size=size, key=key)
    if key:
        await daemon.make_luks(stack)
    with (tmp_path / "vol_a.raw").open("r+b") as file:
        for place in (4, 50, 95):
            file.seek(place * MIB)
            file.write(os.urandom(MIB))
    fresh = Stack(id="vol_c", node=raw(tmp_path / "fresh.raw", size), key=key)
    used = Stack(id="vol_d", node=raw(tmp_path / "used.raw", size), key=key)
    with (tmp_path / "used.raw").open("r+b") as file:
        for _ in range(32):
            file.write(os.urandom(MIB))
    larger = Stack(id="vol_e", node=raw(tmp_path / "larger.raw", 2 * size), key=key)
    for target, name in ((fresh, "fresh"), (used, "used"), (larger, "larger")):
        assert await daemon.copy(stack, target) == size
        assert _taken(tmp_path / f"{name}.raw") < 8 * MIB, name
        assert content(target.node)[:size] == content(stack.node), name
    await daemon.add(stack)
    assert (await daemon.export("vol_a")).file
    moved = Stack(id="vol_a", node=raw(tmp_path / "moved.raw", size), key=key)
    await daemon.mirror("vol_a", moved)
    await daemon.remove("vol_a")
    assert _taken(tmp_path / "moved.raw") < 8 * MIB
    assert content(moved.node) == content(stack.node)


@pytest.mark.parametrize("key", [b"", KEY], ids=["plain", "luks"])
async def test_what_lies_in_lower_layers_is_copied(daemon: QemuStorageDaemon, tmp_path: Path, key: bytes) -> None:
    """All of it, and parts of it; holes stay holes."""
    stack = volume(tmp_path, key=key)
    if key:
        await daemon.make_luks(stack)
    node, data = stack.node, os.urandom(MIB)
    (tmp_path / "data").write_bytes(data)
    for number, place in enumerate((8, 20, 40)):
        _fill(node, tmp_path / "data", place)
        node = nodes.over(node, overlay(tmp_path / f"layer-{number}", 64 * MIB))
    source = Stack(id="vol_a", node=node, key=key, read_only=True)
    whole = Stack(id="vol_c", node=raw(tmp_path / "whole.raw", 64 * MIB), key=key)
    assert await daemon.copy(source, whole) == 64 * MIB
    assert content(whole.node) == content(node)
    assert _taken(tmp_path / "whole.raw") < 8 * MIB
    larger = Stack(id="vol_d", node=raw(tmp_path / "larger.raw", 80 * MIB), key=key)
    await daemon.copy(source, larger)
    assert content(larger.node)[: 64 * MIB] == content(node)
    parts = Stack(id="vol_e", node=raw(tmp_path / "parts.raw", 64 * MIB), key=key)
    shift = daemon.luks_overhead if key else 0
    extents = [Extent(offset=place * MIB - shift, length=MIB) for place in (8, 40)]
    await daemon.copy(source, parts, extents=extents)
    copied = content(parts.node)
    for place in (8, 40):
        assert copied[place * MIB : (place + 1) * MIB] == data
    assert not any(copied[20 * MIB : 21 * MIB])


def _fill(node: Node, data: Path, place: int) -> None:
    """The bytes of *data* at *place* MiB."""
    image = "json:" + json.dumps(node)
    subprocess.run(["qemu-io", "-c", f"write -s {data} {place}M 1M", "-c", "flush", image], check=True, timeout=90)


def _taken(path: Path) -> int:
    return path.stat().st_blocks * 512


async def test_keys(daemon: QemuStorageDaemon, tmp_path: Path) -> None:
    stack = volume(tmp_path, size=64 * MIB, key=KEY)
    await daemon.make_luks(stack)
    await daemon.add(stack)
    file = (await daemon.export("vol_a")).file
    assert file is not None and file.stat().st_size == 64 * MIB - daemon.luks_overhead
    secret = b"a secret that is on no disk" * 100
    await asyncio.to_thread(file.open("r+b").write, secret)
    copied = Stack(id="vol_c", node=raw(tmp_path / "copy.raw", 64 * MIB), key=OTHER)
    await daemon.make_luks(copied)
    await daemon.flush(["vol_a"])
    await daemon.copy(stack, copied)
    await daemon.remove("vol_a")
    assert secret[:27] not in (tmp_path / "vol_a.raw").read_bytes()
    await daemon.rekey(stack, OTHER)
    await daemon.rekey(stack, OTHER)
    with pytest.raises(Unavailable):
        await daemon.add(stack)
    for opened in (Stack(id="vol_a", node=stack.node, key=OTHER), copied):
        await daemon.add(opened)
        file = (await daemon.export(opened.id)).file
        assert file is not None
        assert (await asyncio.to_thread(file.read_bytes))[: len(secret)] == secret
    secrets = (KEY, KEY.hex().encode(), base64.b64encode(KEY))
    for path in (*(tmp_path / "home").rglob("*.json"), *(tmp_path / "home").rglob("*.log")):
        assert not any(secret in path.read_bytes() for secret in secrets)


async def test_a_copy_that_is_cancelled_at_any_moment_leaves_nothing_open(
    daemon: QemuStorageDaemon, tmp_path: Path
) -> None:
    source, target = (volume(tmp_path, id, size=8 * MIB) for id in ("vol_a", "vol_b"))
    file = tmp_path / "vol_b.raw"
    began = time.perf_counter()
    await daemon.copy(source, target, None)
    whole = time.perf_counter() - began
    cut = 0
    for number in range(60):
        task = asyncio.create_task(daemon.copy(source, target, None))
        await asyncio.sleep(number / 60 * whole)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        cut += task.cancelled()
        assert not written_by_somebody(file), f"after {number / 60 * whole * 1000:.1f} ms"
    assert cut


async def test_a_write_in_flight_where_a_mirror_begins_to_copy_is_on_its_target(
    daemon: QemuStorageDaemon, tmp_path: Path
) -> None:
    """The mirror reads what the write is about to change, and is slower than the write, on both sides."""
    disks = {
        "old": SlowDisk(tmp_path / "old", 64 * MIB, reads=0.4, writes=0.1),
        "new": SlowDisk(tmp_path / "new", 64 * MIB, zeros=0.3),
    }
    servers = [await disk.serve() for disk in disks.values()]
    stacks = {
        name: Stack(
            id="vol_a",
            node={
                "driver": "raw",
                "file": {"driver": "nbd", "server": {"type": "unix", "path": str(disk.socket)}},
            },
        )
        for name, disk in disks.items()
    }
    await daemon.add(stacks["old"])
    file = (await daemon.export("vol_a")).file
    assert file is not None
    writer = Writer(file, blocks=2000)
    await writer.go_on(2)
    await daemon.mirror("vol_a", stacks["new"])
    await writer.go_on(2)
    assert daemon.opened["vol_a"].pressed == 0
    acknowledged = await writer.stop()
    await daemon.remove("vol_a")
    for server in servers:
        server.close()
    assert len(acknowledged) > 16
    assert not lost(bytes(disks["new"].content), acknowledged)
