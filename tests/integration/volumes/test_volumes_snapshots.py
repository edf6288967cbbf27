"""Snapshots of what is open and of what is not, at one instant, under load; merged away while it is written; gone back to."""

import asyncio
import os
import struct
from pathlib import Path

import pytest
from volumes_lab import MIB, VolumesLab, directory_volume, ext4_volume, guest_of, new_snapshot, new_volume

from lamella.host.compute.driver import MountedVolume
from lamella.host.storage.driver import Layer
from lamella.host.storage.records import BegunSnapshot
from lamella.host.storage.snapshots import Snapshots
from lamella.model.errors import Conflict, DeadlineExceeded, NoRoom, NotFound, Unsupported
from lamella.model.instance import Isolation, Phase
from lamella.model.storage import Snapshot, Volume


class Instances:
    """Stands for the agent: it notes what was asked of which instance. *holds* says whether a frozen guest stays so."""

    def __init__(self, *, holds: bool = True, agent: bool = True) -> None:
        self.said: list[str] = []
        self._holds = holds
        self._agent = agent

    async def phase(self, id: str) -> Phase:
        return Phase.RUNNING

    async def pause(self, id: str) -> None:
        self.said.append(f"pause {id}")

    async def resume(self, id: str) -> None:
        self.said.append(f"resume {id}")

    async def freeze(self, id: str, deadline: float) -> int:
        if not self._agent:
            raise Unsupported("nothing inside could do it")
        self.said.append(f"freeze {id}")
        return 1

    async def thaw(self, id: str) -> bool:
        self.said.append(f"thaw {id}")
        return self._holds

    async def switch(self, id: str, layers: dict[str, Layer]) -> None:
        raise Unsupported("it has no disks of its own")

    async def resized(self, id: str, volume: str, size: int) -> None:
        pass

    async def heal(self, id: str) -> None:
        pass

    def own_disks(self) -> dict[str, set[str]]:
        return {}


async def clone_of(lab: VolumesLab, volume: Volume, snapshot: Snapshot, name: str = "clone") -> Volume:
    spec = {"filesystem": volume.spec.filesystem, "encryption": volume.spec.encryption}
    clone = new_volume(name, 0, **spec)
    clone.spec.source = snapshot.id
    return await lab.create(clone, source=volume, snapshot=snapshot)


async def seen_in(lab: VolumesLab, volume: Volume) -> dict[str, bytes]:
    """The files of a volume, by name."""
    mounted = await lab.attach(volume, "inst_reader")
    found = {path.name: path.read_bytes() for path in mounted.path.iterdir() if path.is_file()}
    await lab.wing.detach("inst_reader")
    return found


async def test_a_snapshot_of_a_closed_volume_is_what_it_was_and_can_be_gone_back_to(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume())
    mounted = await lab.attach(data, "inst_one")
    (mounted.path / "file").write_text("first")
    await lab.wing.detach("inst_one")
    first = await lab.take(data)
    assert (first.status.consistency, first.status.sizes) == ("crash", {data.id: 64 * MIB})
    # Asked again, as control does after a crash: the same, not another.
    assert (await lab.take(data, snapshot=first)).status == first.status
    mounted = await lab.attach(data, "inst_one")
    (mounted.path / "file").write_text("second")
    with pytest.raises(Conflict, match="inst_one"):
        await lab.restore(first, data)
    await lab.wing.detach("inst_one")
    assert await seen_in(lab, await clone_of(lab, data, first)) == {"file": b"first"}
    await lab.restore(first, data)
    await lab.restore(first, data)
    assert await seen_in(lab, data) == {"file": b"first"}


async def test_a_snapshot_of_an_open_volume_misses_nothing_that_was_synced(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume())
    mounted = await lab.attach(data, "inst_one")
    (mounted.path / "file").write_text("synced")
    os.sync()
    snapshot = await lab.take(data)
    assert snapshot.status.pause < 60
    (mounted.path / "file").write_text("later")
    clone = await clone_of(lab, data, snapshot)
    assert await seen_in(lab, clone) == {"file": b"synced"}
    # The writer goes on, over a merge and a restart of the daemon.
    with pytest.raises(Conflict, match=clone.id):
        await lab.drop(snapshot, data)
    await lab.delete(clone)
    await lab.restart()
    await lab.drop(snapshot, data)
    await lab.drop(snapshot, data)
    assert (mounted.path / "file").read_text() == "later"
    await lab.wing.detach("inst_one")
    assert await seen_in(lab, data) == {"file": b"later"}


