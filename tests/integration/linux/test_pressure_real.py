"""What a group lost to waiting, told by this machine's kernel."""

import time

import pytest
from spinning import spinner

from lamella.host.compute.driver import Limits
from lamella.host.linux.cgroup import Cgroups
from lamella.host.linux.pressure import PROC

pytestmark = pytest.mark.root


def test_a_group_that_has_to_wait_is_told_from_one_that_does_not(cgroups: Cgroups) -> None:
    if "" not in cgroups.trees or not (PROC / "cpu").exists():
        pytest.skip("this host has no tree of version 2, or its kernel counts no pressure")
    busy, idle = cgroups.group("busy"), cgroups.group("idle")
    busy.create(Limits(cpu=200))
    idle.create(Limits())
    # One comes in as QEMU does, by every file; one as a container does, which an OCI runtime puts into the trees of version 1 alone.
    whole = cgroups.version == 2
    runtime = [file for file in busy.procs_files() if whole or cgroups.trees[""] not in file.parents]
    several = [spinner(busy.procs_files()), spinner(runtime)]
    try:
        deadline = time.monotonic() + 60
        inside = cgroups.trees[""] / cgroups.mark / "busy" / "cgroup.procs"
        while len(inside.read_text().split()) < 2:
            busy.gather()
            assert time.monotonic() < deadline
        while (stall := busy.pressure("cpu")) is None or stall.some < 0.5:
            assert time.monotonic() < deadline, stall
            time.sleep(0.05)
        unpressed = idle.pressure("cpu")
        assert unpressed is not None
        assert unpressed.some == 0
        assert idle.pressure("memory") is not None
        assert idle.pressure("io") is not None
        busy.remove()
        assert busy.pressure("cpu") is None
    finally:
        for one in several:
            one.kill()
            one.wait()
