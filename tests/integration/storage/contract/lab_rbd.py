"""The rbd driver on a real Ceph, started for this run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from contract_lab import Lab
from tests.ceph import missing, small_ceph


@contextmanager
def lab(scratch: Path) -> Iterator[Lab]:
    if reason := missing():
        pytest.skip(reason)
    with small_ceph(scratch / "ceph", osds=1) as ceph:
        yield Lab(
            name="rbd",
            driver="lamella.host.storage.rbd:RbdDriver",
            path=ceph.pool("volumes"),
            scratch=scratch,
            options={"conf": str(ceph.conf)},
            environment={"CEPH_CONF": str(ceph.conf)},
            foreign_volumes=20,
            depth=5,
            cuts=1,
            clone_bytes=4 << 20,
            refuses_second_writer=False,
        )