async def test_consistent_of_a_mount_needs_no_sync_and_pauses_nobody(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume())
    lab.wing.use_writers(instances := Instances())
    mounted = await lab.attach(data, "inst_one")
    # In the page cache alone, until the freeze writes it out.
    (mounted.path / "file").write_bytes(b"x" * MIB)
    snapshot = await lab.take(data, consistent=True)
    assert snapshot.status.consistency == "application"
    assert instances.said == []
    (mounted.path / "file").write_text("it is written again")
    lab.wing.parts.writers = None
    assert await seen_in(lab, await clone_of(lab, data, snapshot)) == {"file": b"x" * MIB}


async def test_a_guest_is_frozen_for_a_consistent_one_and_thawed(lab: VolumesLab) -> None:
    data = await lab.create(new_volume())
    lab.wing.use_writers(instances := Instances())
    await lab.attach(data, "inst_vm", Isolation.UNIKERNEL)
    snapshot = await lab.take(data, consistent=True)
    assert instances.said == ["freeze inst_vm", "thaw inst_vm"]
    assert snapshot.status.consistency == "application" and snapshot.status.pause > 0


@pytest.mark.parametrize(
    ("instances", "error"), [(Instances(holds=False), DeadlineExceeded), (Instances(agent=False), Unsupported)]
)
async def test_a_guest_that_does_not_stand_still_leaves_nothing_half_made(
    lab: VolumesLab, instances: Instances, error: type[Exception]
) -> None:
    data = await lab.create(new_volume())
    disk = await lab.attach(data, "inst_vm", Isolation.UNIKERNEL)
    lab.wing.use_writers(instances)
    async with guest_of(disk.path) as guest:
        await guest.write(b"before")
        snapshot = new_snapshot(data, consistent=True)
        with pytest.raises(error):
            await lab.take(data, snapshot=snapshot)
        await guest.write(b" and after", 6)
    assert await lab.wing.pool("default").snapshots(data.id) == []
    assert not list((lab.home.state / "storage" / "snapshots").glob("*.json"))
    await lab.wing.detach("inst_vm")
    disk = await lab.attach(data, "inst_vm", Isolation.UNIKERNEL)
    async with guest_of(disk.path) as guest:
        assert await guest.read(16) == b"before and after"


async def test_several_volumes_are_of_one_instant(lab: VolumesLab) -> None:
    """One writer numbers its blocks in turn over three disks; in every snapshot, no disk is ahead of the others by more than a block."""
    disks = [await lab.create(new_volume(f"disk{n}", 16 * MIB)) for n in range(3)]
    files = [(await lab.attach(disk, "inst_vm", Isolation.UNIKERNEL)).path for disk in disks]
    taken: list[Snapshot] = []
    async with guest_of(*files) as guest:
        await guest.say("number")
        for _ in range(5):
            await asyncio.sleep(0.15)
            taken.append(await lab.take(*disks))
        await guest.say("enough")
        last = int(await guest.hear())
    assert last > 100
    for turn, snapshot in enumerate(taken):
        numbers: list[int] = []
        for number, disk in enumerate(disks):
            clone = await clone_of(lab, disk, snapshot, f"clone-{turn}-{number}")
            opened = await lab.attach(clone, "inst_reader", Isolation.UNIKERNEL)
            with opened.path.open("rb") as file:
                file.seek(8 * MIB)
                numbers.append(struct.unpack("<Q", file.read(8))[0])
            await lab.wing.detach("inst_reader")
        # In the order of writing: the first may be one ahead.
        assert sorted(numbers, reverse=True) == numbers and numbers[0] - numbers[-1] <= 1, numbers


