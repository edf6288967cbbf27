"""Memories on a shelf: what is written down is what is found, and nothing of what is not."""

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamella.host.compute.qemu import memory_file
from lamella.host.compute.qemu.shelf import Shelf
from lamella.model.errors import Corrupt, NotFound

PAGE = 4096
SIZE = 64 * PAGE


@pytest.fixture
def files() -> Iterator[tuple[int, int]]:
    """A memory with data in three pages, and a state."""
    memory, state = memory_file.make("memory", SIZE), memory_file.make("state", 0)
    for page in (0, 17, 18):
        os.pwrite(memory, bytes([page + 1]) * PAGE, page * PAGE)
    os.write(state, b"devices")
    made = (memory, state)
    yield made
    for fd in made:
        os.close(fd)


async def test_what_was_kept_is_found_by_the_next_daemon(tmp_path: Path, files: tuple[int, int]) -> None:
    await Shelf(tmp_path).keep("one", *files, {"made of": "this"})
    shelf = Shelf(tmp_path)
    assert shelf.ids() == {"one"}
    async with shelf.using("one") as frozen:
        assert frozen.made.about == {"made of": "this"} and frozen.made.size == 3 * PAGE + len(b"devices")
        assert os.pread(frozen.memory, SIZE, 0) == os.pread(files[0], SIZE, 0)
        assert os.pread(frozen.state, 100, 0) == b"devices"
        assert os.fstat(frozen.memory).st_blocks * 512 == 3 * PAGE
    shelf.close()


async def test_nobody_writes_it_again_and_copies_have_pages_of_their_own(
    tmp_path: Path, files: tuple[int, int]
) -> None:
    shelf = Shelf(tmp_path)
    await shelf.keep("one", *files, {})
    async with shelf.using("one") as frozen:
        assert memory_file.is_sealed(frozen.memory) and memory_file.is_sealed(frozen.state)
        for attempt in (
            lambda: os.pwrite(frozen.memory, b"x", 0),
            lambda: os.ftruncate(frozen.memory, 0),
            lambda: mmap.mmap(frozen.memory, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
        ):
            with pytest.raises(OSError) as refused:
                attempt()
            assert refused.value.errno == errno.EPERM
        with mmap.mmap(frozen.memory, SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as copy:
            copy[0] = 99
            assert os.pread(frozen.memory, 1, 0) == b"\x01"
    shelf.close()


@pytest.mark.parametrize("name", ["memory", "state", "made.json"])
async def test_what_was_changed_is_told_and_not_used(tmp_path: Path, files: tuple[int, int], name: str) -> None:
    await Shelf(tmp_path).keep("one", *files, {})
    with (tmp_path / "one" / name).open("r+b") as file:
        file.write(b"!")
    with pytest.raises(Corrupt):
        async with Shelf(tmp_path).using("one"):
            pass


@pytest.mark.parametrize("name", ["memory", "state"])
async def test_what_is_half_gone_is_told(tmp_path: Path, files: tuple[int, int], name: str) -> None:
    await Shelf(tmp_path).keep("one", *files, {})
    (tmp_path / "one" / name).unlink()
    with pytest.raises(Corrupt):
        async with Shelf(tmp_path).using("one"):
            pass


async def test_what_a_crash_left_half_written_is_nothing(tmp_path: Path, files: tuple[int, int]) -> None:
    shelf = Shelf(tmp_path)
    await shelf.keep("whole", *files, {})
    half = tmp_path / "half"
    half.mkdir()
    (half / "memory").write_bytes(b"some")
    assert shelf.ids() == {"whole"}
    with pytest.raises(NotFound):
        async with shelf.using("half"):
            pass
    await shelf.clear()
    assert not half.exists() and (tmp_path / "whole").exists()
    shelf.close()


async def test_who_begins_with_it_keeps_its_files_when_it_is_removed(tmp_path: Path, files: tuple[int, int]) -> None:
    shelf = Shelf(tmp_path)
    await shelf.keep("one", *files, {})
    async with shelf.using("one") as frozen:
        assert shelf.let_go() == 1
        await shelf.remove("one")
        assert os.pread(frozen.state, 100, 0) == b"devices"
        memory = frozen.memory
    with pytest.raises(OSError):
        os.fstat(memory)
    assert not list(tmp_path.iterdir())
    await shelf.remove("one")


async def test_a_disk_is_copied_its_beginning_last(tmp_path: Path, files: tuple[int, int]) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"mark".ljust(PAGE, b"\0") + b"data" * PAGE)
    fd = os.open(disk, os.O_RDONLY)
    await Shelf(tmp_path / "shelf").keep("one", *files, {}, disk=fd)
    os.close(fd)
    shelf = Shelf(tmp_path / "shelf")
    async with shelf.using("one") as frozen:
        target = tmp_path / "target"
        target.write_bytes(b"")
        os.truncate(target, disk.stat().st_size)
        frozen.copy_disk(target, first=512)
        assert target.read_bytes() == disk.read_bytes()
    shelf.close()


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([b"\0", b"\0\1", b"\7"]), min_size=1, max_size=40))
def test_pages_of_zeros_are_given_back_and_nothing_else_changes(pages: list[bytes]) -> None:
    fd = memory_file.make("memory", len(pages) * PAGE)
    try:
        content = b"".join(page.ljust(PAGE, b"\0") for page in pages)
        os.pwrite(fd, content, 0)
        memory_file.punch_zeros(fd)
        assert os.pread(fd, len(content), 0) == content
        assert os.fstat(fd).st_blocks * 512 == PAGE * sum(any(page) for page in pages)
        assert sum(size for _, size in memory_file.extents(fd)) == os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)
