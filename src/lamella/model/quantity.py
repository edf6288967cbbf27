"""Quantities as people type and read them: ``2GiB``, ``1.5`` cores, ``10s``.

In the API sizes are bytes, CPU is milli-cores, durations are seconds.
"""

import re
from decimal import Decimal, InvalidOperation

from lamella.model.errors import Invalid

_BINARY = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_DECIMAL = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGTP]?)(iB|B|)", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)", re.ASCII)
_SECONDS = {
    "ms": Decimal("0.001"),
    "": Decimal(1),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
_LARGEST = 1 << 60


def parse_size(text: str, *, field: str = "size") -> int:
    """Bytes: ``512MiB`` and ``512M`` are binary (as docker reads ``-m``), ``512MB`` is decimal, ``512`` is bytes.

    :raise Invalid: when *text* is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise Invalid(f"{field} {text!r} is not a size", hint="write it like 512MiB, 2GiB or 10GB", field=field)
    number, prefix, suffix = match.groups()
    factor = _DECIMAL[prefix] if suffix == "B" else _BINARY[prefix.upper()]
    size = int(Decimal(number) * factor)
    if size > _LARGEST:
        raise Invalid(f"{field} {text!r} is beyond any machine", hint="write it like 512MiB or 2GiB", field=field)
    return size


def format_size(size: int) -> str:
    """*size* bytes for a person: exact where a binary unit divides it, else with one decimal (``1.5GiB``)."""
    for prefix in ("P", "T", "G", "M", "K"):
        unit = _BINARY[prefix]
        if size >= unit:
            whole, rest = divmod(size, unit)
            return f"{whole}{prefix}iB" if rest == 0 else f"{size / unit:.1f}{prefix}iB"
    return f"{size}B"


def parse_rate(text: str, *, field: str = "rate") -> int:
    """A second: ``100MiB/s`` is bytes as :func:`parse_size` has them, ``2000`` and ``2000/s`` are what is counted.

    :raise Invalid: when *text* is not a rate above 0.
    """
    try:
        rate = parse_size(text.strip().removesuffix("/s"), field=field)
    except Invalid:
        rate = 0
    if rate <= 0:
        raise Invalid(f"{field} {text!r} is not a rate", hint="write it like 2000, or 100MiB/s", field=field)
    return rate


def format_rate(rate: int) -> str:
    """*rate* bytes a second for a person: ``100MiB/s``."""
    return f"{format_size(rate)}/s"


def parse_cpu(text: str, *, field: str = "cpu") -> int:
    """Milli-cores: ``1.5`` is 1500, ``250m`` is 250.

    :raise Invalid: when *text* is not a positive number of cores.
    """
    try:
        milli = int(text[:-1]) if text.endswith("m") else int(Decimal(text) * 1000)
    except (InvalidOperation, ValueError, OverflowError):
        milli = 0
    if not 1 <= milli <= 10**9:
        raise Invalid(f"{field} {text!r} is not a number of cores", hint="write it like 2, 1.5 or 250m", field=field)
    return milli


def format_cpu(milli: int) -> str:
    """*milli* milli-cores for a person, as cores: ``1.5``."""
    return f"{milli / 1000:g}"


def parse_duration(text: str, *, field: str = "duration") -> float:
    """Seconds: ``10``, ``10s``, ``1.5m``, ``250ms``, ``2h``.

    :raise Invalid: when *text* is not a duration.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise Invalid(f"{field} {text!r} is not a duration", hint="write it like 10s, 5m or 250ms", field=field)
    number, unit = match.groups()
    return float(Decimal(number) * _SECONDS[unit])
