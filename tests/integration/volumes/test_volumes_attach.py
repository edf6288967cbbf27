"""Volumes attached by level, found again after the daemon was killed, closed without a trace; one writer at a time."""

import asyncio
import os
import subprocess
import threading
from pathlib import Path

import pytest
from volumes_lab import MIB, VolumesLab, directory_volume, ext4_volume, guest_of, new_volume

from lamella.host.linux import mounts
from lamella.model.errors import Conflict, Corrupt, NotFound, Unsupported
from lamella.model.instance import Isolation
from lamella.model.resource import new_resource
from lamella.model.storage import PoolSpec, PoolStatus, VolumeStatus, device_of
from lamella.model.storage_report import Orphan
from lamella.model.storage_requests import CheckStorage, ClosePool, LimitVolume, MeasureVolumes, RemoveOrphan, Report


async def debugfs(path: Path, *commands: str) -> None:
    for command in commands:
        child = await asyncio.create_subprocess_exec(
            "debugfs", "-w", "-R", command, str(path), stderr=asyncio.subprocess.DEVNULL
        )
        assert await child.wait() == 0


async def test_a_container_gets_a_mount_and_its_files_are_there_for_the_next(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume())
    assert data.status.size == 64 * MIB
    first = await lab.attach(data, "inst_one")
    assert (first.device, first.filesystem, first.size) == (device_of(data.id), "ext4", 64 * MIB)
    assert os.path.ismount(first.path)
    assert (first.path.stat().st_uid, first.path.stat().st_gid) == (0, 0)
    options = next(entry.options for entry in mounts.below(first.path))
    assert "nodev" in options and "nosuid" not in options
    assert oct((lab.home.run / "storage" / "mounts").stat().st_mode)[-3:] == "700"
    (first.path / "file").write_text("kept")
    # The same again gives the same.
    assert await lab.attach(data, "inst_one") == first
    await lab.wing.detach("inst_one")
    assert not lab.loops() and data.id not in await lab.wing.parts.daemon.inventory()
    second = await lab.attach(data, "inst_two", Isolation.WASM)
    assert (second.path / "file").read_text() == "kept"
    # Detached twice is fine, and by whoever has it not as well.
    await lab.wing.detach("inst_one", {data.id})
    assert await lab.wing.attached() == {"inst_two": {data.id}}
    await lab.wing.detach("inst_two", {data.id})
    await lab.wing.detach("inst_two", {data.id})
    assert await lab.wing.attached() == {}


async def test_a_machine_gets_a_file_of_its_size_whose_filesystem_is_whole(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume())
    disk = await lab.attach(data, "inst_vm", Isolation.UNIKERNEL)
    assert disk.path.stat().st_size == disk.size == 64 * MIB
    assert await lab.wing.attaching.mounts.tools.inspect(disk.path) == ""
    # As a guest would: a file of its own making, and then no clean end.
    image = disk.path.read_bytes()
    assert image[1080:1082] == b"\x53\xef"
    await lab.wing.detach("inst_vm")
    # What a machine wrote is looked at in full before this host mounts it.
    assert lab.wing.parts.stacks.made(data.id).strange
    mounted = await lab.attach(data, "inst_ct")
    assert not lab.wing.parts.stacks.made(data.id).strange
    assert list(mounted.path.iterdir()) == [mounted.path / "lost+found"]


async def test_a_directory_is_shared_and_a_machine_has_no_use_for_it(lab: VolumesLab) -> None:
    data = await lab.create(directory_volume())
    one, two = await lab.attach(data, "inst_one"), await lab.attach(data, "inst_two", Isolation.WASM)
    assert one.path == two.path
    (one.path / "file").write_text("seen by both")
    with pytest.raises(Unsupported, match="takes disks"):
        await lab.attach(data, "inst_vm", Isolation.MICROVM)
    await lab.wing.detach("inst_one")
    assert (two.path / "file").read_text() == "seen by both"
    with pytest.raises(Conflict, match="inst_two"):
        await lab.delete(data)


