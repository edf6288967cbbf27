"""The iscsi driver on a real target with a dozen LUNs of several sizes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from contract_lab import Lab
from tests.tgt import missing, small_tgt


@contextmanager
def lab(scratch: Path) -> Iterator[Lab]:
    if reason := missing():
        pytest.skip(reason)
    with small_tgt(scratch / "tgt") as tgt:
        # A volume takes a whole LUN, so there are small ones too.
        for number, size in enumerate([512, 80, 80, 80, 40, 40, 20, 20, 20, 20, 20, 20], start=1):
            tgt.lun(number, size << 20)
        yield Lab(
            name="iscsi",
            driver="lamella.host.storage.iscsi:IscsiDriver",
            path=tgt.path,
            scratch=scratch,
            foreign_volumes=8,
            cuts=1,
            refuses_second_writer=False,
        )
