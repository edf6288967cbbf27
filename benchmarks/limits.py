"""What a volume lets through against what it was asked to: by operations and by bytes, direct and through the page cache."""

import statistics
import tempfile
from pathlib import Path

from benchmarks.measure import Row
from benchmarks.volume_writer import VolumeWriter, writer
from tests.house import LayerUnderTest

MIB = 1 << 20
SECONDS = 9.0
# A throttle lets a moment's worth go at once.
SKIPPED = 3.0
# What is asked; how it is used; the size of one operation.
CASES = (
    ("--iops", "500", "write", 4096),
    ("--iops", "2000", "write", 4096),
    ("--iops", "2000", "read", 4096),
    ("--bandwidth", "20MiB/s", "write", 256 << 10),
    ("--bandwidth", "20MiB/s", "read", 256 << 10),
    ("--bandwidth", "20MiB/s", "buffered", 256 << 10),
)
SAID = {"write": "direct writes", "read": "direct reads", "buffered": "writes through the page cache"}


def rows(layer: LayerUnderTest, runs: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="lamella-bench-") as scratch:
        with writer(layer, Path(scratch), "limited", "1GiB", 256) as one:
            return [_row(layer, one, *case, runs) for case in CASES]


def _row(layer: LayerUnderTest, one: VolumeWriter, option: str, asked: str, kind: str, block: int, runs: int) -> Row:
    other = "--bandwidth" if option == "--iops" else "--iops"
    layer.lamella("volume", "set", one.name, option, asked, other, "none")
    wanted = float(asked) if option == "--iops" else float(asked.removesuffix("MiB/s")) * MIB
    unit = block if option == "--iops" else 1
    seen = [one.trace(kind, SECONDS, depth=8, block=block).steady(SKIPPED) / unit for _ in range(runs)]
    shown = [value if option == "--iops" else value / MIB for value in seen]
    text = f"{statistics.median(shown):.2f} ({min(shown):.2f} to {max(shown):.2f}, n={len(shown)})"
    ratio = statistics.median(seen) / wanted
    return Row(f"limit {option} {asked}, {SAID[kind]}", text, asked, ratio, "0.97 to 1.03 ×", "0.99 to 1.01 ×")
