"""Pressure files as kernels wrote them."""

from pathlib import Path

from lamella.host.linux.pressure import Stall, parse_stall, read_stall

# Linux 6.1, a group of version 2.
RECORDED = "some avg10=1.93 avg60=0.82 avg300=0.20 total=1742017\nfull avg10=0.38 avg60=0.11 avg300=0.00 total=250000\n"


def test_totals_are_read_in_seconds() -> None:
    assert parse_stall(RECORDED) == Stall(some=1.742017, full=0.25)


def test_a_kernel_without_the_second_line_for_processors() -> None:
    assert parse_stall(RECORDED.splitlines()[0]) == Stall(some=1.742017, full=None)


def test_what_cannot_be_known_is_not_nought(tmp_path: Path) -> None:
    assert parse_stall("") is None
    assert parse_stall("some avg10=nan total=x\n") is None
    assert read_stall(tmp_path / "gone") is None
