"""What a worker is told, byte for byte: native/wasm/lamella-wasm.h has the same in C. Pure."""

import struct
from collections.abc import Mapping, Sequence

import msgspec

from lamella.model.board import Directory
from lamella.model.errors import Invalid

RUN, COMPILE = 1, 2
COMPONENT, STDIN, FUEL = 1, 2, 4

# struct request and struct order of the C header.
_REQUEST = struct.Struct("=III")
_ORDER = struct.Struct("=IIIIQQQ")


class Order(msgspec.Struct, kw_only=True, frozen=True):
    """``memory`` is the most bytes that a linear memory may have, ``deadline`` seconds; ``None`` is no bound."""

    user: int
    boot: str
    component: bool = False
    stdin: bool = False
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = {}
    directories: Sequence[Directory] = ()
    fuel: int | None = None
    count_fuel: bool = False
    memory: int | None = None
    deadline: float | None = None


def request(mode: int, *, groups: int, directories: int) -> bytes:
    """The datagram that goes with the descriptors."""
    return _REQUEST.pack(mode, groups, directories)


def pack(order: Order) -> bytes:
    """The order as the worker reads it.

    :raise Invalid: when a text holds a zero byte.
    """
    flags = (
        (COMPONENT if order.component else 0)
        | (STDIN if order.stdin else 0)
        | (FUEL if order.count_fuel or order.fuel is not None else 0)
    )
    head = _ORDER.pack(
        order.user,
        flags,
        len(order.arguments),
        len(order.environment),
        order.fuel or 0,
        min(order.memory or 0, (1 << 63) - 1),
        0 if order.deadline is None else max(1, round(order.deadline * 1000)),
    )
    texts = [order.boot, *order.arguments]
    for name, value in order.environment.items():
        texts += [name, value]
    texts += [("r" if one.read_only else "w") + one.target for one in order.directories]
    if any("\0" in text for text in texts):
        raise Invalid("arguments, environment and directories hold no zero byte")
    return head + b"".join(text.encode(errors="surrogateescape") + b"\0" for text in texts)
