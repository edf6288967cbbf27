"""Tokens of the metadata service's second version, computed from values alone: each is good for one port until it expires.

They are not kept: a token says when it ends and is signed with a key of this daemon's. Those of an earlier daemon are refused, and clients
ask for another.
"""

import base64
import binascii
import hashlib
import hmac

LONGEST = 21600


def issue(key: bytes, port: str, now: int, seconds: int) -> str:
    """A token for *port*, good for *seconds* (1 to ``LONGEST``)."""
    until = (now + seconds).to_bytes(8, "big")
    return base64.urlsafe_b64encode(until + _signature(key, port, until)).decode()


def good(key: bytes, port: str, now: int, token: str) -> bool:
    """Whether *token* was issued to *port*, and not too long ago."""
    try:
        raw = base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return False
    until, signature = raw[:8], raw[8:]
    return hmac.compare_digest(signature, _signature(key, port, until)) and now < int.from_bytes(until, "big")


def _signature(key: bytes, port: str, until: bytes) -> bytes:
    return hmac.new(key, until + port.encode(), hashlib.sha256).digest()
