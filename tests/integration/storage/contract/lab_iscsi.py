"""The iscsi driver on a real target with some LUNs."""

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
        # A volume takes a whole LUN, within which it may grow: each holds whatever a test grows to.
        for number in range(1, 6):
            tgt.lun(number, 40 << 20)
        yield Lab(
            name="iscsi",
            driver="lamella.host.storage.iscsi:IscsiDriver",
            path=tgt.path,
            scratch=scratch,
            foreign_volumes=12,
            cuts=1,
            verb_takes=1.0,
            refuses_second_writer=False,
        )
