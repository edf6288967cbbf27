"""Ids carry their kind, sort by time, and are never reused.

An id is ``<prefix>_<26 characters>``: the ULID layout (48 bits of milliseconds, 80 random bits) in lower-case Crockford
base 32 (https://github.com/ulid/spec), so ids of one kind sort by the time they were made.
"""

import os
import re
import time

from lamella.model.errors import Invalid

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

PREFIXES = {
    "project": "proj",
    "image": "img",
    "instance": "inst",
    "pool": "pool",
    "volume": "vol",
    "snapshot": "snap",
    "repository": "repo",
    "backup": "bak",
    "policy": "pol",
    "replication": "repl",
    "network": "net",
    "port": "port",
    "firewall": "fw",
    "router": "rtr",
    "address": "addr",
    "balancer": "bal",
    "template": "tmpl",
    "host": "host",
    "operation": "op",
    "event": "evt",
}

_ID = re.compile(r"[a-z]{2,5}_[0-9a-hjkmnp-tv-z]{26}")
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9]+(?:[._:@/-]+[A-Za-z0-9]+)*")
_PROJECT = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def new_id(kind: str, *, now_ms: int | None = None) -> str:
    """A fresh id for *kind*.

    :raise KeyError: when *kind* is not one of ``PREFIXES``.
    """
    milliseconds = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    number = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    digits = "".join(ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))
    return f"{PREFIXES[kind]}_{digits}"


def is_id(text: str) -> bool:
    """Whether *text* has the shape of an id of any kind."""
    return _ID.fullmatch(text) is not None


def check_name(text: str, *, field: str = "name") -> str:
    """*text*, when it may name a resource: 1 to 63 of ``a-z 0-9 . _ -``, a letter or digit at both ends, not an id.

    :raise Invalid: otherwise.
    """
    if _NAME.fullmatch(text) is None:
        raise Invalid(
            f"{field} {text!r} is not a name",
            hint="use 1 to 63 lower-case letters, digits, dots, dashes or underscores, with a letter or digit at both ends",
            field=field,
        )
    if is_id(text):
        raise Invalid(f"{field} {text!r} has the shape of an id", hint="choose a name that is not an id", field=field)
    return text


def check_image_name(text: str, *, field: str = "name") -> str:
    """*text*, when it may name an image: ``debian:12``, ``team/web``, ``host:5000/name:tag``, up to 255 characters.

    :raise Invalid: otherwise.
    """
    if len(text) > 255 or _IMAGE.fullmatch(text) is None or is_id(text):
        raise Invalid(
            f"{field} {text!r} is not a name for an image", hint="write it like debian:12 or team/web:1.0", field=field
        )
    return text


def check_snapshot_name(text: str, *, field: str = "name") -> str:
    """*text*, when it may name a snapshot: ``data@nightly``, what it is of and its own name, a name each.

    :raise Invalid: otherwise.
    """
    of, at, own = text.partition("@")
    if not at:
        raise Invalid(f"{field} {text!r} does not name a snapshot", hint="write it like data@nightly", field=field)
    check_name(of, field=field)
    check_name(own, field=field)
    return text


def check_project(text: str) -> str:
    """*text*, when it may name a project: a DNS label (RFC 1123).

    :raise Invalid: otherwise.
    """
    if _PROJECT.fullmatch(text) is None:
        raise Invalid(
            f"project {text!r} is not a name", hint="use 1 to 63 lower-case letters, digits or dashes", field="project"
        )
    return text