async def test_a_second_writer_is_refused_however_hard_it_tries(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume())
    await lab.attach(data, "inst_one")
    for level in (Isolation.CONTAINER, Isolation.UNIKERNEL):
        for read_only in (False, True):
            with pytest.raises(Conflict, match="inst_one"):
                await lab.attach(data, "inst_two", level, read_only=read_only)
    await lab.restart()
    with pytest.raises(Conflict, match="inst_one"):
        await lab.attach(data, "inst_two")
    await lab.wing.detach("inst_one")
    # Many at once: one wins.
    tried = await asyncio.gather(*(lab.attach(data, f"inst_{n}") for n in range(8)), return_exceptions=True)
    assert sum(not isinstance(result, BaseException) for result in tried) == 1
    assert all(isinstance(result, Conflict) for result in tried if isinstance(result, BaseException))


async def test_readers_share_a_mount_that_none_of_them_can_write(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume())
    writer = await lab.attach(data, "inst_one")
    (writer.path / "file").write_text("kept")
    await lab.wing.detach("inst_one")
    one = await lab.attach(data, "inst_two", read_only=True)
    two = await lab.attach(data, "inst_three", read_only=True)
    assert one.path == two.path and one.read_only
    assert (one.path / "file").read_text() == "kept"
    with pytest.raises(OSError):
        (one.path / "more").write_text("no")
    with pytest.raises(Conflict):
        await lab.attach(data, "inst_four")


async def test_what_is_attached_is_found_again_after_the_daemon_was_killed(lab: VolumesLab) -> None:
    held, machine, tree = ext4_volume("held"), new_volume("machine"), directory_volume("tree")
    for volume in (held, machine, tree):
        await lab.create(volume)
    mounted = await lab.attach(held, "inst_one")
    disk = await lab.attach(machine, "inst_vm", Isolation.UNIKERNEL)
    await lab.attach(tree, "inst_one")
    async with guest_of(disk.path) as guest:
        file = (mounted.path / "log").open("wb", buffering=0)
        file.write(b"before")
        await guest.write(b"before")
        await lab.restart()
        # Nobody noticed.
        file.write(b" and after")
        file.close()
        await guest.write(b" and after", 6)
        assert await guest.read(16) == b"before and after"
        assert await lab.wing.attached() == {"inst_one": {held.id, tree.id}, "inst_vm": {machine.id}}
        assert await lab.attach(held, "inst_one") == mounted
        assert await lab.attach(machine, "inst_vm", Isolation.UNIKERNEL) == disk
    assert (mounted.path / "log").read_bytes() == b"before and after"
    assert len(lab.loops()) == 1


async def test_what_is_open_for_nobody_is_closed_at_the_next_start(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume())
    await lab.attach(data, "inst_one")
    # As if the daemon had been killed between closing it and striking it out, the other way around.
    lab.wing.parts.records.open.forget(data.id)
    await lab.restart()
    assert not lab.loops() and not await lab.wing.parts.daemon.inventory()
    await lab.attach(data, "inst_two")


async def test_a_filesystem_that_was_not_unmounted_is_mended_before_it_is_mounted(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume())
    disk = await lab.attach(data, "inst_vm", Isolation.UNIKERNEL)
    # A guest that was cut off: not unmounted, and a count of links is wrong.
    await debugfs(disk.path, "set_super_value state 0", "set_inode_field <11> links_count 9")
    assert await lab.wing.attaching.mounts.tools.inspect(disk.path)
    await lab.wing.detach("inst_vm")
    mounted = await lab.attach(data, "inst_one")
    (mounted.path / "file").write_text("works")


async def test_a_volume_without_a_filesystem_cannot_be_a_directory_and_stays_closed(lab: VolumesLab) -> None:
    data = await lab.create(new_volume())
    with pytest.raises(Corrupt, match="no ext4 filesystem"):
        await lab.attach(data, "inst_one")
    assert await lab.wing.attached() == {} and not lab.loops()
    assert not await lab.wing.parts.daemon.inventory()


