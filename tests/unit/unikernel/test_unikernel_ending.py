"""What a keeper wrote, and what it means."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.unikernel import ending

STARTED = datetime(2026, 1, 1, tzinfo=UTC)


def said(text: str) -> tuple[int | None, str]:
    found = ending.parse(text.encode())
    assert found is not None
    record = ending.record(found, STARTED, out_of_memory=False)
    assert record.started_at == STARTED and record.finished_at >= STARTED
    return record.exit_code, record.reason


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        ("exit 1 1900000000.000001\n", 0, ""),
        ("exit 7 1900000000.000001\n", 3, ""),
        ("exit 255 1900000000.000001\n", 127, ""),
        ("exit 0 1900000000.000001\nqemu_system_shutdown_request reason=6\n", 0, ""),
        ("exit 0 1900000000.000001\nqemu_system_shutdown_request reason=8\n", 134, "panicked"),
        ("exit 0 1900000000.000001\nCPU Reset (CPU 0)\nEAX=0\nTriple fault\n", 134, "triple fault"),
        ("exit 0 1900000000.000001\n", 134, "reset its machine"),
        ("exit 0 1.000000\nqemu-system-x86_64: terminating on signal 15 from pid 0\n", 143, "signal 15"),
        ("exit 1 1900000000.000001\nqemu-system-x86_64: could not load PVH kernel\n", 125, "could not load PVH"),
        ("exit 2 1900000000.000001\n", 125, "ended with 2"),
        ("signal 9 1900000000.000001\n", 137, "signal 9"),
        ("signal 11 1900000000.000001\n", 139, "signal 11"),
    ],
)
def test_meanings(text: str, code: int, reason: str) -> None:
    found_code, found_reason = said(text)
    assert found_code == code and reason in found_reason and bool(reason) == bool(found_reason)


def test_memory_that_ran_out_is_said() -> None:
    found = ending.parse(b"signal 9 1900000000.000001\n")
    assert found is not None
    assert "more memory" in ending.record(found, None, out_of_memory=True).reason


@given(st.binary(max_size=200))
def test_whatever_is_there_is_read_or_nothing(text: bytes) -> None:
    found = ending.parse(text)
    assert found is None or ending.record(found, None, out_of_memory=False).exit_code is not None


@given(st.integers(0, 127))
def test_every_code_that_a_kernel_can_write_comes_back(code: int) -> None:
    assert said(f"exit {(code << 1) | 1} 1900000000.000001\n") == (code, "")
