"""Groups on the machine's own hierarchies, under a mark of the test's own."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from lamella.host.compute.driver import Limits
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.model.errors import Conflict, Unsupported

pytestmark = pytest.mark.root


def run_in(paths: list[Path], *command: str) -> subprocess.Popen[bytes]:
    script = "".join(f"echo $$ > {path}; " for path in paths)
    return subprocess.Popen(
        ["sh", "-c", script + 'exec "$@"', "sh", *command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


def test_limits_are_read_back_from_the_kernel(cgroups: Cgroups) -> None:
    group = cgroups.group("one")
    limits = Limits(cpu=250, memory=64 << 20, pids=17)
    group.create(limits)
    assert group.exists()
    assert cgroups.ids() == {"one"}
    assert group.read_limits() == limits
    for other in (Limits(cpu=1500, memory=256 << 20, pids=9), Limits(memory=32 << 20), Limits()):
        group.update(other)
        assert group.read_limits() == other
    group.create(limits)
    assert group.read_limits() == limits


def test_the_processor_is_really_shared_out(cgroups: Cgroups) -> None:
    group = cgroups.group("spin")
    group.create(Limits(cpu=200))
    spinner = run_in(group.procs_files(), "sh", "-c", "while :; do :; done")
    try:
        # Both ends are inside what the clock measures: a machine that stands still in between makes the share smaller, never larger.
        start = time.monotonic()
        before = group.usage().cpu_seconds
        while True:
            time.sleep(1.0)
            used = group.usage().cpu_seconds - before
            if used > 0.1:
                break
            assert time.monotonic() - start < 90
        assert used < 0.3 * (time.monotonic() - start)
        assert group.usage().processes == 1
        group.freeze()
        before = group.usage().cpu_seconds
        time.sleep(0.2)
        assert group.usage().cpu_seconds - before < 0.005
        assert group.is_frozen()
        group.thaw()
        assert not group.is_frozen()
    finally:
        group.kill_all()
        assert spinner.wait(90) == -9


def test_memory_beyond_the_limit_is_killed(cgroups: Cgroups) -> None:
    group = cgroups.group("hog")
    group.create(Limits(memory=32 << 20))
    hog = run_in(group.procs_files(), "python3", "-c", "x = bytearray(128 << 20); input()")
    assert hog.wait(90) == -9
    assert group.oom_kills() == 1


def test_a_limit_below_the_usage_is_refused_and_harms_nobody(cgroups: Cgroups) -> None:
    group = cgroups.group("full")
    group.create(Limits(memory=128 << 20))
    script = "import time; x = bytearray(64 << 20); open('/proc/self/comm', 'w').write('full'); time.sleep(60)"
    user = run_in(group.procs_files(), "python3", "-c", script)
    while Path(f"/proc/{user.pid}/comm").read_text() != "full\n":
        time.sleep(0.01)
    with pytest.raises(Conflict, match=r"uses \d+ bytes"):
        group.update(Limits(memory=16 << 20))
    assert user.poll() is None
    assert group.usage().memory > 60 << 20
    group.remove()
    assert user.wait(90) == -9
    assert not group.exists()


def test_a_frozen_group_with_children_is_removed(cgroups: Cgroups) -> None:
    group = cgroups.group("frozen")
    group.create(Limits(pids=10))
    sleeper = run_in(group.procs_files(), "sleep", "60")
    while sleeper.pid not in group.pids():
        time.sleep(0.005)
    for path in group.paths():
        (path / "inner").mkdir()
    group.freeze()
    group.remove()
    assert sleeper.wait(90) == -9
    assert not group.exists()


def test_a_tree_without_the_controllers_is_refused_and_left_clean() -> None:
    tree = ROOT / "unified"
    if "memory" in (tree / "cgroup.controllers").read_text() if tree.exists() else True:
        pytest.skip("this host has no version 2 tree without controllers")
    groups = Cgroups(tree, f"lamella-test-{os.getpid()}")
    with pytest.raises(Unsupported, match="cpu, memory, pids"):
        groups.group("x").create(Limits())
    assert not (tree / groups.mark).exists()


def test_no_hierarchy_at_all(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no control groups"):
        Cgroups(tmp_path, "lamella-test")
