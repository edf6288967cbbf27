"""A container with a guaranteed core while four neighbours burn everything, against itself while they stand still.

The neighbours are paused and let go on in turns, so that both sides of a pair are the same processes on the same machine. What is measured
is done by a small program in C (victim.c): work of one kind as fast as it can, and requests of 10 ms of processor, 25 a second.
"""

import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import Row
from tests.house import LayerUnderTest

NEIGHBOURS = 4
SECONDS, PERIOD = 6, 40_000
PROGRAM = "/requests"


def rows(layer: LayerUnderTest, runs: int) -> list[Row]:
    neighbours = [f"burns{number}" for number in range(NEIGHBOURS)]
    for name in neighbours:
        layer.lamella(
            "run", "-d", "--name", name, "--network", "none", "busybox", "--", "sh", "-c", "while :; do :; done"
        )
    layer.lamella(
        "run", "-d", "--name", "victim", "--cpu", "1", "--cpu-guarantee", "1", "--network", "none", "busybox", "--",
        "sleep", "1000000",
    )  # fmt: skip
    try:
        with TemporaryDirectory(prefix="lamella-bench-") as scratch:
            program = Path(scratch) / "requests"
            source = Path(__file__).with_name("victim.c")
            subprocess.run(["cc", "-O2", "-static", "-o", program, source], check=True)
            layer.lamella("cp", str(program), f"victim:{PROGRAM}")
        layer.lamella("pause", *neighbours)
        units = _asked(layer, 0, 0, 1)[0]
        rates = _pairs(layer, neighbours, lambda: _asked(layer, units, 0, SECONDS)[0], runs)
        slowest = _pairs(layer, neighbours, lambda: _asked(layer, units, PERIOD, SECONDS)[2] / 1000, runs)
    finally:
        layer.lamella("rm", "--force", "victim", *neighbours)
    return [
        _row(
            "throughput of a guaranteed core, four neighbours burning, against alone",
            rates,
            " requests",
            "0.9 ×",
            "0.97 ×",
        ),
        _row("p99 of requests of 10 ms of processor, likewise", slowest, " ms", "2 ×", "1.3 ×"),
    ]


def _pairs(
    layer: LayerUnderTest, neighbours: list[str], measure: Callable[[], float], runs: int
) -> tuple[list[float], list[float]]:
    """(beside burning neighbours, alone), taken in turns."""
    beside: list[float] = []
    alone: list[float] = []
    for _ in range(runs):
        alone.append(measure())
        layer.lamella("resume", *neighbours)
        beside.append(measure())
        layer.lamella("pause", *neighbours)
    return beside, alone


def _asked(layer: LayerUnderTest, units: int, period: int, seconds: int) -> list[int]:
    words = ("exec", "victim", "--", PROGRAM, str(units), str(period), str(seconds))
    return [int(word) for word in layer.out(*words, timeout=120).split()]


def _row(what: str, found: tuple[list[float], list[float]], unit: str, bar: str, aim: str) -> Row:
    beside, alone = found
    texts = [
        f"{statistics.median(each):.1f}{unit} ({min(each):.1f} to {max(each):.1f}, n={len(each)})" for each in found
    ]
    return Row(what, texts[0], texts[1], statistics.median(beside) / statistics.median(alone), bar, aim)
