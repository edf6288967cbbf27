"""A repository's key as a person keeps it: 32 bytes as 13 groups of four letters and digits, and a fourteenth that tells a slip of the pen.

Crockford's base 32 (https://www.crockford.com/base32.html) has no letter that is taken for a digit; case, spaces and dashes do not matter.
"""

import hashlib

from lamella.model.errors import Invalid
from lamella.model.ids import ALPHABET

KEY_BYTES = 32
_DIGITS = 52
_CHECK = 4
_READ_AS = str.maketrans({"o": "0", "i": "1", "l": "1", "-": "", " ": "", "\n": "", "\t": ""})


def written(key: bytes) -> str:
    """*key* for a person."""
    number = int.from_bytes(key, "big")
    text = "".join(ALPHABET[(number >> shift) & 31] for shift in range(5 * (_DIGITS - 1), -1, -5)) + _check(key)
    return "-".join(text[start : start + 4] for start in range(0, len(text), 4)).upper()


def read(text: str) -> bytes:
    """The key that somebody wrote down.

    :raise Invalid: when it is none, or was not written down as it was.
    """
    plain = text.lower().translate(_READ_AS)
    if len(plain) != _DIGITS + _CHECK or any(digit not in ALPHABET for digit in plain):
        raise Invalid(
            f"a recovery key has {_DIGITS + _CHECK} letters and digits; this has {len(plain)}",
            hint="enter it as it was shown when the repository was made",
            field="recovery_key",
        )
    number = 0
    for digit in plain[:_DIGITS]:
        number = number << 5 | ALPHABET.index(digit)
    if number >> (8 * KEY_BYTES) or _check(key := number.to_bytes(KEY_BYTES, "big")) != plain[_DIGITS:]:
        raise Invalid(
            "this is not a recovery key: a letter of it is wrong",
            hint="compare it letter by letter",
            field="recovery_key",
        )
    return key


def _check(key: bytes) -> str:
    number = int.from_bytes(hashlib.sha256(b"lamella recovery key" + key).digest()[:4], "big")
    return "".join(ALPHABET[(number >> shift) & 31] for shift in (15, 10, 5, 0))
