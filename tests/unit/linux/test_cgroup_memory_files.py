"""Taking page cache back, on the files of either version as kernels have them."""

from pathlib import Path

import pytest

from lamella.host.linux import cgroup_memory

MIB = 1 << 20


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """A group of version 2 (Linux 6.1): 300 MiB in use, 200 of them cold cache, 50 of those not written out yet."""
    files = {
        "memory.current": f"{300 * MIB}\n",
        "memory.max": f"{512 * MIB}\n",
        "memory.high": "max\n",
        "memory.low": "0\n",
        "memory.stat": f"anon {90 * MIB}\nfile {210 * MIB}\ninactive_file {200 * MIB}\nactive_file {10 * MIB}\n"
        f"file_dirty {50 * MIB}\nfile_writeback 0\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_group_of_version_2_is_read_and_spared(second: Path) -> None:
    seen = cgroup_memory.read(second)
    assert (seen.used, seen.cache, seen.cold, seen.limit) == (300 * MIB, 210 * MIB, 150 * MIB, 512 * MIB)
    cgroup_memory.protect(second, 64 * MIB)
    assert (second / "memory.low").read_text() == str(64 * MIB)
    (second / "memory.max").write_text("max\n")
    assert cgroup_memory.read(second).limit is None


def test_the_group_above_has_the_floors_of_all_in_it(tmp_path: Path) -> None:
    for name in ("", "one", "two", "machine"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "memory.current").write_text("0\n")
        (tmp_path / name / "memory.low").write_text("0\n")
    above = tmp_path / "memory.low"
    cgroup_memory.protect(tmp_path / "one", 64 * MIB)
    cgroup_memory.protect(tmp_path / "two", 16 * MIB)
    assert above.read_text() == str(80 * MIB)
    cgroup_memory.protect(tmp_path / "one", 0)
    assert above.read_text() == str(16 * MIB)


def test_the_kernel_is_asked_for_no_more_than_is_cold(second: Path) -> None:
    (second / "memory.reclaim").write_text("")
    cgroup_memory.reclaim(second, 0)
    assert (second / "memory.reclaim").read_text() == str(134 * MIB)
    assert (second / "memory.high").read_text() == "max\n"


def test_a_kernel_without_the_verb_has_its_high_mark_back_afterwards(second: Path) -> None:
    cgroup_memory.reclaim(second, 280 * MIB)
    assert (second / "memory.high").read_text() == "max"
    assert (second / "memory.max").read_text() == f"{512 * MIB}\n"


def test_what_is_gone_has_nothing(tmp_path: Path) -> None:
    assert cgroup_memory.read(tmp_path / "gone") == cgroup_memory.GroupMemory(used=0, cache=0, cold=0, limit=None)
    assert cgroup_memory.reclaim(tmp_path / "gone", 0) == 0
    cgroup_memory.protect(tmp_path / "gone", 1)
