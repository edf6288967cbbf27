"""A container that writes to a volume at its place, and what the volume let through, ten times a second."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.house import BIN, LayerUnderTest

FILE = "/data/file"
PROGRAM = "/tmp/writer"


@dataclass(frozen=True)
class Trace:
    """``points``: the monotonic clock of the machine in seconds, and bytes until then."""

    points: list[tuple[float, int]]

    def rate(self, begin: float, end: float) -> float:
        """Bytes a second between two times of that clock."""
        inside = [point for point in self.points if begin <= point[0] <= end]
        if len(inside) < 2:
            raise RuntimeError("nothing was written in that time")
        (first, before), (last, after) = inside[0], inside[-1]
        return (after - before) / (last - first)

    def steady(self, skip: float) -> float:
        """Bytes a second after the first *skip* seconds: what may go at once has gone by then."""
        return self.rate(self.points[0][0] + skip, self.points[-1][0])


class VolumeWriter:
    """In the container *name*, on its volume of the same name."""

    def __init__(self, layer: LayerUnderTest, name: str) -> None:
        self._layer = layer
        self.name = name

    def command(self, kind: str, seconds: float, depth: int, block: int) -> list[str]:
        words = [PROGRAM, FILE, f"trace-{kind}", str(seconds), str(depth), str(block)]
        return [str(BIN / "lamella"), "exec", self.name, "--", *words]

    def start(self, kind: str, seconds: float, *, depth: int, block: int) -> "subprocess.Popen[bytes]":
        command = self.command(kind, seconds, depth, block)
        return subprocess.Popen(command, env=self._layer.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    def trace(self, kind: str, seconds: float, *, depth: int, block: int) -> Trace:
        return finished(self.start(kind, seconds, depth=depth, block=block))


def finished(process: "subprocess.Popen[bytes]") -> Trace:
    """What it wrote, when it has ended."""
    said, _ = process.communicate(timeout=300)
    if process.returncode:
        raise RuntimeError(f"the writer ended with {process.returncode}")
    lines = (line.split() for line in said.decode().splitlines())
    return Trace([(float(at), int(total)) for at, total in lines])


@contextmanager
def writer(layer: LayerUnderTest, scratch: Path, name: str, size: str, file: int) -> Iterator[VolumeWriter]:
    """A volume of *size* with a file of *file* MiB in it, in a container that has the program; both are gone afterwards."""
    program = scratch / "writer"
    if not program.exists():
        source = Path(__file__).with_name("guest_writer.c")
        subprocess.run(["gcc", "-O2", "-static", "-pthread", "-o", str(program), str(source)], check=True)
    layer.lamella("volume", "create", name, "--size", size)
    try:
        layer.lamella("run", "-d", "--name", name, "--volume", f"{name}:/data", "busybox", "--", "sleep", "100000")
        layer.lamella("cp", str(program), f"{name}:{PROGRAM}")
        fill = f"chmod 755 {PROGRAM} && dd if=/dev/urandom of={FILE} bs=1M count={file} conv=fsync"
        layer.lamella("exec", name, "--", "sh", "-c", fill)
        yield VolumeWriter(layer, name)
    finally:
        layer.lamella("rm", "--force", name, check=False)
        layer.lamella("volume", "rm", name, check=False)
