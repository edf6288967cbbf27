"""Every driver: nothing of a deleted volume is in a new one, and nobody writes a volume twice at once."""

import time
from collections.abc import Callable

from contract_lab import MIB, Lab, image

from lamella.host.storage.driver import StorageDriver
from lamella.model.ids import new_id
from lamella.model.storage import Feature, VolumeForm

Needs = Callable[..., None]
BATCH = 50
SIZE = 256 << 10


async def test_no_bytes_of_others_in_new_volumes(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    """Volumes are filled and deleted again and again in the same room; each new one reads as zeros."""
    needs(Feature.BLOCK)
    rounds = -(-lab.foreign_volumes // BATCH)
    for number in range(rounds):
        ids = [new_id("volume") for _ in range(min(BATCH, lab.foreign_volumes))]
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
        import pytest

        pytest.skip(f"QEMU has no lock for {lab.name}: its own locks are tested with the driver")
    id = new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 4 * MIB)
    node = await pool.node(id)
    first = lab.start("qemu-io", image(node))
    try:
        assert first.stdin is not None and first.stdout is not None
        first.stdin.write(b"write -P 1 0 4k\n")
        first.stdin.flush()
        deadline = time.monotonic() + 20
        while b"ops/sec" not in first.stdout.readline():
            assert time.monotonic() < deadline
        for command in (
            ["qemu-io", "-c", "write -P 2 0 4k", image(node)],
            ["qemu-img", "resize", image(node), str(8 * MIB)],
        ):
            done = lab.run(*command, check=False)
            assert done.returncode != 0 and b"lock" in done.stderr, done
    finally:
        first.communicate(b"quit\n", timeout=20)
    lab.expect(node, (1, 0, 4096))