async def test_growing_reaches_whoever_has_it(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume())
    mounted = await lab.attach(data, "inst_one")
    data = await lab.resize(data, 128 * MIB)
    assert data.status.size == 128 * MIB
    grown = os.statvfs(mounted.path).f_blocks * 4096
    # Without CAP_SYS_RESOURCE the kernel grows no mounted filesystem; then an event says that the next attachment does.
    later = [event for event in lab.events if event[0] == "volume.grows-later"]
    assert grown > 100 * MIB or later
    with pytest.raises(Unsupported, match="while it is attached"):
        await lab.resize(data, 32 * MIB)
    await lab.wing.detach("inst_one")
    mounted = await lab.attach(data, "inst_one")
    assert os.statvfs(mounted.path).f_blocks * 4096 > 100 * MIB
    await lab.wing.detach("inst_one")
    raw = await lab.create(new_volume("raw"))
    disk = await lab.attach(raw, "inst_vm", Isolation.UNIKERNEL)
    await lab.resize(raw, 96 * MIB)
    assert disk.path.stat().st_size == 96 * MIB
    await lab.wing.detach("inst_vm")
    assert (await lab.attach(raw, "inst_vm", Isolation.UNIKERNEL)).size == 96 * MIB


async def test_shrinking_keeps_every_file_or_is_refused(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume(size=96 * MIB))
    mounted = await lab.attach(data, "inst_one")
    content = os.urandom(40 * MIB)
    (mounted.path / "file").write_bytes(content)
    await lab.wing.detach("inst_one")
    with pytest.raises(Unsupported, match="that small"):
        await lab.resize(data, 32 * MIB)
    data = await lab.resize(data, 64 * MIB)
    assert data.status.size == 64 * MIB
    mounted = await lab.attach(data, "inst_one")
    assert (mounted.path / "file").read_bytes() == content
    await lab.wing.detach("inst_one")
    raw = await lab.create(new_volume("raw"))
    disk = await lab.attach(raw, "inst_vm", Isolation.UNIKERNEL)
    with disk.path.open("r+b") as file:
        file.seek(40 * MIB)
        file.write(b"here")
    await lab.wing.detach("inst_vm")
    with pytest.raises(Unsupported, match="would be lost"):
        await lab.resize(raw, 32 * MIB)
    assert (await lab.resize(raw, 48 * MIB)).status.size == 48 * MIB


async def test_deleting_is_done_twice_and_never_while_it_is_open(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume())
    await lab.attach(data, "inst_one")
    with pytest.raises(Conflict, match="inst_one"):
        await lab.delete(data)
    pool = new_resource("pool", "default", PoolSpec(), PoolStatus())
    with pytest.raises(Conflict, match="data"):
        await lab.ask(ClosePool(pool=pool), type(None))
    await lab.wing.detach("inst_one")
    await lab.delete(data)
    await lab.delete(data)
    assert await lab.wing.pool("default").inventory() == set()
    with pytest.raises(NotFound):
        await lab.attach(data, "inst_one")
    assert await lab.wing.attached() == {}


def sync(place: Path) -> None:
    """Of this filesystem alone."""
    subprocess.run(["sync", "-f", str(place)], check=True, timeout=90)


async def test_measuring_tells_what_is_used(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume())
    mounted = await lab.attach(data, "inst_one")
    before = (await lab.ask(MeasureVolumes(volumes=[data]), dict[str, VolumeStatus]))[data.id].used
    (mounted.path / "file").write_bytes(os.urandom(16 * MIB))
    sync(mounted.path)
    after = (await lab.ask(MeasureVolumes(volumes=[data]), dict[str, VolumeStatus]))[data.id].used
    assert after - before >= 16 * MIB


async def test_fsck_names_orphans_and_what_is_gone(lab: VolumesLab) -> None:
    known, lost, orphan = [await lab.create(ext4_volume(name)) for name in ("known", "lost", "orphan")]
    await lab.wing.pool("default").delete(lost.id)
    report = await lab.ask(CheckStorage(volumes=[known, lost], snapshots=[]), Report)
    assert {finding.subject for finding in report.findings} == {lost.id, orphan.id}
    found = report.findings[[finding.subject for finding in report.findings].index(orphan.id)]
    assert found.orphan == Orphan(pool="default", volume=orphan.id)
    # One that another host has, or that was made after control read its rows, is not for this host to remove.
    report = await lab.ask(CheckStorage(volumes=[known], snapshots=[], known=[known.id, orphan.id]), Report)
    assert report.findings == []
    await lab.ask(RemoveOrphan(orphan=found.orphan), type(None))
    assert await lab.wing.pool("default").inventory() == {known.id}
    assert (await lab.ask(CheckStorage(volumes=[known], snapshots=[]), Report)).findings == []


