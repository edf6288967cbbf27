"""Bits a second, as people type and read them: ``100Mbit``, ``1.5Gbit/s``. In the API they are whole bits a second."""

import re
from decimal import Decimal
from typing import Annotated

from msgspec import Meta

from lamella.model.errors import Invalid

SMALLEST, LARGEST = 64_000, 100_000_000_000
BitRate = Annotated[int, Meta(ge=SMALLEST, le=LARGEST)]

_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_TEXT = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmg]?)(?:bit|bps)(?:/s)?", re.ASCII | re.IGNORECASE)


def parse(text: str, *, field: str = "rate") -> int:
    """Bits a second: ``100Mbit`` (as tc(8) has it), ``100Mbit/s``, ``64kbit``; the prefixes are decimal.

    :raise Invalid: when *text* is none, or not between 64kbit and 100Gbit.
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise Invalid(
            f"{field} {text!r} is not a number of bits a second", hint="write it like 100Mbit or 1Gbit", field=field
        )
    rate = int(Decimal(match[1]) * _FACTORS[match[2].lower()])
    if not SMALLEST <= rate <= LARGEST:
        raise Invalid(
            f"{field} {text!r} cannot be kept", hint=f"ask for {format(SMALLEST)} to {format(LARGEST)}", field=field
        )
    return rate


def format(rate: int) -> str:
    """*rate* bits a second for a person: exact where a prefix divides it, else with one decimal (``96.3Mbit/s``)."""
    for prefix, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if rate >= factor:
            whole, rest = divmod(rate, factor)
            return f"{whole}{prefix}bit/s" if rest == 0 else f"{rate / factor:.1f}{prefix}bit/s"
    return f"{rate}bit/s"
