"""Processes killed at random moments: nothing that was acknowledged is lost, and everything is open again with the same ways in."""

import asyncio
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from process_lab import MIB, Writer, content, lost, overlay, raw, volume

from lamella.host.compute.driver import Home
from lamella.host.linux.processes import marked
from lamella.host.storage.blocks import Stack
from lamella.host.storage.driver import Layer
from lamella.host.storage.process import qsd
from lamella.host.storage.process.daemon import QemuStorageDaemon
from lamella.host.storage.process.disks import node_names
from lamella.host.storage.process.nodes import tag
from lamella.model.errors import LamellaError

CUTS = 12


async def settled(daemon: QemuStorageDaemon) -> None:
    end = time.monotonic() + 90
    while True:
        try:
            await daemon.ready()
            if daemon.revived:
                return
        except LamellaError:
            pass
        assert time.monotonic() < end, "it was not brought back"
        await asyncio.sleep(0.02)


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


async def test_a_crash_below_is_a_pause(daemon: QemuStorageDaemon, tmp_path: Path) -> None:
    """A writer on ext4 on a loop device over the file does not notice that ``disks`` was killed three times."""
    heard: list[str] = []
    daemon.on_event(lambda kind, id, text: heard.append(kind))
    stack = volume(tmp_path, size=128 * MIB)
    await daemon.add(stack)
    file = (await daemon.export("vol_a")).file
    assert file is not None
    point = tmp_path / "mnt"
    point.mkdir()
    await asyncio.to_thread(subprocess.run, ["mkfs.ext4", "-q", "-F", str(file)], check=True)
    await asyncio.to_thread(subprocess.run, ["mount", "-o", "loop", str(file), str(point)], check=True)
    try:
        (point / "data").write_bytes(b"")
        os.truncate(point / "data", 16 * MIB)
        writer = Writer(point / "data")
        await writer.go_on()
        for _ in range(3):
            kill(daemon.disks.process.pid)
            await settled(daemon)
            await writer.go_on(30)
        slowest = max(seconds for _, _, seconds in writer.rounds())
        acknowledged = await writer.stop()
        print("slowest round", slowest)
        assert not lost((point / "data").read_bytes(), acknowledged)
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", str(point)], check=True)
    assert heard.count("storage.restarted") == 3


async def test_a_crash_above_gives_the_same_ways_in(daemon: QemuStorageDaemon, tmp_path: Path) -> None:
    """Who has a descriptor of the file gets errors then; whoever opens it again finds all that was acknowledged."""
    stack = volume(tmp_path)
    await daemon.add(stack)
    file = (await daemon.export("vol_a")).file
    assert file is not None
    promised: dict[int, int] = {}
    for seed in range(3):
        writer = Writer(file, seed=seed)
        await writer.go_on()
        kill(daemon.doors.process.pid)
        await asyncio.to_thread(writer.process.wait, 20)
        await settled(daemon)
        acknowledged = await writer.stop()
        assert not lost(await asyncio.to_thread(file.read_bytes), acknowledged)
        promised = acknowledged
    assert promised


async def test_the_owner_dies_and_the_next_adopts(home: Home, tmp_path: Path) -> None:
    first = QemuStorageDaemon(home)
    await first.open()
    stack = volume(tmp_path)
    await first.add(stack)
    file = (await first.export("vol_a")).file
    assert file is not None
    writer = Writer(file)
    await writer.go_on()
    pids = marked(home.mark)
    # What SIGKILL leaves: nobody said good-bye, and something half done is written down.
    await first.close()
    second = QemuStorageDaemon(home)
    await second.open()
    try:
        assert await second.inventory() == {"vol_a"} and marked(home.mark) == pids
        assert (await second.export("vol_a")).file == file
        await writer.go_on()
        acknowledged = await writer.stop()
        kill(second.disks.process.pid)
        await settled(second)
        assert not lost(await asyncio.to_thread(file.read_bytes), acknowledged)
    finally:
        await second.end()


@pytest.mark.parametrize("who", ["disks", "owner"])
async def test_cuts(home: Home, tmp_path: Path, who: str) -> None:
    """Switch, merge and move in turn, each cut at a random moment: ``disks`` is killed, or the daemon forgets what it was doing.

    What was written to new clusters of a layer and not flushed yet goes with ``disks``, though a later flush succeeds (process.md).
    """
    chance = random.Random(who)
    daemon = QemuStorageDaemon(home)
    await daemon.open()
    stack = volume(tmp_path)
    await daemon.add(stack)
    file = (await daemon.export("vol_a")).file
    assert file is not None
    writer = Writer(file, pause=0.002)
    await writer.go_on()
    finished = 0
    unflushed: set[int] = set()
    try:
        for cut in range(CUTS):
            verb = ("switch", "switch", "merge", "mirror")[cut % 4]
            task = asyncio.create_task(_begin(daemon, verb, tmp_path, cut))
            await asyncio.sleep(chance.uniform(0, {"switch": 0.02, "merge": 0.15, "mirror": 0.3}[verb]))
            if who == "disks":
                unflushed |= writer.in_flight()
                kill(daemon.disks.process.pid)
                unflushed |= writer.in_flight()
                finished += await _outcome(task)
                await settled(daemon)
            else:
                # As if it had been killed: what it would still do does not happen.
                await daemon.close()
                finished += await _outcome(task)
                daemon = QemuStorageDaemon(home)
                await daemon.open()
            await writer.go_on(10)
        acknowledged = await writer.stop(unflushed)
        assert not lost(await asyncio.to_thread(file.read_bytes), acknowledged)
        node = daemon.opened["vol_a"].node
        await daemon.remove("vol_a")
        assert not lost(content(node), acknowledged)
        print(f"{CUTS} cuts, {finished} verbs had finished before")
    finally:
        if writer.process.poll() is None:
            await writer.stop()
        await daemon.end()


