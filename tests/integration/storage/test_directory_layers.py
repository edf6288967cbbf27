"""Layers of a volume that is open: a storage daemon writes while snapshots are begun, given up, and merged away below it."""

import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lamella.host.storage.directory import DirectoryDriver
from lamella.host.storage.driver import Layer, Layered, Node, Source
from lamella.model.errors import Conflict
from lamella.model.ids import new_id
from lamella.model.storage import VolumeForm

MIB = 1 << 20


class Daemon:
    """A qemu-storage-daemon with one volume open, spoken to over its standard input."""

    def __init__(self, scratch: Path, node: Node) -> None:
        self.socket = scratch / "nbd.sock"
        self._process = subprocess.Popen(
            ["qemu-storage-daemon", "--chardev", "stdio,id=m", "--monitor", "chardev=m"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._read()
        self.call("qmp_capabilities")
        self.call("blockdev-add", **node, **{"node-name": "layer0"})
        self.call("nbd-server-start", addr={"type": "unix", "data": {"path": str(self.socket)}})
        self.call("block-export-add", type="nbd", id="e", name="v", writable=True, **{"node-name": "layer0"})
        self.top = "layer0"
        self.nodes = {node_path(node): "layer0"}

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def call(self, verb: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"execute": verb, "arguments": arguments}) + "\n")
        while True:
            answer = self._read()
            if "return" in answer or "error" in answer:
                assert "error" not in answer, answer
                return answer["return"]

    def switch(self, layer: Layer) -> None:
        name = f"layer{len(self.nodes)}"
        file = {"driver": "file", "filename": str(layer.path)}
        self.call("blockdev-add", driver="qcow2", file=file, backing=None, **{"node-name": name})
        self.call("blockdev-snapshot", node=self.top, overlay=name)
        self.top = name
        self.nodes[str(layer.path)] = name

    def merge(self, upper: Layer, lower: Layer) -> None:
        names = {"top-node": self.nodes[str(upper.path)], "base-node": self.nodes[str(lower.path)]}
        self.call("block-commit", device=self.top, **{"job-id": "merge", **names})
        while self.call("query-block-jobs"):
            pass
        # A node whose file is gone would end the daemon at its next commit.
        self.call("blockdev-del", **{"node-name": self.nodes[str(upper.path)]})

    def io(self, *commands: str) -> None:
        url = f"nbd+unix:///v?socket={self.socket}"
        given = [part for command in commands for part in ("-c", command)]
        done = subprocess.run(["qemu-io", "-f", "raw", *given, url], capture_output=True, text=True, timeout=90)
        assert done.returncode == 0 and "failed" not in done.stdout, done

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(90)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(90)


def node_path(node: Node) -> str:
    while "filename" not in node:
        node = node.get("file") or node["image"]
    return node["filename"]


def io(node: Node, *commands: str) -> None:
    given = [part for command in commands for part in ("-c", command)]
    done = subprocess.run(
        ["qemu-io", "-r", *given, f"json:{json.dumps(node)}"], capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0 and "failed" not in done.stdout + done.stderr, done


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[DirectoryDriver]:
    pool = DirectoryDriver(tmp_path / "pool")
    await pool.open()
    pool.blocks.shares = False
    yield pool
    await pool.close()


@pytest.fixture
async def id(pool: DirectoryDriver) -> str:
    id = new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 16 * MIB)
    return id


