"""A program in a guest that shows whether it went on or began anew: a word that it drew when it began, and a count."""

import time
from typing import NamedTuple

from tests.house import LayerUnderTest

# The count is in memory; every step is appended to a file on the disk.
SCRIPT = (
    "word=$(head -c 8 /dev/urandom | od -An -tx1 | tr -d ' '); mkdir -p /ram; mount -t tmpfs none /ram; echo $word > /ram/word; "
    "n=0; while :; do n=$((n+1)); echo $n >> /steps; echo $word $n > /ram/next; mv /ram/next /ram/now; sleep 0.05; done"
)


class Seen(NamedTuple):
    word: str
    number: int


def begin(layer: LayerUnderTest, name: str, *options: str) -> Seen:
    """Run it as a microVM; what it says when it counts."""
    layer.lamella("run", "-d", "--isolation", "microvm", "--name", name, *options, "busybox", "--", "sh", "-c", SCRIPT)
    return later(layer, name, Seen("", 0))


def now(layer: LayerUnderTest, name: str) -> Seen | None:
    """What it says, if it does."""
    words = layer.lamella("exec", name, "--", "cat", "/ram/now", check=False).stdout.decode().split()
    return Seen(words[0], int(words[1])) if len(words) == 2 else None


def later(layer: LayerUnderTest, name: str, than: Seen) -> Seen:
    """What it says when it has counted on from *than*."""
    deadline = time.monotonic() + 90
    while (seen := now(layer, name)) is None or seen.number <= than.number:
        assert time.monotonic() < deadline, (seen, layer.out("explain", name), layer.log())
        time.sleep(0.1)
    return seen


def steps(layer: LayerUnderTest, name: str) -> list[int]:
    """Every step that is in its file."""
    return [int(line) for line in layer.out("exec", name, "--", "cat", "/steps").split()]