async def fill(mounted: MountedVolume, stop: asyncio.Event) -> dict[str, bytes]:
    """Write files, each synced before it is acknowledged, until told to stop."""
    written: dict[str, bytes] = {}

    def one(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    while not stop.is_set():
        name, content = f"file-{len(written) % 60}", os.urandom(8192)
        await asyncio.to_thread(one, mounted.path / name, content)
        written[name] = content
    return written


async def test_snapshots_come_and_go_under_load_and_nothing_acknowledged_is_lost(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume())
    mounted = await lab.attach(data, "inst_one")
    stop = asyncio.Event()
    writer = asyncio.create_task(fill(mounted, stop))
    kept: list[Snapshot] = []
    for turn in range(8):
        await asyncio.sleep(0.1)
        kept.append(await lab.take(data, consistent=bool(turn % 2)))
        if len(kept) > 3:
            await lab.drop(kept.pop(turn % 3), data)
    stop.set()
    written = await writer
    for snapshot in kept:
        await lab.drop(snapshot, data)
    assert await lab.wing.pool("default").snapshots(data.id) == []
    await lab.wing.detach("inst_one")
    assert await seen_in(lab, data) == written
    assert len(written) > 5


async def test_a_directory_is_snapshotted_while_it_is_shared(lab: VolumesLab) -> None:
    tree = await lab.create(directory_volume())
    mounted = await lab.attach(tree, "inst_one")
    (mounted.path / "file").write_text("first")
    lab.wing.use_writers(instances := Instances())
    snapshot = await lab.take(tree)
    assert instances.said == ["pause inst_one", "resume inst_one"]
    (mounted.path / "file").write_text("second")
    clone = await lab.create(directory_volume("clone"), source=tree, snapshot=snapshot)
    assert (await lab.attach(clone, "inst_two")).path.joinpath("file").read_text() == "first"


async def test_what_a_crash_left_half_taken_and_is_taken_meanwhile_stays(lab: VolumesLab) -> None:
    volume = await lab.create(new_volume())
    snapshot, parts = new_snapshot(volume), lab.wing.parts
    # As a daemon leaves it that died after it had begun.
    parts.records.snapshots.write(snapshot.id, BegunSnapshot(volumes=[volume]))
    async with parts.locks.of([volume.id]):
        taking = asyncio.create_task(lab.take(volume, snapshot=snapshot))
        await asyncio.sleep(0.1)
        recovering = asyncio.create_task(Snapshots(parts, lab.wing.attaching.mounts).recover())
        await asyncio.sleep(0.1)
    await asyncio.gather(taking, recovering)
    assert await lab.wing.pool("default").snapshots(volume.id) == [snapshot.id]
    await lab.drop(snapshot, volume)


@pytest.mark.parametrize("why", ["gone", "refused"])
async def test_of_several_volumes_that_go_back_all_do_or_none(
    lab: VolumesLab, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    one, two = sorted([await lab.create(new_volume(name)) for name in ("one", "two")], key=lambda made: made.id)
    pool = lab.wing.pool("default")
    snapshot = await lab.take(one, two)
    for volume in (one, two):
        mounted = await lab.attach(volume, "inst_one", Isolation.UNIKERNEL)
        async with guest_of(mounted.path) as guest:
            await guest.write(b"newer")
        await lab.wing.detach("inst_one")
    if why == "gone":
        await pool.drop(two.id, snapshot.id)
    else:
        restore = pool.restore

        async def refused(id: str, kept: str) -> None:
            if (id, kept) == (two.id, snapshot.id):
                raise NoRoom("pool default is full")
            await restore(id, kept)

        monkeypatch.setattr(pool, "restore", refused)
    with pytest.raises((NotFound, NoRoom)):
        await lab.restore(snapshot, one, two)
    assert await _begins(lab, one) == await _begins(lab, two) == b"newer"
    monkeypatch.undo()
    if why == "refused":
        await lab.restore(snapshot, one, two)
        assert await _begins(lab, one) == await _begins(lab, two) == bytes(5)
        assert await pool.snapshots(one.id) == await pool.snapshots(two.id) == [snapshot.id]


async def _begins(lab: VolumesLab, volume: Volume) -> bytes:
    mounted = await lab.attach(volume, "inst_reader", Isolation.UNIKERNEL)
    async with guest_of(mounted.path) as guest:
        found = await guest.read(5)
    await lab.wing.detach("inst_reader")
    return found
