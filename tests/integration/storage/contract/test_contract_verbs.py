"""Every driver: volumes are made, found, measured, resized and removed; each verb may be asked twice."""

import asyncio
import os
from collections.abc import Callable

import pytest
from contract_lab import MIB, Lab, refused

from lamella.host.storage.driver import Source, StorageDriver
from lamella.model.errors import Conflict, Invalid, NoRoom, NotFound, Unsupported
from lamella.model.ids import new_id
from lamella.model.storage import Feature, VolumeForm

Needs = Callable[..., None]
BLOCK, FILESYSTEM = VolumeForm.BLOCK, VolumeForm.FILESYSTEM


async def test_it_says_what_it_is(lab: Lab, pool: StorageDriver) -> None:
    assert pool.name == lab.driver.rpartition(".")[2].rpartition(":")[0] or pool.name
    assert pool.features and all(isinstance(feature, Feature) for feature in pool.features)
    status = await pool.status()
    assert status.capacity >= status.free > 0
    assert await pool.inventory() == set()


async def test_a_block_volume_is_empty_and_keeps_what_is_written(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.BLOCK)
    id = new_id("volume")
    handle = await pool.create(id, BLOCK, 8 * MIB)
    assert (handle.id, handle.form, handle.size) == (id, BLOCK, 8 * MIB)
    node = await pool.node(id)
    assert lab.size(node) == 8 * MIB
    lab.expect(node, (0, 0, 8 * MIB))
    lab.write(node, 0x5A, MIB, 4096)
    assert await pool.create(id, BLOCK, 8 * MIB) == await pool.handle(id)
    lab.expect(await pool.node(id), (0, 0, MIB), (0x5A, MIB, 4096), (0, MIB + 4096, MIB))
    assert await pool.inventory() == {id}
    assert 0 < await pool.used(id) <= 8 * MIB + lab.clone_bytes


async def test_what_was_made_is_there_for_the_next_daemon(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.BLOCK)
    id = new_id("volume")
    made = await pool.create(id, BLOCK, 4 * MIB)
    lab.write(await pool.node(id), 7, 0, 65536)
    await pool.close()
    again = lab.make()
    await again.open()
    assert await again.inventory() == {id} and await again.handle(id) == made
    lab.expect(await again.node(id), (7, 0, 65536))
    assert await again.check(repair=False) == []
    await again.close()
    await pool.open()


async def test_thin_volumes_may_promise_more_than_there_is(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.BLOCK, Feature.THIN)
    status = await pool.status()
    id = new_id("volume")
    size = min(4 * status.capacity, 8 << 40)
    try:
        handle = await pool.create(id, BLOCK, size)
    except Exception as error:
        assert size > 4 << 40, error
        handle = await pool.create(id, BLOCK, 2 * status.capacity)
    assert handle.size > status.free
    assert (await pool.status()).free > status.free // 2


async def test_delete_is_whole_and_may_be_asked_again(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.BLOCK)
    id, other = new_id("volume"), new_id("volume")
    for each in (id, other):
        await pool.create(each, BLOCK, 4 * MIB)
        lab.write(await pool.node(each), 9, 0, MIB)
    await pool.delete(id)
    await pool.delete(id)
    await pool.delete(new_id("volume"))
    assert await pool.inventory() == {other}
    for verb in (pool.handle, pool.used, pool.node, pool.snapshots):
        await refused(verb(id), NotFound)
    lab.expect(await pool.node(other), (9, 0, MIB))
    await pool.delete(other, shred=True)
    assert await pool.inventory() == set()


async def test_it_grows_with_zeros_and_keeps_its_data(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.BLOCK)
    id = new_id("volume")
    await pool.create(id, BLOCK, 4 * MIB)
    lab.write(await pool.node(id), 3, 3 * MIB, MIB)
    for _ in range(2):
        assert (await pool.resize(id, 12 * MIB)).size == 12 * MIB
    node = await pool.node(id)
    assert lab.size(node) == 12 * MIB == (await pool.handle(id)).size
    lab.expect(node, (3, 3 * MIB, MIB), (0, 4 * MIB, 8 * MIB))


async def test_it_shrinks_or_says_that_it_cannot(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.BLOCK)
    id = new_id("volume")
    await pool.create(id, BLOCK, 12 * MIB)
    lab.io(await pool.node(id), f"write -P 4 0 {MIB}", f"write -P 5 {8 * MIB} {MIB}", "flush")
    if Feature.SHRINK not in pool.features:
        await refused(pool.resize(id, 4 * MIB), Unsupported)
        lab.expect(await pool.node(id), (5, 8 * MIB, MIB))
        return
    for _ in range(2):
        assert (await pool.resize(id, 4 * MIB)).size == 4 * MIB
    assert lab.size(await pool.node(id)) == 4 * MIB
    await pool.resize(id, 12 * MIB)
    lab.expect(await pool.node(id), (4, 0, MIB), (0, 4 * MIB, 8 * MIB))


