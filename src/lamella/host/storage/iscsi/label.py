"""The first sector of a LUN that belongs to a pool: which volume it is, how large, and what is being done with it.

A line of text, a line of JSON and its digest, padded with zeros to 4 KiB. A volume's data begins at 1 MiB, where partitions begin
too, so that a LUN that grows at its target needs nothing moved.
"""

import hashlib
from enum import StrEnum

import msgspec

DATA = 1 << 20
BYTES = 4096
_MAGIC = b"lamella volume 1\n"


class State(StrEnum):
    """``making`` and ``releasing`` are no volumes; ``free`` is all zeros behind the label."""

    MAKING = "making"
    READY = "ready"
    RELEASING = "releasing"
    FREE = "free"


class Label(msgspec.Struct, kw_only=True, frozen=True):
    """``size`` is the volume's bytes; ``owner`` is the host that is making or releasing it; ``token`` tells two hosts apart that write to
    one LUN at once; ``clean`` says that everything behind the volume is zeros."""

    state: State
    id: str = ""
    size: int = 0
    owner: str = ""
    token: str = ""
    clean: bool = False


def encoded(label: Label) -> bytes:
    text = _MAGIC + msgspec.json.encode(label) + b"\n"
    return (text + hashlib.sha256(text).hexdigest().encode() + b"\n").ljust(BYTES, b"\0")


def decoded(sector: bytes) -> Label | None:
    """``None`` when this is no label.

    :raise ValueError: when it is one that was damaged.
    """
    if not sector.startswith(_MAGIC):
        return None
    text, _, digest = sector.rstrip(b"\0").rstrip(b"\n").rpartition(b"\n")
    if hashlib.sha256(text + b"\n").hexdigest().encode() != digest:
        raise ValueError("the label does not match its digest")
    try:
        return msgspec.json.decode(text[len(_MAGIC) :], type=Label)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error
