"""What tests of control groups share: groups of their own, of which nothing is left."""

import os
from collections.abc import Iterator

import pytest

from lamella.host.linux.cgroup import ROOT, Cgroups


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    groups = Cgroups(ROOT, f"lamella-test-{os.getpid()}")
    yield groups
    groups.remove()
    assert groups.ids() == set()
    assert not any((tree / groups.mark).exists() for tree in groups.trees.values())
