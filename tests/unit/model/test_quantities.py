"""Quantities as people write them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.model.errors import Invalid
from lamella.model.quantity import (
    format_cpu,
    format_rate,
    format_size,
    parse_cpu,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("512B", 512),
        ("1KiB", 1024),
        ("1k", 1024),
        ("1kB", 1000),
        ("512MiB", 512 << 20),
        ("512M", 512 << 20),
        ("512m".upper(), 512 << 20),
        ("1.5GiB", 3 << 29),
        ("10GB", 10**10),
    ],
)
def test_sizes_mean_what_docker_users_expect(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1 GiB x", "GiB", "1e3", "١GiB", "99999999PiB", "0x10", "1,5GiB"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_size(text, field="memory")
    assert caught.value.field == "memory"
    assert "MiB" in caught.value.hint


@given(st.integers(0, 1 << 60))
def test_an_exact_size_survives_its_own_text(size: int) -> None:
    text = format_size(size)
    if "." not in text:
        assert parse_size(text) == size
    else:
        assert abs(parse_size(text) - size) <= size * 0.06


@pytest.mark.parametrize(("text", "milli"), [("1", 1000), ("1.5", 1500), ("250m", 250), ("0.01", 10)])
def test_cores(text: str, milli: int) -> None:
    assert parse_cpu(text) == milli
    assert parse_cpu(format_cpu(milli)) == milli


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "1e99", "m", "two"])
def test_what_is_no_number_of_cores_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_cpu(text)


@pytest.mark.parametrize(("text", "seconds"), [("10", 10), ("10s", 10), ("250ms", 0.25), ("1.5m", 90), ("2h", 7200)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "rate"), [("2000", 2000), ("100MiB/s", 100 << 20), ("5MB/s", 5_000_000), ("7/s", 7)])
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate
    assert parse_rate(format_rate(100 << 20)) == 100 << 20


@pytest.mark.parametrize("text", ["", "0", "0MiB/s", "fast", "1/h", "-5", "/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_rate(text, field="bandwidth")
    assert caught.value.field == "bandwidth" and "MiB/s" in caught.value.hint


@given(st.text(max_size=12))
def test_no_text_makes_a_parser_fall_over(text: str) -> None:
    for parse in (parse_size, parse_cpu, parse_duration, parse_rate):
        with contextlib.suppress(Invalid):
            assert parse(text) >= 0