@pytest.fixture
async def daemon(pool: DirectoryDriver, id: str, tmp_path: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon(tmp_path, await pool.node(id))
    yield daemon
    daemon.close()


def test_it_is_layered(pool: DirectoryDriver) -> None:
    assert isinstance(pool, Layered)


async def test_snapshots_of_an_open_volume_and_their_merging(pool: DirectoryDriver, id: str, daemon: Daemon) -> None:
    first, second = new_id("snapshot"), new_id("snapshot")
    daemon.io("write -P 1 0 2M", "flush")
    layer = await pool.begin_layer(id, first)
    assert await pool.begin_layer(id, first) == layer
    daemon.switch(layer)
    daemon.io("write -P 2 0 1M", "flush")
    daemon.switch(await pool.begin_layer(id, second))
    daemon.io("write -P 3 0 512k", "flush")
    assert await pool.snapshots(id) == [first, second]
    assert [each.format for each in await pool.chain(id)] == ["qcow2", "qcow2", "raw"]
    changed = await pool.delta(id, first, second)
    assert changed is not None and sum(extent.length for extent in changed) == MIB

    pair = await pool.mergeable(id, first)
    assert pair is not None and pair[1].path.name == "disk.raw"
    assert await pool.snapshots(id) == [second], "what is being merged is no snapshot any more"
    daemon.merge(*pair)
    await pool.merged(id, first)
    assert await pool.mergeable(id, first) is None
    assert not pair[0].path.exists() and len(await pool.chain(id)) == 2
    daemon.io("read -P 3 0 512k", "read -P 2 512k 512k", "read -P 1 1M 1M", "write -P 4 4M 64k")

    assert await pool.mergeable(id, second) is None, "the layer that is written is not merged"
    daemon.switch(await pool.begin_layer(id, ""))
    pair = await pool.mergeable(id, second)
    assert pair is not None
    daemon.merge(*pair)
    await pool.merged(id, second)
    daemon.io("write -P 5 5M 64k", "flush")
    daemon.kill()
    again = DirectoryDriver(pool.path)
    await again.open()
    wanted = ["read -P 3 0 512k", "read -P 2 512k 512k", "read -P 1 1M 1M", "read -P 4 4M 64k", "read -P 5 5M 64k"]
    io(await again.node(id), *wanted)
    assert await again.check(repair=True) == []
    assert len(await again.chain(id)) == 1
    io(await again.node(id), *wanted)
    await again.close()


async def test_what_is_open_is_neither_restored_nor_resized(pool: DirectoryDriver, id: str, daemon: Daemon) -> None:
    snapshot = new_id("snapshot")
    daemon.switch(await pool.begin_layer(id, snapshot))
    daemon.io("write -P 2 0 64k", "flush")
    for verb in (pool.restore(id, snapshot), pool.resize(id, 32 * MIB)):
        with pytest.raises(Conflict, match="is open"):
            await verb
    # A snapshot can be let go at any time: its layer is merged when that can be.
    await pool.drop(id, snapshot)
    assert await pool.snapshots(id) == [] and len(await pool.chain(id)) == 2
    daemon.io("read -P 2 0 64k")
    daemon.close()
    assert await pool.check(repair=True) == []
    assert len(await pool.chain(id)) == 1
    io(await pool.node(id), "read -P 2 0 64k")


async def test_layers_that_a_clone_reads_are_left_alone(pool: DirectoryDriver, id: str, daemon: Daemon) -> None:
    taken = [new_id("snapshot") for _ in range(3)]
    for number, snapshot in enumerate(taken, start=1):
        daemon.io(f"write -P {number} 0 {MIB}", "flush")
        daemon.switch(await pool.begin_layer(id, snapshot))
    clone = new_id("volume")
    await pool.create(clone, VolumeForm.BLOCK, 0, source=Source(volume=id, snapshot=taken[1]))
    with pytest.raises(Conflict, match=clone):
        await pool.mergeable(id, taken[1])
    assert await pool.mergeable(id, taken[0]) is None, "it is below what the clone reads"
    assert await pool.snapshots(id) == taken[1:]
    io(await pool.node(clone), f"read -P 2 0 {MIB}")
    await pool.delete(clone)
    pair = await pool.mergeable(id, taken[1])
    while pair is not None:
        daemon.merge(*pair)
        await pool.merged(id, taken[1])
        pair = await pool.mergeable(id, taken[1])
    assert len(await pool.chain(id)) == 2
    io(await pool.node(id, taken[2]), f"read -P 3 0 {MIB}")


async def test_a_resize_by_the_daemon_is_found_after_a_crash(pool: DirectoryDriver, id: str, daemon: Daemon) -> None:
    daemon.switch(await pool.begin_layer(id, new_id("snapshot")))
    # An NBD export does not let its node grow.
    daemon.call("block-export-del", id="e")
    while daemon.call("query-block-exports"):
        pass
    daemon.call("block_resize", size=32 * MIB, **{"node-name": daemon.top})
    daemon.call("block-export-add", type="nbd", id="e", name="v", writable=True, **{"node-name": daemon.top})
    daemon.io("write -P 7 31M 1M", "flush")
    daemon.kill()
    again = DirectoryDriver(pool.path)
    await again.open()
    assert (await again.handle(id)).size == 32 * MIB
    io(await again.node(id), "read -P 7 31M 1M")
    await again.close()