async def test_wrong_questions_are_refused(pool: StorageDriver) -> None:
    absent = new_id("volume")
    form = BLOCK if Feature.BLOCK in pool.features else FILESYSTEM
    await refused(pool.create("../x", form, MIB), Invalid)
    await refused(pool.create(new_id("volume"), form, -1), Invalid)
    await refused(pool.handle(absent), NotFound)
    await refused(pool.resize(absent, MIB), NotFound)
    await refused(pool.snapshot(absent, new_id("snapshot")), NotFound, Unsupported)
    await refused(pool.restore(absent, new_id("snapshot")), NotFound, Unsupported)
    if Feature.CLONE in pool.features:
        source = Source(volume=absent, snapshot=new_id("snapshot"))
        await refused(pool.create(new_id("volume"), form, 0, source=source), NotFound)
    assert await pool.inventory() == set()


async def test_a_form_that_it_has_not_is_refused(pool: StorageDriver) -> None:
    for form, feature in ((BLOCK, Feature.BLOCK), (FILESYSTEM, Feature.FILESYSTEM)):
        if feature not in pool.features:
            await refused(pool.create(new_id("volume"), form, MIB), Unsupported)
    if {Feature.BLOCK, Feature.FILESYSTEM} <= pool.features:
        id = new_id("volume")
        await pool.create(id, FILESYSTEM, 0)
        await refused(pool.create(id, BLOCK, MIB), Conflict)
        await refused(pool.node(id), Invalid)


async def test_what_it_has_not_it_refuses(pool: StorageDriver) -> None:
    """With a sentence, and nothing changes; the layer does it another way then."""
    block = Feature.BLOCK in pool.features
    form = BLOCK if block else FILESYSTEM
    id, snapshot, fresh = new_id("volume"), new_id("snapshot"), new_id("volume")
    before = await pool.create(id, form, 4 * MIB if block else 0)
    if Feature.SNAPSHOT not in pool.features:
        await refused(pool.snapshot(id, snapshot), Unsupported)
        await refused(pool.restore(id, snapshot), NotFound, Unsupported)
        await pool.drop(id, snapshot)
        assert await pool.snapshots(id) == []
        if block:
            await refused(pool.node(id, snapshot), NotFound)
    else:
        await pool.snapshot(id, snapshot)
    if Feature.CLONE not in pool.features:
        await refused(pool.create(fresh, form, 0, source=Source(volume=id, snapshot=snapshot)), Unsupported)
    if Feature.DELTA not in pool.features:
        assert await pool.delta(id, snapshot) is None
    # Where a snapshot is a layer, the volume lies elsewhere now.
    assert await pool.inventory() == {id} and (await pool.handle(id)).size == before.size


async def test_what_does_not_fit_is_refused_and_changes_nothing(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    """A pool that is not thin promises no more than there is."""
    needs(Feature.BLOCK)
    if Feature.THIN in pool.features:
        pytest.skip(f"the {lab.name} driver is thin")
    id, capacity = new_id("volume"), (await pool.status()).capacity
    made = await pool.create(id, BLOCK, 4 * MIB)
    lab.write(await pool.node(id), 3, 0, MIB)
    await refused(pool.create(new_id("volume"), BLOCK, 2 * capacity), NoRoom)
    await refused(pool.resize(id, 2 * capacity), NoRoom)
    assert await pool.inventory() == {id} and await pool.handle(id) == made
    lab.expect(await pool.node(id), (3, 0, MIB), (0, MIB, 3 * MIB))


async def test_many_at_once_are_made_once(pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.BLOCK)
    ids = [new_id("volume") for _ in range(3)]
    await asyncio.gather(*(pool.create(id, BLOCK, MIB) for id in ids * 3))
    assert await pool.inventory() == set(ids)
    await asyncio.gather(*(pool.delete(id) for id in ids * 2))
    assert await pool.inventory() == set()


async def test_a_filesystem_volume_is_a_tree(pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.FILESYSTEM)
    id = new_id("volume")
    handle = await pool.create(id, FILESYSTEM, 0)
    assert handle.path.is_dir() and not list(handle.path.iterdir())
    (handle.path / "file").write_bytes(b"x" * 100_000)
    assert await pool.used(id) >= 100_000 or Feature.QUOTA in pool.features
    assert (await pool.create(id, FILESYSTEM, 0)).path == handle.path
    assert (handle.path / "file").exists()
    await pool.delete(id)
    assert not handle.path.exists()


async def test_a_filesystem_volume_stays_within_its_size(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.FILESYSTEM, Feature.QUOTA)
    id = new_id("volume")
    handle = await pool.create(id, FILESYSTEM, 16 * MIB)
    with pytest.raises(OSError, match=r"quota|space"):
        _fill(str(handle.path / "big"), 32 * MIB)
    (handle.path / "big").unlink()
    lab.run("sync", "-f", str(handle.path))
    await pool.resize(id, 64 * MIB)
    _fill(str(handle.path / "big"), 32 * MIB)


def _fill(path: str, size: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for _ in range(size // MIB):
            os.write(descriptor, os.urandom(MIB))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
