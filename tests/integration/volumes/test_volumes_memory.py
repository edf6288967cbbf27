"""Snapshots with a memory, over a real pool: of one instant with the disks, undone with them, and forgotten with them."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from volumes_lab import VolumesLab, guest_of, new_snapshot, new_volume

from lamella.host.compute.driver import Remembered
from lamella.host.storage.records import BegunSnapshot
from lamella.host.storage.snapshots import Snapshots
from lamella.model.errors import Conflict, LamellaError, NoRoom
from lamella.model.instance import Instance, InstanceSpec, InstanceStatus, Isolation, Phase
from lamella.model.resource import new_resource
from lamella.model.storage import Snapshot, SnapshotStatus, Volume
from lamella.model.storage_requests import ForgetMemory, TakeSnapshot


class Keeping:
    """One instance that runs, whose driver keeps memories; *refuses* is what it raises when the disks are done."""

    def __init__(self, refuses: LamellaError | None = None, *, phase: Phase = Phase.RUNNING) -> None:
        self.said: list[str] = []
        self.kept: set[str] = set()
        self._refuses = refuses
        self._phase = phase

    async def phase(self, id: str) -> Phase:
        return self._phase

    async def resized(self, id: str, volume: str, size: int) -> None: ...

    async def heal(self, id: str) -> None: ...

    def own_disks(self) -> dict[str, set[str]]:
        return {}

    @asynccontextmanager
    async def remember(self, id: str, memory: str) -> AsyncGenerator[Remembered]:
        self.said.append("stands still")
        kept = Remembered()
        yield kept
        self.said.append("goes on")
        if self._refuses is not None:
            raise self._refuses
        self.kept.add(memory)
        kept.size, kept.pause = 4096, 0.25

    async def forget(self, memory: str) -> None:
        self.said.append("forgets")
        self.kept.discard(memory)


def machine() -> Instance:
    return new_resource("instance", "vm", InstanceSpec(image="x", isolation=Isolation.MICROVM), InstanceStatus())


async def take(lab: VolumesLab, volume: Volume, instance: Instance | None) -> Snapshot:
    snapshot = new_snapshot(volume, consistent=True)
    snapshot.spec.memory = True
    request = TakeSnapshot(snapshot=snapshot, volumes=[volume], instance=instance)
    snapshot.status = await lab.ask(request, SnapshotStatus)
    return snapshot


def records(lab: VolumesLab) -> list[str]:
    return [path.stem for path in (lab.home.state / "storage" / "snapshots").glob("*.json")]


async def test_a_memory_is_of_the_instant_of_its_disks_and_nobody_is_frozen(lab: VolumesLab) -> None:
    data, vm = await lab.create(new_volume()), machine()
    lab.wing.use_writers(keeping := Keeping())  # type: ignore[arg-type]
    disk = await lab.attach(data, vm.id, Isolation.UNIKERNEL)
    async with guest_of(disk.path) as guest:
        await guest.write(b"before")
        snapshot = await take(lab, data, vm)
        await guest.write(b" and after", 6)
    assert keeping.said == ["stands still", "goes on"] and keeping.kept == {snapshot.id}
    status = snapshot.status
    assert (status.memory, status.pause, status.consistency) == (4096, 0.25, "application")
    # Asked again after a crash: the same, and nobody stands still a second time.
    await lab.restart()
    lab.wing.use_writers(keeping)  # type: ignore[arg-type]
    again = TakeSnapshot(snapshot=snapshot, volumes=[data], instance=vm)
    assert (await lab.ask(again, SnapshotStatus)).memory == 4096 and keeping.said == ["stands still", "goes on"]
    await lab.ask(ForgetMemory(snapshot=snapshot), type(None))
    assert not keeping.kept and await lab.wing.pool("default").snapshots(data.id) == [snapshot.id]
    keeping.kept.add(snapshot.id)
    await lab.drop(snapshot, data)
    assert not keeping.kept and not records(lab)


async def test_a_memory_whose_volumes_are_gone_is_forgotten_all_the_same(lab: VolumesLab) -> None:
    data, vm = await lab.create(new_volume()), machine()
    lab.wing.use_writers(keeping := Keeping())  # type: ignore[arg-type]
    snapshot = await take(lab, data, vm)
    await lab.delete(data)
    await lab.drop(snapshot)
    assert not keeping.kept and not records(lab)


async def test_what_cannot_be_kept_leaves_neither_disks_nor_memory(lab: VolumesLab) -> None:
    data, vm = await lab.create(new_volume()), machine()
    await lab.attach(data, vm.id, Isolation.UNIKERNEL)
    lab.wing.use_writers(keeping := Keeping(NoRoom("the host's disk is full")))  # type: ignore[arg-type]
    with pytest.raises(NoRoom):
        await take(lab, data, vm)
    assert keeping.said == ["stands still", "goes on", "forgets"]
    assert await lab.wing.pool("default").snapshots(data.id) == [] and not records(lab)
    lab.wing.use_writers(Keeping(phase=Phase.STOPPED))  # type: ignore[arg-type]
    for instance in (None, vm):
        with pytest.raises(Conflict, match="does not run"):
            await take(lab, data, instance)
    assert not records(lab)


async def test_a_memory_that_a_crash_left_half_kept_is_forgotten(lab: VolumesLab) -> None:
    data = await lab.create(new_volume())
    lab.wing.use_writers(keeping := Keeping())  # type: ignore[arg-type]
    snapshot, parts = new_snapshot(data), lab.wing.parts
    parts.records.snapshots.write(snapshot.id, BegunSnapshot(volumes=[data], memory=True))
    keeping.kept.add(snapshot.id)
    await Snapshots(parts, lab.wing.attaching.mounts).recover()
    assert not keeping.kept and not records(lab)
