"""The gluster driver over a replicated volume of a real GlusterFS, which was mounted from within its network namespace."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from contract_lab import Lab
from tests.gluster import missing, small_gluster

from lamella.host.linux import syscalls


@contextmanager
def lab(scratch: Path) -> Iterator[Lab]:
    if reason := missing():
        pytest.skip(reason)
    with small_gluster(scratch / "gluster") as gluster:
        source = gluster.volume("pool")
        server, _, volume = source.partition(":")
        point = scratch / "mount"
        point.mkdir()
        gluster.run(
            *("glusterfs", f"--volfile-server={server}", f"--volfile-id={volume}"),
            *(f"--log-file={scratch}/client.log", str(point)),
        )
        try:
            yield Lab(
                name="gluster",
                driver="lamella.host.storage.gluster:GlusterDriver",
                path=source,
                scratch=scratch,
                options={"mount": str(point)},
                foreign_volumes=20,
                depth=6,
                cuts=2,
            )
        finally:
            syscalls.umount(str(point))
