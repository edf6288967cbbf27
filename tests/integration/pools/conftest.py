"""Storage servers of the kinds that pools stand on, each started once for this folder."""

import os
from collections.abc import Iterator

import pytest
from tests import gluster as gluster_of_tests
from tests.gluster import Gluster, small_gluster

from lamella.host.linux import syscalls

CLONE_NEWNET = 0x40000000


@pytest.fixture(scope="module")
def gluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gluster]:
    if reason := gluster_of_tests.missing():
        pytest.skip(reason)
    with small_gluster(tmp_path_factory.mktemp("gluster") / "servers") as running:
        yield running


@pytest.fixture
def in_gluster(gluster: Gluster) -> Iterator[Gluster]:
    """This thread, and what it starts, is in the servers' network namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/run/netns/{gluster.netns}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(there, CLONE_NEWNET)
        yield gluster
    finally:
        syscalls.setns(home, CLONE_NEWNET)
        os.close(there)
        os.close(home)
