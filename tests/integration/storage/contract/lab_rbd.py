"""The rbd driver on a real Ceph."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contract_lab import Lab
from tests.ceph import Ceph

STANDS_ON = ("ceph",)


@contextmanager
def lab(scratch: Path, ceph: Ceph) -> Iterator[Lab]:
    with ceph.forgetful():
        yield Lab(
            name="rbd",
            driver="lamella.host.storage.rbd:RbdDriver",
            path=ceph.pool("contract"),
            scratch=scratch,
            options={"conf": str(ceph.conf)},
            environment={"CEPH_CONF": str(ceph.conf)},
            foreign_volumes=8,
            depth=5,
            cuts=1,
            verb_takes=0.6,
            # OSDs tell what they hold every few seconds.
            tells_room_at_once=False,
            refuses_second_writer=False,
            restores_at_once=False,
        )
