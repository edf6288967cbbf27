"""Every driver: nothing of a deleted volume is in a new one, and nobody writes a volume twice at once."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from contract_lab import MIB, Lab, image

from lamella.host.storage.driver import Fences, Node, StorageDriver
from lamella.model.ids import new_id
from lamella.model.storage import Feature, VolumeForm

Needs = Callable[..., None]
# Volumes that are there at once; and how often at least the room of one is another's.
BATCH, ROUNDS = 50, 4
SIZE = 256 << 10


async def test_no_bytes_of_others_in_new_volumes(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    """Volumes are filled and deleted again and again in the same room; each new one reads as zeros."""
    needs(Feature.BLOCK)
    batch = min(BATCH, -(-lab.foreign_volumes // ROUNDS))
    for number in range(-(-lab.foreign_volumes // batch)):
        ids = [new_id("volume") for _ in range(batch)]
        work: list[tuple[dict[str, object], list[str]]] = []
        for id in ids:
            await pool.create(id, VolumeForm.BLOCK, SIZE)
            work.append((await pool.node(id), [f"read -P 0 0 {SIZE}", f"write -P {0x80 + number % 100} 0 {SIZE}"]))
        lab.script(work)
        for index, id in enumerate(ids):
            await pool.delete(id, shred=index % 10 == 0)
    assert await pool.inventory() == set()


async def test_two_writers_are_one_too_many(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.BLOCK)
    if not lab.refuses_second_writer:
        pytest.skip(f"QEMU has no lock for {lab.name}")
    id = new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 4 * MIB)
    node = await pool.node(id)
    with writing(lab, node) as first:
        for command in (
            ["qemu-io", "-c", "write -P 2 0 4k", image(node)],
            ["qemu-img", "resize", image(node), str(8 * MIB)],
        ):
            done = lab.run(*command, check=False)
            assert done.returncode != 0 and b"lock" in done.stderr, done
        first.communicate(b"quit\n", timeout=90)
    lab.expect(node, (1, 0, 4096))


async def test_who_is_shut_out_writes_no_more(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.BLOCK)
    if not isinstance(pool, Fences):
        pytest.skip(f"the {lab.name} driver does not shut others out")
    id = new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 4 * MIB)
    node = await pool.node(id)
    with writing(lab, node) as first:
        await pool.fence(id)
        lab.write(node, 2, 0, 4096)
        said, _ = first.communicate(b"write -P 3 0 4k\nquit\n", timeout=90)
        assert b"failed" in said, said
    lab.expect(node, (2, 0, 4096))


@contextmanager
def writing(lab: Lab, node: Node) -> Iterator[subprocess.Popen[bytes]]:
    """A qemu-io that has written ones to the first 4 KiB and goes on."""
    first = lab.start("qemu-io", "-t", "none", image(node))
    try:
        assert first.stdin is not None and first.stdout is not None
        first.stdin.write(b"write -P 1 0 4k\n")
        first.stdin.flush()
        deadline = time.monotonic() + 90
        while b"ops/sec" not in first.stdout.readline():
            assert time.monotonic() < deadline
        yield first
    finally:
        first.kill()
        first.communicate()
