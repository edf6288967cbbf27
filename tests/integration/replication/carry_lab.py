"""Two pools of one home, a writer that remembers what was acknowledged, and a daemon that can be killed."""

import asyncio
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from carry_child import Order
from volumes_lab import MIB, VolumesLab, new_volume

from lamella.host.storage.directory import DirectoryDriver
from lamella.host.storage.driver import Node
from lamella.host.storage.replication.journal import Journal
from lamella.model.instance import Isolation
from lamella.model.replication import Replication, ReplicationMode, ReplicationSpec, ReplicationStatus
from lamella.model.replication_requests import EndReplication, ObserveReplications, Promote, Replicate
from lamella.model.resource import new_resource
from lamella.model.storage import Pool, PoolSpec, PoolStatus, Volume, VolumeStatus
from lamella.model.storage_requests import AnyStorageRequest

HERE = Path(__file__).parent
BLOCK = 4096
RECORD = struct.Struct(">Qd")
SIZE = 64 * MIB
BLOCKS = 3000


class CarryLab(VolumesLab):
    """The pool ``far`` lies beside the default one. ``place`` is for files of the test."""

    async def begin(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="log-", dir=self.home.path))
        self.far_path = self.home.path / "far"
        spec = PoolSpec(driver="directory", path=str(self.far_path))
        self.far: Pool = new_resource("pool", "far", spec, PoolStatus())
        await self.wing.open()
        await self.wing.use_pools([self.far])

    async def reopen(self) -> None:
        await super().reopen()
        await self.wing.use_pools([self.far])

    async def volume(self, size: int = SIZE, **spec: object) -> Volume:
        return await self.create(new_volume("data", size, **spec))

    # --- a writer

    async def write(self, volume: Volume, *, first: int = 0, blocks: int = BLOCKS) -> "Writer":
        mounted = await self.attach(volume, "inst_writer", Isolation.UNIKERNEL)
        return Writer(mounted.path, self.place, first, blocks)

    async def closed(self) -> None:
        await self.wing.detach("inst_writer")

    # --- replicas

    def replication(
        self, source: Volume, mode: ReplicationMode = ReplicationMode.ASYNC, every: float = 0.5
    ) -> tuple[Replication, Volume]:
        target = new_volume("data-replica", source.spec.size, pool="far")
        spec = ReplicationSpec(volume=source.id, target=target.id, pool="far", mode=mode, every=every)
        return new_resource("replication", "data", spec, ReplicationStatus()), target

    async def replicate(self, replication: Replication, source: Volume, target: Volume) -> ReplicationStatus:
        request = Replicate(replication=replication, source=source, target=target)
        return await self.ask(request, ReplicationStatus)

    async def promote(
        self, replication: Replication, source: Volume, target: Volume, *, force: bool = False
    ) -> VolumeStatus:
        request = Promote(replication=replication, source=source, target=target, force=force)
        return await self.ask(request, VolumeStatus)

    async def end_replication(self, replication: Replication, source: Volume, target: Volume) -> None:
        await self.ask(EndReplication(replication=replication, source=source, target=target), type(None))

    async def status(self, replication: Replication) -> ReplicationStatus:
        found = await self.ask(ObserveReplications(ids=[replication.id]), dict[str, ReplicationStatus])
        return found[replication.id]

    async def until(
        self, replication: Replication, phase: str, *, cycles: int = 0, seconds: float = 90
    ) -> ReplicationStatus:
        deadline = time.monotonic() + seconds
        while True:
            seen = await self.status(replication)
            if seen.phase == phase and seen.cycles >= cycles:
                return seen
            assert time.monotonic() < deadline, seen
            await asyncio.sleep(0.05)

    def journal(self, replication: Replication) -> Journal:
        path = self.home.state / "storage" / "replications" / f"{replication.id}.json"
        return msgspec.json.decode(path.read_bytes(), type=Journal)

    # --- content, read below everything of ours

    async def content(self, pool: str, id: str, snapshot: str | None = None) -> bytes:
        path = self.far_path if pool == "far" else self.pool
        return await asyncio.to_thread(read, await DirectoryDriver(path, {}).node(id, snapshot))

    async def killed(self, request: AnyStorageRequest, child: "Child", after: float, *, begun: bool = True) -> str:
        """Have the child's daemon answer *request*, and kill it *after* seconds; what it said last."""
        order = Order(path=str(self.home.path), mark=self.home.mark, pools=[self.far], request=request)
        return await asyncio.to_thread(child.killed, order, after, begun)


