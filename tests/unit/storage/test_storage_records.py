"""What a host writes down of its volumes: whole or not there, and what cannot be read is never taken for nothing."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.host.compute.driver import Home
from lamella.host.storage.directory import ground
from lamella.host.storage.opened import OpenTable
from lamella.host.storage.records import Folder, MadeVolume, OpenVolume, Records
from lamella.host.storage.replication.journal import Fence, Journals
from lamella.model.errors import Corrupt, Unavailable
from lamella.model.ids import new_id
from lamella.model.resource import new_resource
from lamella.model.storage import Volume, VolumeSpec, VolumeStatus


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(path=tmp_path, mark="lamella-records")


def a_volume() -> Volume:
    return new_resource("volume", "data", VolumeSpec(), VolumeStatus())


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_what_is_broken_is_not_what_is_not_there(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    whole, torn = new_id("volume"), new_id("volume")
    for id in (whole, torn):
        folder.write(id, MadeVolume(key="wrapped"))
    tear(tmp_path / f"{torn}.json")
    assert folder.read(new_id("volume"), MadeVolume) is None
    with pytest.raises(Corrupt, match=torn):
        folder.read(torn, MadeVolume)
    assert folder.all(MadeVolume) == {whole: MadeVolume(key="wrapped")}
    assert sorted(folder.ids()) == sorted([whole, torn])
    # As a disk that gives an error: it is there, and cannot be read.
    unreadable = new_id("volume")
    (tmp_path / f"{unreadable}.json").mkdir()
    with pytest.raises(Unavailable, match="cannot be read"):
        folder.read(unreadable, MadeVolume)


def test_a_volume_that_may_be_open_is_opened_for_nobody_else(home: Home) -> None:
    volume = a_volume()
    table = OpenTable(Records(home))
    table.enter(volume, "file", "inst_one", read_only=False)
    path = home.state / "storage" / "open" / f"{volume.id}.json"
    kept = path.read_bytes()
    tear(path)
    after = OpenTable(Records(home))
    after.load()
    with pytest.raises(Corrupt):
        after.enter(volume, "file", "inst_two", read_only=False)
    with pytest.raises(Corrupt):
        after.require_closed(volume, "removed")
    path.write_bytes(kept)
    after.enter(volume, "file", "inst_one", read_only=False)
    assert after.users(volume.id) == {"inst_one": False}
    assert Records(home).open.read(volume.id, OpenVolume) is not None


def test_a_fence_that_cannot_be_read_still_stands(home: Home) -> None:
    volume, journals = a_volume(), Journals(home)
    journals.fences.write(volume.id, Fence(replication="repl", message="it is a replica"))
    tear(home.state / "storage" / "fences" / f"{volume.id}.json")
    with pytest.raises(Corrupt):
        journals.check(volume)


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """The kernel takes what fits, and says how much that was: as on a disk that is full in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_was_cut_short_is_none(tmp_path: Path) -> None:
    folder, id = Folder(tmp_path), new_id("volume")
    folder.write(id, MadeVolume(key="first"))
    with files_end_at(20):
        with pytest.raises(OSError):
            folder.write(id, MadeVolume(key="second" * 10))
        with pytest.raises(OSError):
            ground.write(tmp_path / "record", b"x" * 100)
    assert folder.read(id, MadeVolume) == MadeVolume(key="first")
