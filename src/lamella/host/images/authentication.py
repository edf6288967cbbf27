"""How a registry wants to be asked: the challenge of RFC 9110 (11.6.1), Basic, and Docker's token flow
(https://distribution.github.io/distribution/spec/auth/token/)."""

import re

import msgspec

from lamella.model.errors import Unavailable, Unsupported

_PARAMETER = re.compile(r'([A-Za-z0-9_-]{1,64})=(?:"([^"]{0,2048})"|([^\s,"]{1,2048}))', re.ASCII)


class Challenge(msgspec.Struct, kw_only=True, frozen=True):
    """``scheme`` is ``basic`` or ``bearer``; ``realm`` of a bearer is where tokens are given out."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


class Token(msgspec.Struct, kw_only=True):
    """What a token service answers; either name is in use."""

    token: str = ""
    access_token: str = ""


def parse_challenge(header: str) -> Challenge:
    """The first scheme of a ``WWW-Authenticate`` header that can be answered.

    :raise Unsupported: when there is none.
    """
    scheme, _, rest = header.strip().partition(" ")
    if scheme.lower() not in ("basic", "bearer"):
        raise Unsupported(
            f"the registry wants to be asked by {scheme or 'an unnamed scheme'!r}", hint="Basic and Bearer are known"
        )
    found = {name.lower(): quoted or bare for name, quoted, bare in _PARAMETER.findall(rest)}
    return Challenge(
        scheme=scheme.lower(),
        realm=found.get("realm", ""),
        service=found.get("service", ""),
        scope=found.get("scope", ""),
    )


def read_token(data: bytes) -> str:
    """:raise Unavailable: when the answer of a token service holds none."""
    try:
        answer = msgspec.json.decode(data, type=Token)
    except (msgspec.DecodeError, UnicodeDecodeError):
        answer = Token()
    token = answer.token or answer.access_token
    if not token or not token.isascii() or not token.isprintable():
        raise Unavailable("the registry's token service gave no token", hint="ask again later")
    return token
