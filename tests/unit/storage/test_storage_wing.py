"""The wing's own books: requests and their lines, the open table, locks, the guard's thresholds, an ext4 superblock."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from lamella.host.compute.driver import Home
from lamella.host.storage import ext4, opened
from lamella.host.storage.guard import FASTEST, allowed, floor_of, is_low, overcommitted
from lamella.host.storage.opened import OpenTable
from lamella.host.storage.parts import Locks
from lamella.host.storage.records import OpenVolume, Records
from lamella.host.storage.requests import Requests, Tell
from lamella.host.storage.snapshots import hidden_id
from lamella.model.errors import Conflict, NoRoom
from lamella.model.ids import is_id, new_id
from lamella.model.resource import new_resource
from lamella.model.storage import PoolSpec, PoolStatus, Volume, VolumeForm, VolumeSpec, VolumeStatus
from lamella.model.storage_requests import LimitVolume, MeasureVolumes, ScrubPool, StorageProgress


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(path=tmp_path, mark="lamella-books")


def volume(form: VolumeForm = VolumeForm.BLOCK) -> Volume:
    return new_resource("volume", "data", VolumeSpec(form=form), VolumeStatus())


async def lines(requests: Requests, request: MeasureVolumes | ScrubPool | LimitVolume) -> list[StorageProgress]:
    return [line async for line in requests.answer(request)]


async def test_a_request_tells_its_progress_and_ends_with_its_result() -> None:
    requests = Requests()

    async def measure(request: MeasureVolumes, tell: Tell) -> dict[str, VolumeStatus]:
        for done in range(3):
            tell("measure", done, 3, "volumes")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return {"a": VolumeStatus(size=5)}

    requests.serve(MeasureVolumes, measure)
    said = await lines(requests, MeasureVolumes(volumes=[]))
    assert [line.done for line in said[:-1]] == sorted(line.done for line in said[:-1])
    assert len(said) > 1
    assert msgspec.json.decode(said[-1].result, type=dict[str, VolumeStatus])["a"].size == 5


async def test_a_failed_request_ends_with_its_error_and_a_defect_tells_no_secrets() -> None:
    requests = Requests()

    async def measure(request: MeasureVolumes, tell: Tell) -> None:
        raise NoRoom("full", hint="more")

    async def limit(request: LimitVolume, tell: Tell) -> None:
        raise ValueError("the key is 1234")

    requests.serve(MeasureVolumes, measure)
    requests.serve(LimitVolume, limit)
    last = (await lines(requests, MeasureVolumes(volumes=[])))[-1]
    assert (last.error_code, last.error, last.hint) == ("no-room", "full", "more")
    last = (await lines(requests, LimitVolume(volume=volume())))[-1]
    assert last.error_code == "internal"
    assert "1234" not in last.error + last.hint


async def test_work_goes_on_when_nobody_listens_any_more() -> None:
    requests, done = Requests(), asyncio.Event()

    async def measure(request: MeasureVolumes, tell: Tell) -> None:
        tell("begin", 0, 0, "")
        await asyncio.sleep(0.05)
        done.set()

    requests.serve(MeasureVolumes, measure)
    async for _ in requests.answer(MeasureVolumes(volumes=[])):
        break
    async with asyncio.timeout(90):
        await done.wait()


def test_a_second_writer_is_told_who_is_the_first(home: Home) -> None:
    table, data = OpenTable(Records(home)), volume()
    table.enter(data, "mount", "inst_one", read_only=False)
    with pytest.raises(Conflict, match="inst_one"):
        table.enter(data, "mount", "inst_two", read_only=False)
    with pytest.raises(Conflict, match="inst_one"):
        table.enter(data, "mount", "inst_two", read_only=True)
    # The same one again, as after a crash.
    table.enter(data, "mount", "inst_one", read_only=False)
    table.leave(data.id, "inst_one")
    table.enter(data, "mount", "inst_two", read_only=True)
    table.enter(data, "mount", "inst_three", read_only=True)
    with pytest.raises(Conflict):
        table.enter(data, "mount", "inst_four", read_only=False)
    with pytest.raises(Conflict, match="another way"):
        table.enter(data, "file", "inst_four", read_only=True)
    # One of two readers cannot become a writer beside the other.
    with pytest.raises(Conflict):
        table.enter(data, "mount", "inst_two", read_only=False)


def test_a_directory_is_shared(home: Home) -> None:
    table, data = OpenTable(Records(home)), volume(VolumeForm.FILESYSTEM)
    for user in ("inst_one", "inst_two"):
        table.enter(data, "tree", user, read_only=False)
    assert set(table.users(data.id)) == {"inst_one", "inst_two"}


def test_the_table_outlives_the_daemon_and_not_the_machine(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, data = OpenTable(Records(home)), volume()
    table.enter(data, "mount", "inst_one", read_only=False)
    again = OpenTable(Records(home))
    again.load()
    assert again.of("inst_one") == {data.id}
    monkeypatch.setattr(opened, "BOOT", tmp_path / "boot")
    (tmp_path / "boot").write_text("another\n")
    rebooted = OpenTable(Records(home))
    rebooted.load()
    assert rebooted.all == {}
    assert Records(home).open.all(OpenVolume) == {}


async def test_locks_of_several_volumes_never_wait_for_each_other_in_a_ring() -> None:
    locks, order = Locks(), list[str]()

    async def work(name: str, ids: list[str]) -> None:
        for _ in range(20):
            async with locks.of(ids):
                order.append(f"+{name}")
                await asyncio.sleep(0)
                order.append(f"-{name}")

    async with asyncio.timeout(90):
        await asyncio.gather(work("a", ["1", "2"]), work("b", ["2", "3", "1"]), work("c", ["3", "1", "3"]))
    # Each begins only when the one before has ended: all three share a volume.
    assert all(first[1:] == second[1:] for first, second in zip(order[::2], order[1::2], strict=True))


async def test_a_lock_that_is_waited_for_in_vain_is_left_as_it_was() -> None:
    locks = Locks()
    async with locks.of(["1"]):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02), locks.of(["0", "1"]):
                pass
    async with asyncio.timeout(90), locks.of(["0", "1"]):
        pass


def test_the_guard_knows_when_a_pool_is_low_full_and_overpromised() -> None:
    large = PoolStatus(capacity=1 << 40, free=1 << 39)
    assert floor_of(large) == 4 << 30
    assert floor_of(PoolStatus(capacity=1 << 30)) == 16 << 20
    assert floor_of(PoolStatus(capacity=32 << 20)) == 8 << 20
    assert not is_low(large, PoolSpec())
    assert is_low(PoolStatus(capacity=100, free=9), PoolSpec())
    assert not is_low(PoolStatus(capacity=0, free=0), PoolSpec())
    assert overcommitted(large, 1 << 40) is None
    # Nobody is slowed while there is plenty; nobody can write all that is left before the next look.
    assert allowed(large, 3) is None
    scarce = PoolStatus(capacity=1 << 40, free=(4 << 30) + (1 << 30))
    assert allowed(scarce, 1) == 1 << 30 and allowed(scarce, 4) == 1 << 28
    assert allowed(scarce, 1) < FASTEST
    warned = overcommitted(large, (1 << 40) + 1)
    assert warned is not None and warned.type == "Overcommitted"


def test_a_hidden_copy_is_always_called_the_same() -> None:
    first, second = new_id("volume"), new_id("volume")
    snapshot = new_id("snapshot")
    assert hidden_id(first, snapshot) == hidden_id(first, snapshot)
    assert hidden_id(first, snapshot) != hidden_id(second, snapshot)
    assert is_id(hidden_id(first, snapshot))


async def test_a_superblock_tells_size_and_whether_it_was_unmounted(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(32 << 20)
    assert ext4.read(disk) is None
    await ext4.Ext4("lamella-books").make(disk, "data")
    seen = ext4.read(disk)
    assert seen == ext4.Superblock(size=32 << 20, clean=True)
    with disk.open("r+b") as file:
        file.seek(1024 + 0x60)
        flags = int.from_bytes(file.read(4), "little")
        file.seek(1024 + 0x60)
        file.write((flags | 4).to_bytes(4, "little"))
    assert ext4.read(disk) == ext4.Superblock(size=32 << 20, clean=False)
    assert ext4.parse(b"") is None
