"""The iscsi driver on a real target with a dozen LUNs."""

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
        for number in range(1, 13):
            tgt.lun(number, 512 << 20 if number < 3 else 80 << 20)
        yield Lab(
            name="iscsi",
            driver="lamella.host.storage.iscsi:IscsiDriver",
            path=tgt.path,
            scratch=scratch,
            foreign_volumes=20,
            cuts=2,
            refuses_second_writer=False,
        )