async def test_what_is_in_use_is_no_orphan(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume())
    snapshot = await lab.take(data)
    mounted = await lab.attach(data, "inst_one")
    (mounted.path / "file").write_text("kept")
    assert (await lab.ask(CheckStorage(volumes=[], snapshots=[]), Report)).findings == []
    for orphan in (
        Orphan(pool="default", volume=data.id),
        Orphan(pool="default", volume=data.id, snapshot=snapshot.id),
    ):
        with pytest.raises(Conflict, match="in use"):
            await lab.ask(RemoveOrphan(orphan=orphan), type(None))
    # Whoever writes to it may be nobody that this daemon knows of: the file says so.
    with pytest.raises(Conflict, match="written"):
        await lab.wing.pool("default").delete(data.id)
    assert (mounted.path / "file").read_text() == "kept"
    await lab.wing.detach("inst_one")
    await lab.ask(RemoveOrphan(orphan=Orphan(pool="default", volume=data.id, snapshot=snapshot.id)), type(None))
    assert await lab.wing.pool("default").snapshots(data.id) == []


async def test_no_disk_is_waited_for_where_everybody_waits(lab: VolumesLab, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = await lab.create(new_volume())
    ours, sync, waited = threading.get_ident(), os.fsync, list[str]()

    def seen(descriptor: int) -> None:
        if threading.get_ident() == ours:
            waited.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    await lab.attach(volume, "inst_one", Isolation.VM)
    volume.spec.limits.iops = 1000
    await lab.ask(LimitVolume(volume=volume), type(None))
    await lab.wing.detach("inst_one")
    assert waited == []


async def test_nothing_is_kept_of_a_volume_that_is_gone(lab: VolumesLab) -> None:
    one, two = [await lab.create(new_volume(name)) for name in ("one", "two")]
    await lab.take(one)
    await lab.take(one, two)
    places = [lab.home.state / "storage" / name for name in ("snapshots", "volumes", "open")]
    await lab.delete(one)
    assert len(list(places[0].glob("*"))) == 1, "that of both"
    await lab.delete(two)
    assert [path for place in places for path in place.glob("*")] == []


async def test_a_machine_is_served_its_own_volume_over_a_socket(lab: VolumesLab) -> None:
    """The filesystem is looked at before; a machine that runs gets a file, and keeps what it has."""
    data, shared = await lab.create(ext4_volume()), await lab.create(ext4_volume("shared"))
    disk = await lab.attach(data, "inst_vm", Isolation.VM)
    assert disk.socket == disk.path and disk.path.is_socket() and "NBD" in disk.served and disk.size == 64 * MIB
    assert lab.wing.parts.stacks.made(data.id).strange
    assert await lab.attach(data, "inst_vm", Isolation.VM) == disk
    for user, level in (("inst_ct", Isolation.CONTAINER), ("inst_other", Isolation.VM)):
        with pytest.raises(Conflict, match="inst_vm"):
            await lab.attach(data, user, level, read_only=True)
    first, second = [await lab.attach(shared, f"inst_{name}", Isolation.MICROVM, read_only=True) for name in ("a", "b")]
    assert first.path == second.path and first.socket is None and "others may read" in first.served
    # The next daemon finds it as it is; so does one that was killed while it looked at the filesystem.
    await lab.restart()
    assert await lab.attach(data, "inst_vm", Isolation.VM) == disk
    await lab.wing.parts.daemon.remove(data.id)
    await lab.wing.parts.add(data)
    assert await lab.attach(data, "inst_vm", Isolation.VM) == disk and disk.path.is_socket()
    await lab.wing.detach("inst_vm")
    assert not disk.path.exists()
    mounted = await lab.attach(data, "inst_ct")
    assert list(mounted.path.iterdir()) == [mounted.path / "lost+found"]
