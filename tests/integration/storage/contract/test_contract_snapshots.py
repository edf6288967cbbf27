"""Every driver: snapshots, clones, restore, deltas, to any depth."""

import os
import re
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

from contract_lab import MIB, Lab, image, refused

from lamella.host.storage.driver import Source, StorageDriver
from lamella.model.errors import Conflict, Invalid, NotFound
from lamella.model.ids import new_id
from lamella.model.storage import Feature, VolumeForm

Needs = Callable[..., None]
BLOCK, FILESYSTEM = VolumeForm.BLOCK, VolumeForm.FILESYSTEM


async def made(lab: Lab, pool: StorageDriver, size: int = 8 * MIB) -> str:
    id = new_id("volume")
    await pool.create(id, BLOCK, size)
    lab.write(await pool.node(id), 1, 0, MIB)
    return id


async def clone(pool: StorageDriver, id: str, snapshot: str, size: int = 0) -> str:
    fresh = new_id("volume")
    await pool.create(fresh, BLOCK, size, source=Source(volume=id, snapshot=snapshot))
    return fresh


async def test_a_snapshot_keeps_what_was(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.BLOCK, Feature.SNAPSHOT)
    id, first, second = await made(lab, pool), new_id("snapshot"), new_id("snapshot")
    for _ in range(2):
        await pool.snapshot(id, first)
    lab.write(await pool.node(id), 2, MIB // 2, MIB)
    await pool.snapshot(id, first)
    await pool.snapshot(id, second)
    assert await pool.snapshots(id) == [first, second]
    lab.expect(await pool.node(id, first), (1, 0, MIB), (0, MIB, 7 * MIB), read_only=True)
    lab.expect(await pool.node(id, second), (1, 0, MIB // 2), (2, MIB // 2, MIB), read_only=True)
    await refused(pool.node(id, new_id("snapshot")), NotFound)
    for _ in range(2):
        await pool.drop(id, first)
    assert await pool.snapshots(id) == [second]
    await refused(pool.node(id, first), NotFound)
    lab.expect(await pool.node(id, second), (1, 0, MIB // 2), (2, MIB // 2, MIB), read_only=True)
    lab.write(await pool.node(id), 3, 0, 4096)
    await pool.drop(id, second)
    lab.expect(await pool.node(id), (3, 0, 4096), (1, 4096, 65536), (2, MIB // 2, MIB), (0, 2 * MIB, 6 * MIB))
    assert await pool.check(repair=False) == []


async def test_restore_goes_back_and_forth(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.BLOCK, Feature.SNAPSHOT)
    id, first, second = await made(lab, pool), new_id("snapshot"), new_id("snapshot")
    await pool.snapshot(id, first)
    lab.write(await pool.node(id), 2, 0, MIB)
    await pool.resize(id, 16 * MIB)
    lab.write(await pool.node(id), 3, 12 * MIB, MIB)
    await pool.snapshot(id, second)
    lab.write(await pool.node(id), 4, 0, MIB)
    for _ in range(2):
        await pool.restore(id, first)
    assert (await pool.handle(id)).size == 8 * MIB == lab.size(await pool.node(id))
    lab.expect(await pool.node(id), (1, 0, MIB), (0, MIB, 7 * MIB))
    assert await pool.snapshots(id) == [first, second]
    lab.write(await pool.node(id), 5, 4 * MIB, 4096)
    lab.expect(await pool.node(id, second), (2, 0, MIB), (3, 12 * MIB, MIB), read_only=True)
    await pool.restore(id, second)
    assert (await pool.handle(id)).size == 16 * MIB
    lab.expect(await pool.node(id), (2, 0, MIB), (0, 4 * MIB, 4096), (3, 12 * MIB, MIB))
    await refused(pool.restore(id, new_id("snapshot")), NotFound)
    await pool.drop(id, first)
    await pool.drop(id, second)
    lab.expect(await pool.node(id), (2, 0, MIB), (0, 4 * MIB, 4096), (3, 12 * MIB, MIB))
    assert await pool.check(repair=False) == []


async def test_a_clone_is_on_its_own(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.BLOCK, Feature.SNAPSHOT, Feature.CLONE)
    id, snapshot = await made(lab, pool), new_id("snapshot")
    await pool.snapshot(id, snapshot)
    lab.write(await pool.node(id), 2, 0, 4096)
    one = await clone(pool, id, snapshot)
    larger = await clone(pool, id, snapshot, 16 * MIB)
    await refused(clone(pool, id, snapshot, 4 * MIB), Invalid)
    assert (await pool.handle(one)).size == 8 * MIB and lab.size(await pool.node(larger)) == 16 * MIB
    lab.write(await pool.node(one), 3, 65536, 4096)
    lab.expect(await pool.node(one), (1, 0, 65536), (3, 65536, 4096), (1, 65536 + 4096, 65536))
    lab.expect(await pool.node(larger), (1, 0, MIB), (0, MIB, 15 * MIB))
    lab.expect(await pool.node(id), (2, 0, 4096), (1, 4096, 2 * 65536))
    assert await pool.inventory() == {id, one, larger}
    await _gone_with_what_stands_on_it(lab, pool, id, snapshot, {one, larger})


async def _gone_with_what_stands_on_it(lab: Lab, pool: StorageDriver, id: str, snapshot: str, clones: set[str]) -> None:
    """Either the driver names the clones and changes nothing, or they live without it."""
    for verb in (lambda: pool.drop(id, snapshot), lambda: pool.delete(id)):
        try:
            await verb()
        except Conflict as error:
            assert all(clone in str(error) for clone in clones), error
            lab.expect(await pool.node(id, snapshot), (1, 0, MIB), read_only=True)
    for each in clones:
        lab.expect(await pool.node(each), (1, 0, 65536))
        await pool.delete(each)
    await pool.drop(id, snapshot)
    await pool.delete(id)
    assert await pool.inventory() == set()


async def test_clones_of_clones_of_clones(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.BLOCK, Feature.SNAPSHOT, Feature.CLONE)
    ids = [await made(lab, pool)]
    for number in range(2, 6):
        snapshot = new_id("snapshot")
        await pool.snapshot(ids[-1], snapshot)
        ids.append(await clone(pool, ids[-1], snapshot))
        lab.write(await pool.node(ids[-1]), number, number * MIB, 65536)
    for count, id in enumerate(ids, start=1):
        wanted = [(1, 0, MIB), *((number, number * MIB, 65536) for number in range(2, count + 1))]
        lab.expect(await pool.node(id), *wanted, (0, (count + 1) * MIB, 65536))
    assert await pool.check(repair=False) == []


async def test_a_clone_costs_the_same_of_any_size(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.BLOCK, Feature.SNAPSHOT, Feature.CLONE)
    taken: list[int] = []
    for size in (16 * MIB, 64 << 30):
        id, snapshot = new_id("volume"), new_id("snapshot")
        await pool.create(id, BLOCK, size)
        lab.io(await pool.node(id), *(f"write -P 1 {at} {MIB}" for at in range(0, 16 * MIB, 2 * MIB)), "flush")
        await pool.snapshot(id, snapshot)
        fresh, costs = await clone(pool, id, snapshot), list[int]()
        # Others may write to the disk below at the same moment: what one clone of some costs is what a clone costs.
        while lab.tells_room_at_once and (not costs or min(costs) > lab.clone_bytes):
            assert len(costs) < 5, costs
            before = (await pool.status()).free
            fresh = await clone(pool, id, snapshot)
            costs.append(before - (await pool.status()).free)
        taken.append(await pool.used(fresh))
    # What is shared may be counted; then it is of both.
    assert max(taken) - (min(taken) if lab.tells_room_at_once else 0) <= lab.clone_bytes, taken


async def test_a_long_line_of_snapshots(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.BLOCK, Feature.SNAPSHOT)
    id = await made(lab, pool, 64 * MIB)
    taken: list[str] = []
    for number in range(lab.depth):
        taken.append(new_id("snapshot"))
        await pool.snapshot(id, taken[-1])
        lab.write(await pool.node(id), 2 + number, MIB * (1 + number), 4096)
    assert await pool.snapshots(id) == taken
    middle = lab.depth // 2
    at_middle = [(2 + number, MIB * (1 + number), 4096) for number in range(middle)]
    now = [(2 + number, MIB * (1 + number), 4096) for number in range(lab.depth)]
    lab.expect(await pool.node(id, taken[middle]), *at_middle, (0, MIB * (1 + middle), 4096), read_only=True)
    for number, snapshot in enumerate(taken):
        if number != middle and number % 3:
            await pool.drop(id, snapshot)
    lab.expect(await pool.node(id, taken[middle]), *at_middle, (0, MIB * (1 + middle), 4096), read_only=True)
    lab.expect(await pool.node(id), *now)
    await pool.restore(id, taken[middle])
    for snapshot in await pool.snapshots(id):
        await pool.drop(id, snapshot)
    lab.expect(await pool.node(id), (1, 0, MIB), *at_middle, (0, MIB * (1 + middle), 4096))
    assert await pool.check(repair=False) == []


async def test_a_delta_is_what_changed(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.BLOCK, Feature.SNAPSHOT, Feature.DELTA)
    id = new_id("volume")
    await pool.create(id, BLOCK, 64 * MIB)
    lab.io(await pool.node(id), f"write -P 1 0 {32 * MIB}", "flush")
    first, second = new_id("snapshot"), new_id("snapshot")
    await pool.snapshot(id, first)
    # Zeros over what Ceph calls an object: of less than one it cannot tell whether it is data.
    lab.io(await pool.node(id), f"write -P 2 {4 * MIB} 65536", f"write -z -u {8 * MIB} {4 * MIB}", "flush")
    lab.io(await pool.node(id), f"discard {16 * MIB} {2 * MIB}", "flush")
    await pool.snapshot(id, second)
    lab.write(await pool.node(id), 3, 40 * MIB, 65536)
    await pool.resize(id, 80 * MIB)
    changed = await pool.delta(id, first, second)
    assert changed is not None
    _covers(changed, [(4 * MIB, 65536), (8 * MIB, 4 * MIB), (16 * MIB, 2 * MIB)], lab.grain)
    assert all(extent.zero for extent in changed if 8 * MIB <= extent.offset < 12 * MIB)
    zeros = [(0, extent.offset, extent.length) for extent in changed if extent.zero]
    assert zeros
    lab.expect(await pool.node(id, second), *zeros, read_only=True)
    later = await pool.delta(id, second)
    assert later is not None
    _covers(later, [(40 * MIB, 65536), (64 * MIB, 16 * MIB)], lab.grain)
    assert await pool.delta(id, first, first) == []
    await refused(pool.delta(id, new_id("snapshot")), NotFound)


def _covers(extents: list[object], wanted: list[tuple[int, int]], grain: int) -> None:
    """The extents are in order, have all of *wanted*, and nothing that lies further from it than *grain*."""
    ends = 0
    covered: set[int] = set()
    for extent in extents:
        offset, length = extent.offset, extent.length  # type: ignore[attr-defined]
        assert offset >= ends and length > 0, extents
        ends = offset + length
        covered |= set(range(offset // 4096, -(-ends // 4096)))
    needed = {block for at, length in wanted for block in range(at // 4096, (at + length) // 4096)}
    assert needed <= covered, (min(needed - covered) * 4096, extents)
    near = {at for start, length in wanted for at in range((start - grain) // 4096, (start + length + grain) // 4096)}
    assert covered <= near, (sorted(covered - near)[:3], extents)


async def test_a_live_snapshot_is_what_a_power_cut_would_leave(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    """A writer writes n here and then n there; a snapshot that is of one instant has the first at most one ahead."""
    needs(Feature.BLOCK, Feature.LIVE_SNAPSHOT)
    id = await made(lab, pool, 64 * MIB)
    node = await pool.node(id)
    far = 48 * MIB
    lines = "".join(f"write -q -P {n} 0 4k\nwrite -q -P {n} {far} 4k\n" for n in [*range(1, 256)] * 40)
    writer = lab.start("qemu-io", "-t", "none", image(node))
    assert writer.stdin is not None
    os.set_blocking(writer.stdin.fileno(), False)
    sent = 0
    taken: list[str] = []
    try:
        deadline = time.monotonic() + 90
        while len(taken) < 12 and time.monotonic() < deadline:
            for _ in range(50):
                try:
                    sent += os.write(writer.stdin.fileno(), lines.encode()[sent : sent + 16384])
                except BlockingIOError:
                    break
            taken.append(new_id("snapshot"))
            await pool.snapshot(id, taken[-1])
        assert writer.poll() is None, "the writer failed under the snapshots"
    finally:
        writer.kill()
        writer.wait(90)
    seen: set[int] = set()
    for snapshot in taken:
        said = lab.io(await pool.node(id, snapshot), "read -v 0 16", f"read -v {far} 16", read_only=True)
        first, second = (int(found, 16) for found in re.findall(r"[0-9a-f]{8}:\s+([0-9a-f]{2})", said))
        assert first == second or (first - second) in (1, -254) or (second, first) == (0, 1), (first, second)
        seen.add(first)
    assert len(seen) > 2, "nothing was written meanwhile"


async def test_a_tree_is_kept_with_everything_in_it(lab: Lab, pool: StorageDriver, needs: Needs) -> None:
    needs(Feature.FILESYSTEM, Feature.SNAPSHOT)
    id, first = new_id("volume"), new_id("snapshot")
    root = (await pool.create(id, FILESYSTEM, 0)).path
    plant(root)
    before = seen(root)
    for _ in range(2):
        await pool.snapshot(id, first)
    (root / "file").write_text("changed")
    (root / "new").mkdir()
    (root / "link").unlink()
    assert await pool.snapshots(id) == [first]
    fresh = new_id("volume")
    if Feature.CLONE in pool.features:
        await pool.create(fresh, FILESYSTEM, 0, source=Source(volume=id, snapshot=first))
        assert seen((await pool.handle(fresh)).path) == before
        ((await pool.handle(fresh)).path / "mine").touch()
    for _ in range(2):
        await pool.restore(id, first)
    assert seen((await pool.handle(id)).path) == before
    ((await pool.handle(id)).path / "after").write_text("can be written")
    for _ in range(2):
        await pool.drop(id, first)
    assert await pool.snapshots(id) == [] and seen((await pool.handle(id)).path) != before
    assert await pool.check(repair=False) == []


def plant(root: Path) -> None:
    (root / "dir" / "inner").mkdir(parents=True)
    (root / "file").write_bytes(b"content" * 1000)
    os.chown(root / "file", 1234, 4321)
    (root / "file").chmod(0o4711)
    (root / "dir" / "twin").hardlink_to(root / "file")
    (root / "link").symlink_to("dir/inner")
    os.mkfifo(root / "pipe")
    os.mknod(root / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(root)
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
    os.setxattr(root / "dir", "user.told", b"kept")
    os.setxattr(root / "dir", "trusted.told", b"kept too")
    with (root / "sparse").open("wb") as file:
        file.truncate(64 * MIB)
        file.write(b"start")
    os.utime(root / "dir" / "inner", ns=(1_000_000_007, 2_000_000_009))


def seen(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        told = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        attributes = {name: os.getxattr(path, name) for name in os.listxattr(path, follow_symlinks=False)}
        mtime = told.st_mtime_ns if path.name == "inner" else 0
        found[str(path.relative_to(root))] = (
            told.st_mode, told.st_uid, told.st_gid, told.st_nlink if path.is_file() else 0, told.st_rdev, mtime, hash(content), attributes
        )  # fmt: skip
    return found
