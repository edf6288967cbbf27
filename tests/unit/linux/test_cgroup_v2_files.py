"""What is written to and read from version 2 files; plain files stand for a tree that not every machine has."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.driver import Limits
from lamella.host.linux import cgroup_v1, cgroup_v2
from lamella.host.linux.cgroup import Cgroups
from lamella.model.errors import Conflict, Unsupported

limits = st.builds(
    Limits,
    cpu=st.none() | st.integers(10, 1_000_000),
    memory=st.none() | st.integers(4 << 20, 1 << 50),
    pids=st.none() | st.integers(1, 4_000_000),
)


@given(limits)
def test_version_2_limits_come_back_as_written(tmp_path_factory: pytest.TempPathFactory, wanted: Limits) -> None:
    path = tmp_path_factory.mktemp("fake_group")
    (path / "memory.swap.max").write_text("max")
    cgroup_v2.write_limits(path, wanted)
    assert cgroup_v2.read_limits(path) == wanted
    assert (path / "memory.swap.max").read_text() == ("max" if wanted.memory is None else "0")


@given(limits)
def test_version_1_limits_come_back_as_written(tmp_path_factory: pytest.TempPathFactory, wanted: Limits) -> None:
    path = tmp_path_factory.mktemp("fake_group")
    paths = dict.fromkeys(("cpu", "memory", "pids"), path)
    cgroup_v1.write_limits(paths, wanted)
    assert cgroup_v1.read_limits(paths) == wanted


def test_memory_that_cannot_be_given_back_is_a_conflict(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("5000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    with pytest.raises(Conflict, match="uses 5000000 bytes"):
        cgroup_v2.write_limits(tmp_path, Limits(memory=4 << 20))
    assert (tmp_path / "memory.max").read_text() == "max\n"
    assert (tmp_path / "memory.high").read_text() == "max"


def test_a_high_mark_that_was_left_low_is_lifted_with_the_limits(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.high").write_text("2000\n")
    cgroup_v2.write_limits(tmp_path, Limits(memory=4 << 20))
    assert (tmp_path / "memory.high").read_text() == "max"
    assert (tmp_path / "memory.max").read_text() == str(4 << 20)


def test_usage_of_version_2(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    (tmp_path / "memory.current").write_text("9000\n")
    (tmp_path / "memory.stat").write_text("anon 3\ninactive_file 4000\n")
    (tmp_path / "pids.current").write_text("3\n")
    (tmp_path / "memory.events").write_text("oom 2\noom_kill 1\n")
    assert cgroup_v2.usage(tmp_path) == (1.5, 5000, 3)
    assert cgroup_v2.oom_kills(tmp_path) == 1


def test_a_controller_that_is_kept_from_us_is_named(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    with pytest.raises(Unsupported, match="memory"):
        cgroup_v2.hand_down(tmp_path)


def test_a_version_1_limit_without_its_controller_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="pids"):
        cgroup_v1.write_limits({"cpu": tmp_path}, Limits(pids=3))


def test_controllers_mounted_together_share_a_tree(tmp_path: Path) -> None:
    (tmp_path / "cpu,cpuacct").mkdir()
    (tmp_path / "cpu,cpuacct" / "cgroup.procs").touch()
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified" / "cgroup.procs").touch()
    (tmp_path / "unified" / "cgroup.controllers").touch()
    (tmp_path / "other").mkdir()
    assert cgroup_v1.trees(tmp_path) == dict.fromkeys(("cpu", "cpuacct"), tmp_path / "cpu,cpuacct")


def test_who_is_of_another_pid_namespace_is_not_gathered(tmp_path: Path) -> None:
    """Written, its number 0 would mean whoever writes."""
    for tree in ("memory", "unified"):
        (tmp_path / tree / "mark" / "one").mkdir(parents=True)
        (tmp_path / tree / "cgroup.procs").touch()
    (tmp_path / "unified" / "cgroup.controllers").touch()
    (tmp_path / "memory" / "mark" / "one" / "cgroup.procs").write_text("0\n0\n")
    inside = tmp_path / "unified" / "mark" / "one" / "cgroup.procs"
    inside.write_text("")
    group = Cgroups(tmp_path, "mark").group("one")
    group.gather()
    assert inside.read_text() == ""
    (tmp_path / "memory" / "mark" / "one" / "cgroup.procs").write_text("0\n12\n")
    group.gather()
    assert inside.read_text() == "12"