async def _begin(daemon: QemuStorageDaemon, verb: str, directory: Path, number: int) -> None:
    known = daemon.opened["vol_a"].node
    match verb:
        case "switch":
            await daemon.switch({"vol_a": overlay(directory / f"layer{number}", 64 * MIB)})
        case "merge" if "backing" in known:
            files = [(layer["file"]["filename"], layer["driver"]) for layer in (known, known["backing"])]
            upper, lower = (Layer(path=Path(path), format=format) for path, format in files)
            await daemon.merge("vol_a", upper, lower)
        case _:
            await daemon.mirror("vol_a", Stack(id="vol_a", node=raw(directory / f"moved{number}", 64 * MIB)))


async def _outcome(task: "asyncio.Task[Any]") -> int:
    try:
        await asyncio.wait_for(task, 90)
        return 1
    except LamellaError:
        return 0


@pytest.mark.parametrize("plain", [False, True])
async def test_what_a_killed_daemon_was_copying_is_closed_by_the_next(home: Home, tmp_path: Path, plain: bool) -> None:
    """Else its files stay locked for ever. What is open stays open, with its ways in and its writer."""
    first = QemuStorageDaemon(home)
    await first.open()
    await first.add(volume(tmp_path))
    file = (await first.export("vol_a")).file
    assert file is not None
    writer = Writer(file)
    await writer.go_on()
    source, target = volume(tmp_path, "vol_b"), volume(tmp_path, "vol_c", key=b"k" * 32 if plain else b"")
    if plain:
        await first.make_luks(target)
        target = Stack(id="vol_c", node=raw(tmp_path / "vol_c.raw", 96 * MIB), key=target.key)
    (tmp_path / "vol_b.raw").write_bytes(os.urandom(64 * MIB))
    task = asyncio.create_task(first.copy(source, target, speed=4 * MIB))
    monitor = first.doors.monitor if plain else first.disks.monitor
    async with asyncio.timeout(90):
        while not await monitor.ask(list[object], "query-jobs"):
            await asyncio.sleep(0.01)
    await first.close()
    assert await _outcome(task) == 0
    second = QemuStorageDaemon(home)
    await second.open()
    try:
        for process, kinds in ((second.disks, {"fmt", "own", "prt"}), (second.doors, {"hol", "nbd", "top"})):
            left = {name for name in await node_names(process.monitor) if not name.startswith("#")}
            assert left == {name for name in left if tag("vol_a") in name}
            assert {name[:3] for name in left} == kinds
            assert not await process.monitor.ask(list[object], "query-jobs")
        for path in ("vol_b.raw", "vol_c.raw"):
            # With the lock: nobody has it open.
            argv = ["qemu-io", "-f", "raw", "-c", "write 0 512", str(tmp_path / path)]
            await asyncio.to_thread(subprocess.run, argv, check=True, timeout=90)
        await writer.go_on()
        acknowledged = await writer.stop()
        assert not lost(await asyncio.to_thread(file.read_bytes), acknowledged)
    finally:
        await second.end()


async def test_a_process_that_was_left_without_its_server_gets_one(home: Home, tmp_path: Path) -> None:
    """The daemon was killed when ``disks`` had begun, and did not serve yet."""
    first = QemuStorageDaemon(home)
    assert await first.open() == ""
    await first.ready()
    await first.disks.monitor.execute("nbd-server-stop")
    await first.close()
    second = QemuStorageDaemon(home)
    assert await second.open() == ""
    try:
        await second.add(volume(tmp_path))
        assert (await second.export("vol_a")).file is not None
        await second.remove("vol_a")
    finally:
        await second.end()


async def test_who_was_slowed_down_for_a_job_of_a_killed_daemon_is_not_by_the_next(home: Home, tmp_path: Path) -> None:
    first = QemuStorageDaemon(home)
    assert await first.open() == ""
    await first.add(volume(tmp_path))
    file = (await first.export("vol_a")).file
    assert file is not None
    await first.regroup("vol_a", pressed=3)
    # Its doors have to find the group of what is pressed, too.
    kill(first.doors.process.pid)
    await settled(first)
    assert await group(first) == f"prs-{tag('vol_a')}"
    await first.close()
    second = QemuStorageDaemon(home)
    assert await second.open() == ""
    assert second.opened["vol_a"].pressed == 0
    assert await group(second) == f"grp-{tag('vol_a')}"
    await second.end()


async def group(daemon: QemuStorageDaemon) -> str:
    """In which the volume's requests are counted."""
    found = await daemon.doors.monitor.ask(list[dict[str, Any]], "query-named-block-nodes", {"flat": True})
    (top,) = [node for node in found if node["node-name"] == f"top-{tag('vol_a')}"]
    return json.loads(top["file"].removeprefix("json:"))["throttle-group"]


async def test_one_that_hangs_is_ended_and_begun_again(
    daemon: QemuStorageDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qsd, "_HANGS_STILL", 1.0)
    await daemon.add(volume(tmp_path))
    file = (await daemon.export("vol_a")).file
    assert file is not None
    assert not await daemon.end_hung()
    for process in (daemon.disks.process, daemon.doors.process):
        hung = process.pid
        assert hung is not None
        os.kill(hung, signal.SIGSTOP)
        assert await daemon.end_hung()
        await settled(daemon)
        assert process.pid not in (None, hung)
        assert await asyncio.to_thread(file.exists)
        assert await daemon.size("vol_a") > 0
