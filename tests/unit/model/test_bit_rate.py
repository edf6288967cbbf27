"""Rates as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.model import bit_rate
from lamella.model.errors import Invalid


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("100Mbit", 100_000_000),
        ("100mbit", 100_000_000),
        ("1.5Gbit/s", 1_500_000_000),
        ("64kbit", 64_000),
        (" 2 Mbps ", 2_000_000),
        ("250000bit", 250_000),
    ],
)
def test_rates_are_decimal_bits(text: str, bits: int) -> None:
    assert bit_rate.parse(text) == bits


@pytest.mark.parametrize(
    "text", ["", "100", "100M", "100MB/s", "-1Mbit", "1kbit", "1000Gbit", "fast", "1e3Mbit", "٣Mbit"]
)
def test_what_is_no_rate_is_said(text: str) -> None:
    with pytest.raises(Invalid) as raised:
        bit_rate.parse(text, field="rate-in")
    assert raised.value.field == "rate-in" and raised.value.hint


@given(st.integers(bit_rate.SMALLEST, bit_rate.LARGEST))
def test_what_is_shown_can_be_typed(bits: int) -> None:
    shown = bit_rate.format(bits)
    assert abs(bit_rate.parse(shown) - bits) <= bits / 20
    if bits % 10**6 == 0:
        assert bit_rate.parse(shown) == bits or "." in shown
