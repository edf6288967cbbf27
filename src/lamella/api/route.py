"""A route: the one place where a path, who may ask, what it takes and what it answers are written down.

The router, the permission check and the OpenAPI document are all made from it, so that they cannot disagree.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Generic

import msgspec
from litestar.types import ASGIApp

from lamella.api.access import Action
from lamella.api.call import Call, NoQuery, QueryT

OCTETS = "application/octet-stream"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"
PNG = "image/png"
METRICS = "text/plain; version=0.0.4; charset=utf-8"
PCAP = "application/vnd.tcpdump.pcap"


class Success(msgspec.Struct, kw_only=True, frozen=True):
    """What a route answers when all went well. ``streams`` names media types whose body is no JSON document."""

    status: int = 200
    type: Any = None
    streams: tuple[str, ...] = ()
    etag: bool = False


class Route(msgspec.Struct, Generic[QueryT], kw_only=True, frozen=True):
    """``path`` is as Litestar writes it, with ``{project:str}`` and ``{name:str}``; ``body`` is a type, or bytes for octets."""

    method: str
    path: str
    name: str
    summary: str
    action: Action
    handler: Callable[[Call[QueryT]], Awaitable[ASGIApp]]
    kind: str | None = None
    query: type[QueryT] = NoQuery  # pyright: ignore[reportAssignmentType]
    body: Any = None
    body_optional: bool = False
    answers: Success | None = Success()
    headers: tuple[str, ...] = ()
    refuses: tuple[int, ...] = ()


AnyRoute = Route[Any]

# What most verbs may refuse with: nothing of that name, its state, the body, and too long a wait.
REFUSED = (404, 409, 422, 504)


def change(kind: str, path: str, name: str, summary: str, handler: Any, **rest: Any) -> AnyRoute:
    """A POST that changes something of *kind*: who may write may ask for it, unless *rest* (:class:`Route`'s fields) says otherwise."""
    settings: dict[str, Any] = {"action": Action.WRITE, "refuses": REFUSED, **rest}
    return Route(method="POST", path=path, name=name, summary=summary, handler=handler, kind=kind, **settings)