def read(node: Node) -> bytes:
    """What a driver's node holds, whoever has it open."""
    with tempfile.NamedTemporaryFile() as out:
        source = f"json:{json.dumps(_shared(node))}"
        subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", source, out.name], check=True, timeout=90)
        return Path(out.name).read_bytes()


def _shared(node: Node) -> Node:
    made = {key: _shared(value) if isinstance(value, dict) else value for key, value in node.items()}
    made.pop("locking", None)
    return made


def numbers(content: bytes, blocks: int = BLOCKS) -> list[int]:
    """The number in each block, 0 where none was written; a torn block fails."""
    found: list[int] = []
    for place in range(blocks):
        block = content[place * BLOCK : (place + 1) * BLOCK]
        number = int.from_bytes(block[:8], "big")
        assert block == number.to_bytes(8, "big") * (BLOCK // 8), f"block {place} is torn"
        found.append(number)
    return found


def instant(found: list[int]) -> int:
    """The number of the newest write, when the content is of one instant of a writer that goes around: else it fails."""
    newest = max(found)
    for place, number in enumerate(found):
        behind = (newest - place) % len(found)
        wanted = newest - behind
        assert number == max(wanted, 0), f"block {place} has {number}; at the instant of {newest} it had {wanted}"
    return newest


class Writer:
    """The process; numbers begin after *first*."""

    def __init__(self, disk: Path, place: Path, first: int, blocks: int) -> None:
        self.log = place / "log"
        self.stop_file = place / "stop"
        self.stop_file.unlink(missing_ok=True)
        self.said = (place / "said").open("w+b")
        script = str(HERE / "carry_writer.py")
        self.process = subprocess.Popen(
            [sys.executable, script, str(disk), str(self.log), str(blocks), str(first + 1)], stdout=self.said
        )

    def acknowledged(self) -> list[tuple[int, float]]:
        data = self.log.read_bytes() if self.log.exists() else b""
        return list(RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size]))

    @property
    def last(self) -> int:
        done = self.acknowledged()
        return int(done[-1][0]) if done else 0

    async def until(self, number: int, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while self.last < number:
            assert self.process.poll() is None, "the writer failed"
            assert time.monotonic() < deadline, f"the writer is at {self.last}, not at {number}"
            await asyncio.sleep(0.02)

    async def more(self, count: int = 50, seconds: float = 90) -> None:
        await self.until(self.last + count, seconds)

    async def stop(self) -> int:
        """The last number that was acknowledged. Fails when a write failed."""
        self.stop_file.touch()
        code = await asyncio.to_thread(self.process.wait, 90)
        self.said.seek(0)
        assert code == 0, self.said.read()
        return self.last

    def kill(self) -> None:
        self.process.kill()


class Child:
    """A process that forks a daemon's stand-in for each order."""

    def __init__(self) -> None:
        place = [str(HERE), str(HERE.parent / "volumes"), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "carry_child.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ":".join(place)},
        )

    def killed(self, order: Order, after: float, begun: bool) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(msgspec.json.encode(order).decode() + "\n")
        self.process.stdin.flush()
        word = self.process.stdout.readline().split()
        pid = int(word[1])
        said = ""
        if begun:
            said = self.process.stdout.readline().strip()
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        while (line := self.process.stdout.readline().strip()) != "ended":
            said = line
        return said

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(90)
