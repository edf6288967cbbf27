"""What a library's method asks: a request, and how its answer is read. Both faces execute the same calls."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from lamella.client.request import Reply, Request
from lamella.model.errors import Unavailable

AnswerT = TypeVar("AnswerT")


class Call(Generic[AnswerT]):
    """``request`` and the reader of its answer."""

    __slots__ = ("read", "request")

    def __init__(self, request: Request, read: Callable[[Reply], AnswerT]) -> None:
        self.request = request
        self.read = read


_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def decode(data: bytes, type: Any) -> Any:
    """JSON *data* as *type*.

    :raise Unavailable: when it is not, which says that the daemon is of another version.
    """
    decoder = _decoders.get(type)
    if decoder is None:
        decoder = _decoders[type] = msgspec.json.Decoder(type)
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise Unavailable(
            f"the daemon's answer was not understood: {error}", hint="is it of the same version as this library?"
        ) from error


def answer(type: Any) -> Callable[[Reply], Any]:
    """A reader of *type*."""
    return lambda reply: decode(reply.body, type)


def nothing(reply: Reply) -> None:
    """A reader of an answer that says nothing."""
