"""A volume that moves to another pool under its writer: the writer's rate during the move against before; and an asked RPO against the
achieved one."""

import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Row
from benchmarks.volume_writer import Trace, VolumeWriter, finished, writer
from tests.house import LayerUnderTest

BEFORE = 4.0
# Filled with random bytes, MiB.
FILE = 1024
EVERY = 2.0


def rows(layer: LayerUnderTest, runs: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch:
        layer.lamella("pool", "create", "far", "--driver", "directory", "--path", str(Path(scratch) / "far"))
        try:
            with writer(layer, Path(scratch), "moved", "2GiB", FILE) as one:
                found = [_moves(layer, one, depth, runs) for depth in (1, 8)]
            with writer(layer, Path(scratch), "kept", "2GiB", 256) as one:
                return [*found, _behind(layer, one)]
        finally:
            layer.lamella("pool", "rm", "far", check=False)


def _moves(layer: LayerUnderTest, one: VolumeWriter, depth: int, runs: int) -> Row:
    before: list[float] = []
    during: list[float] = []
    took: list[float] = []
    pools = ["far", "default"]
    for number in range(runs):
        running = one.start("write", 600, depth=depth, block=4096)
        time.sleep(BEFORE)
        began = time.monotonic()
        layer.lamella("volume", "move", one.name, "--pool", pools[number % 2], timeout=300)
        ended = time.monotonic()
        trace = _stopped(layer, one, running)
        before.append(trace.rate(began - BEFORE + 0.5, began) / 4096)
        during.append(trace.rate(began, ended) / 4096)
        took.append(ended - began)
    if len(took) % 2:
        layer.lamella("volume", "move", one.name, "--pool", "default", timeout=300)
    ratio = statistics.median(mine / other for mine, other in zip(during, before, strict=True))
    what = f"live move of {FILE} MiB, {statistics.median(took):.1f} s: 4 KiB random writes, {depth} at a time, during it against before"
    return Row(what, _rate(during), _rate(before), ratio, "0.5 ×", "0.8 ×")


def _stopped(layer: LayerUnderTest, one: VolumeWriter, running: "subprocess.Popen[bytes]") -> Trace:
    layer.lamella("exec", one.name, "--", "killall", "writer")
    said, _ = running.communicate(timeout=30)
    lines = [line.split() for line in said.decode().splitlines()]
    return Trace([(float(line[0]), int(line[1])) for line in lines if len(line) == 2])


def _behind(layer: LayerUnderTest, one: VolumeWriter) -> Row:
    # At full speed a writer all over the volume changes each cluster of it every interval.
    layer.lamella("volume", "set", one.name, "--iops", "200")
    layer.lamella("replication", "create", one.name, "--to", "pool:far", "--every", f"{EVERY:g}s")
    try:
        running = one.start("write", 30, depth=1, block=4096)
        seen: list[float] = []
        while running.poll() is None:
            status = json.loads(layer.out("replication", "show", one.name, "-o", "json"))["status"]
            if status["cycles"] > 1 and status["rpo"] is not None:
                seen.append(status["rpo"])
            time.sleep(0.5)
        finished(running)
    finally:
        layer.lamella("replication", "rm", one.name, check=False)
    text = f"{statistics.median(seen):.2f} s (newest of {len(seen)} looks: {seen[-1]:.2f}; worst {max(seen):.2f})"
    what = f"replication every {EVERY:g} s, 200 random writes a second: how old the replica was"
    return Row(what, text, f"{EVERY:g} s asked", max(seen) / EVERY, "–", "–")


def _rate(values: list[float]) -> str:
    return f"{statistics.median(values):.0f}/s ({min(values):.0f} to {max(values):.0f}, n={len(values)})"
