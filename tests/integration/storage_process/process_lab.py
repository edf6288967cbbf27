"""Volumes and writers for the tests: files of chains, and a process that writes to a volume's file and tells what it was promised."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Container
from pathlib import Path
from typing import Any

from lamella.host.storage.blocks import Stack
from lamella.host.storage.driver import Layer, Node

MIB = 1 << 20

# Writes blocks of 4 KiB in rounds; after each fsync(2) it says which round every block has. Nothing that it said may be lost.
_WRITER = """
import os, random, sys, time
path, blocks, seed, pause = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
fd = os.open(path, os.O_RDWR)
chance, round = random.Random(seed), 0
while True:
    round += 1
    places = [chance.randrange(blocks) for _ in range(4)]
    began = time.monotonic()
    for place in places:
        os.pwrite(fd, (b"%07d %07d\\n" % (place, round)) * 256, place * 4096)
    os.fsync(fd)
    print(round, *places, "%.4f" % (time.monotonic() - began), flush=True)
    time.sleep(pause)
"""


class Writer:
    """A process of its own, so that nothing of the test waits with it."""

    def __init__(self, file: Path, blocks: int = 4096, seed: int = 1, pause: float = 0.0) -> None:
        self.said = Path("/tmp") / f"lamella-said-{time.monotonic_ns()}"
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _WRITER, str(file), str(blocks), str(seed), str(pause)], stdout=said
            )

    def rounds(self) -> list[tuple[int, list[int], float]]:
        """(round, blocks, seconds) of what was acknowledged."""
        found: list[tuple[int, list[int], float]] = []
        for line in self.said.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                first, *places, seconds = line.split()
                found.append((int(first), [int(place) for place in places], float(seconds)))
        return found

    async def go_on(self, more: int = 20, timeout: float = 90) -> None:
        """Return when *more* rounds were acknowledged from now."""
        wanted, end = len(self.rounds()) + more, time.monotonic() + timeout
        while len(self.rounds()) < wanted:
            assert self.process.poll() is None, "the writer failed"
            assert time.monotonic() < end, f"the writer stands still at {len(self.rounds())}"
            await asyncio.sleep(0.01)

    def in_flight(self) -> set[int]:
        """Rounds that may be written and not flushed at this moment: the one after the newest that was told, which itself may just have
        been acknowledged."""
        newest = max((number for number, _, _ in self.rounds()), default=0)
        return {newest + 1, newest + 2}

    async def stop(self, unflushed: Container[int] = ()) -> dict[int, int]:
        """End it; returns the oldest round that each block may have. Rounds that were *unflushed* when their process died count not."""
        self.process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(self.process.wait, 30)
        rounds = self.rounds()
        self.said.unlink()
        return {place: number for number, places, _ in rounds if number not in unflushed for place in places}


def lost(data: bytes, acknowledged: dict[int, int]) -> list[str]:
    """What *data* lacks of what was acknowledged; a later, unacknowledged write is fine, a torn block is not."""
    found: list[str] = []
    for place, number in acknowledged.items():
        block = data[place * 4096 : (place + 1) * 4096]
        line = block[:16]
        if block != line * 256 or line[:7] != b"%07d" % place or int(line[8:15] or b"0") < number:
            found.append(f"block {place}: {line!r}, acknowledged round {number}")
    return found


def raw(path: Path, size: int) -> Node:
    subprocess.run(["truncate", "-s", str(size), str(path)], check=True)
    return {"driver": "raw", "file": {"driver": "file", "filename": str(path)}}


def overlay(path: Path, size: int) -> Layer:
    options = "cluster_size=128k,extended_l2=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(path), str(size)], check=True)
    return Layer(path=path, format="qcow2")


def volume(directory: Path, id: str = "vol_a", size: int = 64 * MIB, **more: Any) -> Stack:
    return Stack(id=id, node=raw(directory / f"{id}.raw", size), **more)


def content(node: Node) -> bytes:
    """All bytes of a closed volume."""
    out = Path(f"/tmp/lamella-content-{time.monotonic_ns()}")
    try:
        subprocess.run(["qemu-img", "convert", "-O", "raw", "json:" + json.dumps(node), str(out)], check=True)
        return out.read_bytes()
    finally:
        out.unlink(missing_ok=True)
