"""What a volume over an image's disk becomes: sizes and refusals, without a disk."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.host.storage.directory import record_for
from lamella.host.storage.driver import Base
from lamella.model.errors import Invalid
from lamella.model.storage import VolumeForm

SIZES = st.integers(min_value=1, max_value=1 << 44)


@settings(deadline=None)
@given(base=SIZES, size=SIZES)
def test_a_clone_holds_its_base_and_what_was_asked_for(base: int, size: int) -> None:
    disk = Base(path=Path("/images/disk"), size=base)
    if size < base:
        with pytest.raises(Invalid, match="cannot hold") as refused:
            record_for(VolumeForm.BLOCK, size, disk)
        hint = refused.value.hint
        least = int(hint.split("MiB")[0].split()[-1]) << 20
        assert record_for(VolumeForm.BLOCK, least, disk).size >= base
    else:
        record = record_for(VolumeForm.BLOCK, size, disk)
        assert record.size % 4096 == 0 and size <= record.size < size + 4096
        assert record.base is not None and record.base.size == base


def test_no_size_takes_that_of_the_base() -> None:
    assert record_for(VolumeForm.BLOCK, 0, Base(path=Path("/d"), size=3 << 20)).size == 3 << 20


def test_a_filesystem_has_no_base() -> None:
    with pytest.raises(Invalid, match="cannot begin as a disk"):
        record_for(VolumeForm.FILESYSTEM, 0, Base(path=Path("/d"), size=512))
